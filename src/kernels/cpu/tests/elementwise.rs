//! Norms, activations and the exponential.

use super::*;
use crate::cpu::rows::GatedGelu;

#[test]
fn rms_norm_is_the_formula() {
    let mut numbers = Numbers::new(1);
    for cpu in cpus(2) {
        for (rows, width) in [(1, 1), (3, 7), (5, 64), (40, 2816)] {
            let (x, weight) = (numbers.vector(rows * width), numbers.vector(width));
            for weight in [None, Some(&weight[..])] {
                let mut out = vec![0.0; x.len()];
                cpu.rms_norm(&x, width, weight, 1e-6, &mut out).unwrap();
                let wanted: Vec<f64> = x
                    .chunks(width)
                    .flat_map(|row| {
                        let mean = dot(row, row) / width as f64;
                        let value = move |i: usize| f64::from(row[i]) / (mean + 1e-6).sqrt();
                        (0..width).map(move |i| value(i) * weight.map_or(1.0, |w| f64::from(w[i])))
                    })
                    .collect();
                close(&out, &wanted, 2e-6);
            }
        }
    }
}

#[test]
fn gelu_is_the_tanh_form() {
    for cpu in cpus(1) {
        let gate: Vec<f32> = (-512..512).map(|i| i as f32 * 0.03).collect();
        let up: Vec<f32> = gate.iter().map(|x| 1.0 + x * 0.01).collect();
        let mut panels: Vec<f32> = gate.chunks(16).zip(up.chunks(16)).flat_map(|(g, u)| [g, u].concat()).collect();
        cpu.checked().run(GatedGelu { panels: &mut panels });
        let wanted: Vec<f64> = gate.iter().zip(&up).map(|(g, u)| gelu(f64::from(*g)) * f64::from(*u)).collect();
        close(&panels[..gate.len()], &wanted, 4e-6);
    }
}

#[test]
fn exp_is_good_to_a_few_units_in_the_last_place() {
    use crate::cpu::{math::exp, path::Task, simd::Simd};
    struct Exp<'a>(&'a mut [f32]);
    impl Task for Exp<'_> {
        type Output = ();
        #[inline(always)]
        fn run<S: Simd>(self, s: S) {
            for x in self.0.iter_mut() {
                *x = s.lanes(exp(s, s.splat(*x)))[0];
            }
        }
    }
    for cpu in cpus(1) {
        let x: Vec<f32> = (-8700..8870).map(|i| i as f32 * 0.01).collect();
        let mut y = x.clone();
        cpu.checked().run(Exp(&mut y));
        for (x, y) in x.iter().zip(&y) {
            let wanted = f64::from(*x).exp();
            assert!((f64::from(*y) - wanted).abs() <= 3e-7 * wanted, "exp({x}) = {y}, wanted {wanted}");
        }
        let mut special = [0.0, f32::NEG_INFINITY, -200.0, f32::INFINITY, 200.0, f32::NAN];
        cpu.checked().run(Exp(&mut special));
        assert_eq!(special[..5], [1.0, 0.0, 0.0, f32::INFINITY, f32::INFINITY]);
        assert!(special[5].is_nan());
    }
}

#[test]
fn wrong_lengths_are_errors() {
    let cpu = Cpu::new(1, None).unwrap();
    let mut out = [0.0; 8];
    assert!(cpu.rms_norm(&[0.0; 7], 4, None, 1e-6, &mut out[..7]).is_err());
    assert!(cpu.rms_norm(&[0.0; 8], 4, Some(&[1.0; 3]), 1e-6, &mut out).is_err());
}

//! Products and the stored number formats.

use super::*;

pub(super) const FORMATS: [ElementType; 13] = [
    ElementType::F32,
    ElementType::F16,
    ElementType::Bf16,
    ElementType::Q4_0,
    ElementType::Q4_1,
    ElementType::Q5_0,
    ElementType::Q5_1,
    ElementType::Q8_0,
    ElementType::Q2K,
    ElementType::Q3K,
    ElementType::Q4K,
    ElementType::Q5K,
    ElementType::Q6K,
];

/// Random stored rows: random bits, with the `f16` and f32 numbers among them made tame.
pub(super) fn stored(element: ElementType, count: usize, numbers: &mut Numbers) -> Vec<u8> {
    let (block, size) = element.block();
    let mut bytes = Vec::new();
    for _ in 0..count / block {
        let mut b: Vec<u8> = (0..size).map(|_| numbers.bits() as u8).collect();
        let mut half = |at: usize| {
            b[at..at + 2].copy_from_slice(&half::f16::from_f32(numbers.number() * 0.05).to_le_bytes());
        };
        match element {
            ElementType::F32 => b = numbers.number().to_le_bytes().to_vec(),
            ElementType::F16 => half(0),
            ElementType::Bf16 => b = half::bf16::from_f32(numbers.number()).to_le_bytes().to_vec(),
            ElementType::Q4_0 | ElementType::Q5_0 | ElementType::Q8_0 => half(0),
            ElementType::Q4_1 | ElementType::Q5_1 | ElementType::Q4K | ElementType::Q5K => {
                half(0);
                half(2);
            }
            ElementType::Q2K => {
                half(80);
                half(82);
            }
            ElementType::Q3K => half(108),
            ElementType::Q6K => half(208),
        }
        bytes.extend(b);
    }
    bytes
}

fn reference(x: &[f32], weight: &[f32], k: usize) -> Vec<f64> {
    x.chunks(k).flat_map(|x| weight.chunks(k).map(move |w| dot(x, w))).collect()
}

#[test]
fn products_agree_with_the_reference_for_every_shape() {
    let mut numbers = Numbers::new(3);
    for (rows, n, k) in [
        (1, 1, 1),
        (1, 33, 7),
        (2, 31, 256),
        (5, 64, 257),
        (13, 100, 704),
        (25, 40, 2112),
        (131, 65, 96),
        (512, 33, 704),
        (1024, 17, 2112),
    ] {
        let (x, weight) = (numbers.vector(rows * k), numbers.vector(n * k));
        let wanted = reference(&x, &weight, k);
        for cpu in cpus(2) {
            let mut out = vec![f32::NAN; rows * n];
            cpu.matmul(&x, &plain(&cpu, n, k, &weight), &mut out).unwrap();
            close(&out, &wanted, 3e-6 * k as f64 + 1e-6);
        }
    }
}

#[test]
fn every_format_is_read_exactly() {
    let mut numbers = Numbers::new(4);
    let (n, k, rows) = (37, 768, 3);
    for element in FORMATS {
        let bytes = stored(element, n * k, &mut numbers);
        let mut values = vec![0.0; n * k];
        dequantise(element, &bytes, &mut values).unwrap();
        assert!(values.iter().all(|value| value.is_finite()), "{element:?}");
        let x = numbers.vector(rows * k);
        for cpu in cpus(2) {
            let packed = PackedMatrix::plain(&cpu, n, k, Source { element, bytes: &bytes }, Packing::Fast).unwrap();
            let mut row = vec![0.0; k];
            for i in [0, 20, n - 1] {
                packed.row(i, &mut row).unwrap();
                assert_eq!(row, values[i * k..(i + 1) * k]);
            }
            // The sums run over the same numbers in the same order: not a bit may differ.
            let (mut out, mut wide) = (vec![0.0; rows * n], vec![0.0; rows * n]);
            cpu.matmul(&x, &packed, &mut out).unwrap();
            cpu.matmul(&x, &plain(&cpu, n, k, &values), &mut wide).unwrap();
            same_bits(&out, &wide);
        }
    }
}

#[test]
fn gated_products_are_gelu_of_gate_times_up() {
    let mut numbers = Numbers::new(5);
    for (rows, n, k) in [(1, 5, 16), (7, 16, 64), (20, 44, 256), (3, 704, 64)] {
        let (x, gate, up) = (numbers.vector(rows * k), numbers.vector(n * k), numbers.vector(n * k));
        let (g, u) = (reference(&x, &gate, k), reference(&x, &up, k));
        let wanted: Vec<f64> = g.iter().zip(&u).map(|(g, u)| gelu(*g) * u).collect();
        for cpu in cpus(3) {
            let packed = gated(&cpu, n, k, &gate, &up);
            assert_eq!((packed.outputs(), packed.columns()), (n, Columns::Gated));
            let mut out = vec![f32::NAN; rows * n];
            cpu.matmul(&x, &packed, &mut out).unwrap();
            close(&out, &wanted, 2e-4);
        }
    }
}

#[test]
fn gate_and_up_may_differ_in_format() {
    let mut numbers = Numbers::new(6);
    let cpu = Cpu::new(2, None).unwrap();
    let (n, k) = (40, 256);
    let (gate, up) = (stored(ElementType::Q4K, n * k, &mut numbers), stored(ElementType::Q8_0, n * k, &mut numbers));
    let source = |element, bytes| Source { element, bytes };
    let mixed =
        PackedMatrix::gated(&cpu, n, k, source(ElementType::Q4K, &gate), source(ElementType::Q8_0, &up), Packing::Fast)
            .unwrap();
    let (mut wide_gate, mut wide_up) = (vec![0.0; n * k], vec![0.0; n * k]);
    dequantise(ElementType::Q4K, &gate, &mut wide_gate).unwrap();
    dequantise(ElementType::Q8_0, &up, &mut wide_up).unwrap();
    let x = numbers.vector(k);
    let (mut a, mut b) = (vec![0.0; n], vec![0.0; n]);
    cpu.matmul(&x, &mixed, &mut a).unwrap();
    cpu.matmul(&x, &gated(&cpu, n, k, &wide_gate, &wide_up), &mut b).unwrap();
    same_bits(&a, &b);
}

#[test]
fn a_row_alone_is_the_same_row_in_company_on_any_number_of_threads() {
    let mut numbers = Numbers::new(7);
    let (rows, n, k) = (29, 320, 704);
    let x = numbers.vector(rows * k);
    for element in [ElementType::F32, ElementType::Bf16, ElementType::Q5_0] {
        let bytes = stored(element, n * k, &mut numbers);
        for path in Path::ALL.into_iter().filter(|path| path.supported()) {
            let run = |threads: usize, x: &[f32]| {
                let cpu = Cpu::new(threads, Some(path)).unwrap();
                let packed = PackedMatrix::plain(&cpu, n, k, Source { element, bytes: &bytes }, Packing::Fast).unwrap();
                let mut out = vec![0.0; x.len() / k * n];
                cpu.matmul(x, &packed, &mut out).unwrap();
                out
            };
            let all = run(1, &x);
            same_bits(&all, &run(2, &x));
            same_bits(&all, &run(3, &x));
            for (row, x) in x.chunks(k).enumerate().step_by(7) {
                same_bits(&all[row * n..(row + 1) * n], &run(2, x));
            }
        }
    }
}

#[test]
fn a_damaged_row_spoils_no_other() {
    let mut numbers = Numbers::new(8);
    let (rows, n, k) = (15, 48, 64);
    let mut x = numbers.vector(rows * k);
    let weight = numbers.vector(n * k);
    for cpu in cpus(1) {
        let packed = plain(&cpu, n, k, &weight);
        let (mut good, mut bad) = (vec![0.0; rows * n], vec![0.0; rows * n]);
        cpu.matmul(&x, &packed, &mut good).unwrap();
        let old = std::mem::replace(&mut x[6 * k + 3], f32::NAN);
        cpu.matmul(&x, &packed, &mut bad).unwrap();
        x[6 * k + 3] = old;
        same_bits(&good[..6 * n], &bad[..6 * n]);
        same_bits(&good[7 * n..], &bad[7 * n..]);
        assert!(bad[6 * n..7 * n].iter().all(|y| y.is_nan()));
    }
}

#[test]
fn wrong_lengths_are_errors() {
    let cpu = Cpu::new(1, None).unwrap();
    let packed = plain(&cpu, 4, 3, &[0.5; 12]);
    let mut out = [0.0; 8];
    assert!(cpu.matmul(&[0.0; 7], &packed, &mut out).is_err());
    assert!(cpu.matmul(&[0.0; 6], &packed, &mut out[..7]).is_err());
    assert!(packed.row(4, &mut [0.0; 3]).is_err());
    let short = Source { element: ElementType::F32, bytes: &[0; 44] };
    assert!(PackedMatrix::plain(&cpu, 4, 3, short, Packing::Fast).is_err());
    let uneven = Source { element: ElementType::Q4K, bytes: &[0; 144] };
    let error = PackedMatrix::plain(&cpu, 1, 255, uneven, Packing::Fast).unwrap_err();
    assert!(error.to_string().contains("255"), "{error}");
}

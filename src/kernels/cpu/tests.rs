//! Every operation against a plain f64 reference, under every path this machine has, and bit for bit against itself
//! in other company, in other chunks and on other numbers of threads.

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub(in crate::cpu) mod amx;
mod attend;
mod elementwise;
mod experts;
mod fused;
mod precision;
mod products;
mod soft;
mod sweep;

use super::*;
use crate::ElementType;

/// A small generator of reproducible numbers (xorshift).
pub(super) struct Numbers(u64);

impl Numbers {
    pub fn new(seed: u64) -> Numbers {
        Numbers(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn bits(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn below(&mut self, bound: usize) -> usize {
        (self.bits() >> 33) as usize % bound
    }

    /// In −1 … 1.
    pub fn number(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    pub fn vector(&mut self, length: usize) -> Vec<f32> {
        (0..length).map(|_| self.number()).collect()
    }
}

/// Every path of this machine, with so many threads; says which paths it lacks.
pub(super) fn cpus(threads: usize) -> Vec<Cpu> {
    let (have, lack): (Vec<_>, Vec<_>) = Path::ALL.into_iter().partition(|path| path.supported());
    if !lack.is_empty() {
        println!("skipped: {lack:?}, this processor lacks them");
    }
    have.into_iter().map(|path| Cpu::new(threads, Some(path)).unwrap()).collect()
}

pub(super) fn bytes_of(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

pub(super) fn plain(cpu: &Cpu, n: usize, k: usize, values: &[f32]) -> PackedMatrix {
    PackedMatrix::plain(cpu, n, k, Source { element: ElementType::F32, bytes: &bytes_of(values) }, Packing::Fast)
        .unwrap()
}

pub(super) fn gated(cpu: &Cpu, n: usize, k: usize, gate: &[f32], up: &[f32]) -> PackedMatrix {
    let (gate, up) = (bytes_of(gate), bytes_of(up));
    let source = |bytes| Source { element: ElementType::F32, bytes };
    PackedMatrix::gated(cpu, n, k, source(&gate), source(&up), Packing::Fast).unwrap()
}

pub(super) fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

pub(super) fn gelu(x: f64) -> f64 {
    0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x)).tanh())
}

#[track_caller]
pub(super) fn close(found: &[f32], wanted: &[f64], tolerance: f64) {
    assert_eq!(found.len(), wanted.len());
    for (i, (&found, &wanted)) in found.iter().zip(wanted).enumerate() {
        assert!((f64::from(found) - wanted).abs() <= tolerance, "at {i}: found {found}, wanted {wanted}");
    }
}

#[track_caller]
pub(super) fn same_bits(a: &[f32], b: &[f32]) {
    assert_eq!(a.len(), b.len());
    for (i, (a, b)) in a.iter().zip(b).enumerate() {
        assert_eq!(a.to_bits(), b.to_bits(), "at {i}: {a} and {b}");
    }
}

#[test]
fn a_path_can_be_forced_and_named() {
    for path in Path::ALL {
        assert_eq!(path.name(), format!("{path:?}").to_lowercase());
        match Cpu::new(1, Some(path)) {
            Ok(cpu) => assert!(cpu.path() == path && path.supported()),
            Err(error) => assert!(error == crate::KernelError::Unsupported(path) && !path.supported()),
        }
    }
    let best = Path::ALL.into_iter().filter(|path| path.supported()).max();
    assert_eq!(Some(Path::detect()), best);
    assert_eq!(Cpu::new(1, None).unwrap().path(), Path::detect());
}

#[test]
fn no_rows_are_no_work_for_any_operation() {
    let mut numbers = Numbers::new(21);
    for cpu in cpus(1).into_iter().chain(cpus(2)).chain(precision::rounding(2)) {
        let table = plain(&cpu, 40, 16, &numbers.vector(40 * 16));
        let gate_up = gated(&cpu, 8, 16, &numbers.vector(8 * 16), &numbers.vector(8 * 16));
        let layer = Experts::new(vec![gate_up], vec![plain(&cpu, 16, 8, &numbers.vector(16 * 8))]).unwrap();
        cpu.matmul(&[], &table, &mut []).unwrap();
        cpu.embed(&table, &[], 1.0, &mut []).unwrap();
        cpu.experts(&[], Routing { experts: &[], weights: &[], top_k: 1 }, &layer, &mut []).unwrap();

        let weight = [1.0; 16];
        cpu.rms_norm(&[], 16, Some(&weight), 1e-6, &mut []).unwrap();
        cpu.rms_norms(&[], 16, [None, Some(&weight)], 1e-6, [&mut [], &mut []]).unwrap();
        cpu.add_norm(&[], &[], &weight, 1e-6, &mut []).unwrap();
        cpu.norm_rope(&[], 16, None, 1e-6, (&[], &[]), &mut []).unwrap();
        let mixture = Some((&[][..], &weight[..], &weight[..]));
        let scalars = (1.0, 1.0);
        let end = LayerEnd { stream: &[], dense: &[], mixture, weight: &weight, eps: 1e-6, scalars, split: 0 };
        cpu.layer_end(end, &mut []).unwrap();

        let mut pool = KvPool::new(KvElement::Bf16, 1, 1, 16);
        let write = KvWrite { row: 0, rows: 0, position: 0, pages: &[0], from: 0 };
        cpu.write(&mut pool, &[], &[], &[write]).unwrap();
        let span = Span { row: 0, rows: 0, sight: Sight::Denoise, prefix: 0, pages: &[0], from: 0 };
        for spans in [&[][..], &[span]] {
            cpu.attend(Attention { heads: 2, window: None, spans }, &[], &[], &[], &pool, &mut []).unwrap();
        }

        let head = Head { rows: 0, temperature: 1.0, draw: Draw::Argmax, uniforms: &[], bias: &[], top_k: 1 };
        for heads in [&[][..], &[head]] {
            let sweep = Sweep { softcap: None, tile: 32, negligible: 28.0, heads, watch: None, times: None };
            assert_eq!(cpu.sweep(&[], &table, &sweep, Some(&mut [])), Ok(vec![]));
            assert_eq!(cpu.sweep_from(&[], &table, &sweep, &[], None), Ok(vec![]));
        }
    }
}

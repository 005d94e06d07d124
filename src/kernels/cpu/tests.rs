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
            Ok(cpu) => assert_eq!(cpu.path(), path),
            Err(error) => assert_eq!(error, crate::KernelError::Unsupported(path)),
        }
    }
    assert!(Cpu::new(1, None).unwrap().path() >= Path::Portable);
}

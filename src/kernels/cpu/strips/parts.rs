//! Stored blocks taken apart: numbers, scales and minima, whatever order their format keeps them in.

use super::SUPER;
use crate::{ElementType, cpu::blocks};

/// One stored block taken apart.
pub(in crate::cpu) struct Parts {
    pub q: [u8; SUPER],
    pub scale: u16,
    pub minimum: u16,
    pub scales: [i8; 16],
    pub minima: [i8; 16],
}

impl Parts {
    #[inline(always)]
    pub(in crate::cpu) fn read(element: ElementType, b: &[u8]) -> Parts {
        let pair = |at: usize| u16::from_le_bytes([b[at], b[at + 1]]);
        let mut parts = Parts { q: [0; SUPER], scale: pair(0), minimum: 0, scales: [0; 16], minima: [0; 16] };
        match element {
            ElementType::F32 | ElementType::F16 | ElementType::Bf16 => {}
            ElementType::Q8_0 => parts.q[..32].iter_mut().zip(&b[2..]).for_each(|(q, x)| *q = x ^ 0x80),
            ElementType::Q4_0 => parts.legacy(&b[2..], 0),
            ElementType::Q5_0 => parts.legacy(&b[6..], u32::from_le_bytes([b[2], b[3], b[4], b[5]])),
            ElementType::Q4_1 => {
                parts.minimum = pair(2);
                parts.legacy(&b[4..], 0);
            }
            ElementType::Q5_1 => {
                parts.minimum = pair(2);
                parts.legacy(&b[8..], u32::from_le_bytes([b[4], b[5], b[6], b[7]]));
            }
            ElementType::Q4K => {
                parts.minimum = pair(2);
                parts.nibbles_and_scales(b, &b[16..]);
            }
            ElementType::Q5K => {
                parts.minimum = pair(2);
                parts.nibbles_and_scales(b, &b[48..]);
                for (group, q) in parts.q.chunks_exact_mut(32).enumerate() {
                    q.iter_mut().zip(&b[16..48]).for_each(|(q, high)| *q |= ((high >> group) & 1) << 4);
                }
            }
            ElementType::Q6K => {
                parts.scale = pair(208);
                parts.six_bits(b);
            }
            ElementType::Q2K => {
                (parts.scale, parts.minimum) = (pair(80), pair(82));
                parts.two_bits(b);
            }
            ElementType::Q3K => {
                parts.scale = pair(108);
                parts.three_bits(b);
            }
        }
        parts
    }

    /// Nibbles of 32 numbers, the high bits of each from `high`.
    #[inline(always)]
    fn legacy(&mut self, nibbles: &[u8], high: u32) {
        let (first, second) = self.q[..32].split_at_mut(16);
        for (l, byte) in nibbles[..16].iter().enumerate() {
            let bit = |i: usize| (((high >> i) & 1) as u8) << 4;
            (first[l], second[l]) = (byte & 15 | bit(l), byte >> 4 | bit(l + 16));
        }
    }
    /// Numbers of 4 bits in pairs of groups, and the eight scales and minima of 6 bits that Q4_K and Q5_K share.
    #[inline(always)]
    fn nibbles_and_scales(&mut self, b: &[u8], low: &[u8]) {
        for (q, bytes) in self.q.chunks_exact_mut(64).zip(low.chunks_exact(32)) {
            let (first, second) = q.split_at_mut(32);
            for ((first, second), byte) in first.iter_mut().zip(second).zip(bytes) {
                (*first, *second) = (byte & 15, byte >> 4);
            }
        }
        for group in 0..8 {
            let (scale, minimum) = blocks::k_scale(&b[4..16], group);
            (self.scales[group], self.minima[group]) = (scale as i8, minimum as i8);
        }
    }

    /// Numbers and scales of Q6_K.
    #[inline(always)]
    fn six_bits(&mut self, b: &[u8]) {
        for (group, q) in self.q.chunks_exact_mut(32).enumerate() {
            let (part, quarter) = (group / 4, group % 4);
            let (low, high) = (&b[part * 64 + quarter % 2 * 32..][..32], &b[128 + part * 32..][..32]);
            for ((q, low), high) in q.iter_mut().zip(low).zip(high) {
                *q = (low >> (4 * (quarter / 2))) & 15 | ((high >> (2 * quarter)) & 3) << 4;
            }
        }
        self.scales.iter_mut().zip(&b[192..]).for_each(|(scale, &x)| *scale = x as i8);
    }

    /// Numbers, scales and minima of Q2_K.
    #[inline(always)]
    fn two_bits(&mut self, b: &[u8]) {
        for (i, q) in self.q.iter_mut().enumerate() {
            *q = (b[16 + i / 128 * 32 + i % 32] >> (2 * (i % 128 / 32))) & 3;
        }
        for (j, &x) in b[..16].iter().enumerate() {
            (self.scales[j], self.minima[j]) = ((x & 15) as i8, (x >> 4) as i8);
        }
    }

    /// Numbers and scales of Q3_K.
    #[inline(always)]
    fn three_bits(&mut self, b: &[u8]) {
        for (i, q) in self.q.iter_mut().enumerate() {
            let low = (b[32 + i / 128 * 32 + i % 32] >> (2 * (i % 128 / 32))) & 3;
            *q = low | ((b[i % 32] >> (i / 32)) & 1) << 2;
        }
        for (j, scale) in self.scales.iter_mut().enumerate() {
            *scale = blocks::q3k_scale(&b[96..108], j);
        }
    }
}

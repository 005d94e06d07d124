//! The number formats of stored tensors, read plainly: the definition of what every quantised block means.
//!
//! Layouts are those of GGUF (little endian). `f16` scales multiply small integers, so that most products here are
//! exact in f32 and the rest are rounded once; the vector decoders reproduce the same bits.

use half::{bf16, f16};

use crate::{ElementType, KernelError};

/// Bytes of a row of `length` numbers, or an error if the row is not a whole number of blocks.
pub fn row_bytes(element: ElementType, length: usize) -> Result<usize, KernelError> {
    let (block, bytes) = element.block();
    if !length.is_multiple_of(block) {
        return Err(KernelError::Block { element, length, block });
    }
    Ok(length / block * bytes)
}

/// Decodes `bytes` into `out`, which must be as long as they say.
pub fn dequantise(element: ElementType, bytes: &[u8], out: &mut [f32]) -> Result<(), KernelError> {
    KernelError::expect("bytes to decode", row_bytes(element, out.len())?, bytes.len())?;
    let (length, size) = element.block();
    for (block, out) in bytes.chunks_exact(size).zip(out.chunks_exact_mut(length)) {
        decode(element, block, out);
    }
    Ok(())
}

fn half_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

fn decode(element: ElementType, b: &[u8], out: &mut [f32]) {
    match element {
        ElementType::F32 => out[0] = f32::from_le_bytes([b[0], b[1], b[2], b[3]]),
        ElementType::F16 => out[0] = half_at(b, 0),
        ElementType::Bf16 => out[0] = bf16::from_le_bytes([b[0], b[1]]).to_f32(),
        ElementType::Q8_0 => {
            let d = half_at(b, 0);
            for (y, &q) in out.iter_mut().zip(&b[2..34]) {
                *y = f32::from(q as i8) * d;
            }
        }
        ElementType::Q2K => q2k(b, out),
        ElementType::Q3K => q3k(b, out),
        ElementType::Q6K => q6k(b, out),
        ElementType::Q4_0 | ElementType::Q4_1 | ElementType::Q5_0 | ElementType::Q5_1 => legacy(element, b, out),
        ElementType::Q4K | ElementType::Q5K => q45k(element, b, out),
    }
}

/// Q4_0, Q4_1, Q5_0, Q5_1: one scale (and minimum) per 32; element i in the low nibble of byte i, i + 16 in the high.
fn legacy(element: ElementType, b: &[u8], out: &mut [f32]) {
    let with_minimum = matches!(element, ElementType::Q4_1 | ElementType::Q5_1);
    let five_bits = matches!(element, ElementType::Q5_0 | ElementType::Q5_1);
    let (d, mut at) = (half_at(b, 0), 2);
    let mut minimum = 0.0;
    if with_minimum {
        minimum = half_at(b, 2);
        at = 4;
    }
    let mut high = 0u32;
    if five_bits {
        high = u32::from_le_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]]);
        at += 4;
    }
    let offset = if with_minimum {
        0.0
    } else if five_bits {
        16.0
    } else {
        8.0
    };
    for (i, y) in out.iter_mut().enumerate() {
        let byte = b[at + i % 16];
        let nibble = if i < 16 { byte & 15 } else { byte >> 4 };
        let q = u32::from(nibble) | ((high >> i) & 1) << 4;
        *y = (q as f32 - offset) * d + minimum;
    }
}

/// The 6-bit scale and minimum of group `j` of a Q4_K or Q5_K block (12 bytes for 8 groups).
pub(super) fn k_scale(packed: &[u8], j: usize) -> (u8, u8) {
    if j < 4 {
        (packed[j] & 63, packed[j + 4] & 63)
    } else {
        ((packed[j + 4] & 15) | (packed[j - 4] >> 6) << 4, (packed[j + 4] >> 4) | (packed[j] >> 6) << 4)
    }
}

/// Q4_K and Q5_K: 8 groups of 32; a run of 32 bytes holds group 2j in its low nibbles and 2j + 1 in its high ones.
fn q45k(element: ElementType, b: &[u8], out: &mut [f32]) {
    let (d, dmin) = (half_at(b, 0), half_at(b, 2));
    let (high, low) = if element == ElementType::Q5K { (Some(&b[16..48]), &b[48..176]) } else { (None, &b[16..144]) };
    for (group, out) in out.chunks_exact_mut(32).enumerate() {
        let (scale, minimum) = k_scale(&b[4..16], group);
        let (scale, minimum) = (d * f32::from(scale), dmin * f32::from(minimum));
        for (l, y) in out.iter_mut().enumerate() {
            let byte = low[group / 2 * 32 + l];
            let mut q = if group % 2 == 0 { byte & 15 } else { byte >> 4 };
            if let Some(high) = high {
                q |= ((high[l] >> group) & 1) << 4;
            }
            *y = scale * f32::from(q) - minimum;
        }
    }
}

/// Q6_K: 16 groups of 16 with signed 8-bit scales; 4 low bits in `ql`, 2 high bits in `qh`, offset 32.
fn q6k(b: &[u8], out: &mut [f32]) {
    let (ql, qh, scales, d) = (&b[..128], &b[128..192], &b[192..208], half_at(b, 208));
    for (i, y) in out.iter_mut().enumerate() {
        let (part, l) = (i / 128, i % 128);
        let (quarter, l) = (l / 32, l % 32);
        let low = ql[part * 64 + (quarter % 2) * 32 + l];
        let low = if quarter < 2 { low & 15 } else { low >> 4 };
        let high = (qh[part * 32 + l] >> (2 * quarter)) & 3;
        let q = i32::from(low | high << 4) - 32;
        *y = d * f32::from(scales[i / 16] as i8) * q as f32;
    }
}

/// Q2_K: 16 groups of 16; 4-bit scale and minimum in one byte, 2-bit numbers in runs of 32 bytes.
fn q2k(b: &[u8], out: &mut [f32]) {
    let (scales, qs, d, dmin) = (&b[..16], &b[16..80], half_at(b, 80), half_at(b, 82));
    for (i, y) in out.iter_mut().enumerate() {
        let (part, l) = (i / 128, i % 128);
        let q = (qs[part * 32 + l % 32] >> (2 * (l / 32))) & 3;
        let scale = scales[i / 16];
        *y = d * f32::from(scale & 15) * f32::from(q) - dmin * f32::from(scale >> 4);
    }
}

/// The 6-bit scales of a Q3_K block (12 bytes for 16 groups), less their offset 32.
pub(super) fn q3k_scale(packed: &[u8], j: usize) -> i8 {
    let low = if j < 8 { packed[j] & 15 } else { packed[j - 8] >> 4 };
    let high = (packed[8 + j % 4] >> (2 * (j / 4))) & 3;
    (low | high << 4) as i8 - 32
}

/// Q3_K: 16 groups of 16; 2 low bits as in Q2_K, the third in `hmask`, offset 4.
fn q3k(b: &[u8], out: &mut [f32]) {
    let (hmask, qs, scales, d) = (&b[..32], &b[32..96], &b[96..108], half_at(b, 108));
    for (i, y) in out.iter_mut().enumerate() {
        let (part, l) = (i / 128, i % 128);
        let low = (qs[part * 32 + l % 32] >> (2 * (l / 32))) & 3;
        let high = (hmask[l % 32] >> (part * 4 + l / 32)) & 1;
        let q = i32::from(low | high << 2) - 4;
        *y = d * f32::from(q3k_scale(scales, i / 16)) * q as f32;
    }
}

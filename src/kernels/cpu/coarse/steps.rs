//! Numbers of 4 to 6 bits that become coarse bytes while they are read: for matrices that must stay small.
//!
//! Within a group of 16 or 32 inputs, as many as share a scale in the source, a column's coarse bytes lie on a line:
//! number q is the byte `start + ⌊q·f·step / 256⌋`, start and step being bytes and f the largest factor for which 16
//! bits hold the product. All of it is made at load: the line runs through what the source's numbers stand for, in
//! steps of the coarse scale, so that a byte is off by at most one and a half of them and by half of one on average,
//! a thirtieth of a step of a 4-bit number, a fifteenth of a 5-bit one.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

use super::{
    super::{
        bytes::Vnni,
        layout::{PANEL, STRIP},
        strips::{Form, Parts},
    },
    GROUP, OFFSET,
};
use crate::ElementType;

/// How the numbers of a matrix of steps are encoded.
#[derive(Debug, Clone, Copy)]
pub(super) struct Steps {
    pub(super) form: Form,
    /// The largest number.
    most: u32,
}

/// Up to 256 numbers of a column: each group's are `scale·q + minimum`.
pub(super) struct Lines {
    q: [u8; GROUP],
    scales: [f32; GROUP / 16],
    minima: [f32; GROUP / 16],
    /// Numbers of a group: 16 or 32.
    group: usize,
    /// How many there are.
    count: usize,
}

impl Lines {
    /// Takes a block of 256 apart, or up to eight of 32.
    #[inline(always)]
    pub(super) fn read(element: ElementType, form: Form, blocks: &[u8]) -> Lines {
        let (length, size) = element.block();
        let mut lines = Lines {
            q: [0; GROUP],
            scales: [0.0; GROUP / 16],
            minima: [0.0; GROUP / 16],
            group: form.group,
            count: blocks.len() / size * length,
        };
        for (index, block) in blocks.chunks_exact(size).enumerate() {
            let parts = Parts::read(element, block);
            if length == GROUP {
                lines.q = parts.q;
            } else if let (Some(to), Some(from)) =
                (lines.q[index * STRIP..].first_chunk_mut::<STRIP>(), parts.q.first_chunk::<STRIP>())
            {
                *to = *from;
            }
            let halves = form.halves(&parts);
            for g in 0..length / form.group {
                let at = index * length / form.group + g;
                (lines.scales[at], lines.minima[at]) = form.line(&parts, halves, g);
            }
        }
        lines
    }

    /// All numbers.
    #[inline(always)]
    pub(super) fn values(&self, out: &mut [f32; GROUP]) {
        for (s, (out, q)) in out.as_chunks_mut::<16>().0.iter_mut().zip(self.q.as_chunks::<16>().0).enumerate() {
            let g = s * 16 / self.group;
            for (y, &q) in out.iter_mut().zip(q) {
                *y = self.scales[g] * f32::from(q) + self.minima[g];
            }
        }
    }

    /// Makes scales positive: numbers from 0 to `most` under a negative one are put the other way round.
    #[inline(always)]
    fn turn(&mut self, most: u8) {
        for g in 0..self.count / self.group {
            let scale = self.scales[g];
            if scale < 0.0 {
                self.q[g * self.group..][..self.group].iter_mut().for_each(|q| *q = most - *q);
                self.minima[g] += scale * f32::from(most);
                self.scales[g] = -scale;
            }
        }
    }

    /// The farthest from zero that a line reaches; not a number where one of them is damaged.
    #[inline(always)]
    fn reach(&self, most: f32) -> f32 {
        let (mut reach, mut damage) = (0f32, 0.0);
        for (scale, minimum) in self.scales.iter().zip(&self.minima) {
            let end = minimum + scale * most;
            reach = reach.max(end.abs()).max(minimum.abs());
            damage += end * 0.0;
        }
        reach + damage
    }
}

impl Steps {
    /// `None` for formats of plain numbers and of 8 bits.
    pub(super) fn of(element: ElementType) -> Option<Steps> {
        let form = Form::of(element).filter(|form| form.bits < 8)?;
        let most = match element {
            ElementType::Q2K => 3,
            ElementType::Q3K => 7,
            _ => (1 << form.bits) - 1,
        };
        Some(Steps { form, most })
    }

    /// Bytes of a strip's record: numbers, then steps, then starts.
    pub(super) fn record(self) -> usize {
        self.form.numbers() + 2 * self.form.groups() * PANEL
    }

    /// What steps are multiplied by: small enough for 16 bits, large enough that 254 can be reached.
    fn factor(self) -> u32 {
        (254 * 256u32).div_ceil(self.most * 255)
    }

    /// Writes one column's stored row into its panel: records, and scales per 256 inputs.
    #[inline(always)]
    pub(super) fn write(self, element: ElementType, row: &[u8], lane: usize, records: &mut [u8], scales: &mut [f32]) {
        let (length, size) = element.block();
        for (group, blocks) in row.chunks(GROUP / length * size).enumerate() {
            let mut lines = Lines::read(element, self.form, blocks);
            lines.turn(self.most as u8);
            let unit = lines.reach(self.most as f32) / 127.0;
            scales[group * PANEL + lane] = unit;
            let inverse = if unit > 1e-30 { 1.0 / unit } else { 0.0 };
            let records = &mut records[group * (GROUP / STRIP) * self.record()..];
            let strips = records.chunks_exact_mut(self.record()).take(lines.count / STRIP);
            for (s, record) in strips.enumerate() {
                let mut q = *lines.q[s * STRIP..].first_chunk::<STRIP>().expect("256 are a whole number of strips");
                let (_, tail) = record.split_at_mut(self.form.numbers());
                // Lengths that the compiler knows.
                if self.form.group == STRIP {
                    (tail[lane], tail[PANEL + lane]) = self.line(&q, lines.scales[s], lines.minima[s], inverse);
                } else {
                    for (g, q) in q.as_chunks::<16>().0.iter().enumerate() {
                        let (step, start) = self.line(q, lines.scales[2 * s + g], lines.minima[2 * s + g], inverse);
                        (tail[g * PANEL + lane], tail[(2 + g) * PANEL + lane]) = (step, start);
                    }
                }
                // Neighbours change places when they are read.
                q.as_chunks_mut::<2>().0.iter_mut().for_each(|pair| pair.swap(0, 1));
                self.form.store(&q, lane, record);
            }
        }
    }

    /// Step and start of a group.
    #[inline(always)]
    fn line<const N: usize>(self, q: &[u8; N], scale: f32, minimum: f32, inverse: f32) -> (u8, u8) {
        let step = (scale * inverse * 256.0 / self.factor() as f32 + 0.5) as u32;
        let step = step.min(65_535 / (self.factor() * self.most)).min(255);
        let by = self.factor() * step;
        let (mut sum, mut numbers) = (0, 0);
        for &q in q {
            sum += u32::from(q);
            numbers += (u32::from(q) * by) >> 8;
        }
        // What is left between the numbers and the steps, on average.
        let left = (scale * inverse * sum as f32 - numbers as f32) / N as f32 + minimum * inverse;
        (step as u8, (left + (OFFSET + 0.5)) as u8)
    }

    /// Byte `i` of a strip's column.
    fn byte(self, record: &[u8], lane: usize, i: usize) -> u8 {
        let tail = &record[self.form.numbers()..];
        let g = i / self.form.group;
        let (step, start) = (tail[g * PANEL + lane], tail[(self.form.groups() + g) * PANEL + lane]);
        let q = u32::from(self.form.number(record, lane, i ^ 1));
        start.saturating_add(((q * self.factor() * u32::from(step)) >> 8) as u8)
    }

    /// Coarse bytes of some strips, `[8 · strips, 32]` words, on any processor.
    pub(super) fn read(self, records: &[u8], words: &mut [u32]) {
        for (record, words) in records.chunks_exact(self.record()).zip(words.chunks_exact_mut(STRIP / 4 * PANEL)) {
            for (j, words) in words.chunks_exact_mut(PANEL).enumerate() {
                for (lane, word) in words.iter_mut().enumerate() {
                    *word = u32::from_le_bytes(std::array::from_fn(|b| self.byte(record, lane, 4 * j + b)));
                }
            }
        }
    }

    /// The same with AVX-512.
    pub(super) fn read_fast(self, _: Vnni, records: &[u8], words: &mut [u32]) {
        let strips = records.len() / self.record();
        assert!(words.len() >= strips * STRIP / 4 * PANEL);
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the proof is at hand; so many records are read, and as many words written.
        unsafe {
            match (self.form.bits, self.form.group) {
                (4, 32) => strips_of::<4, 32>(self, strips, records.as_ptr(), words.as_mut_ptr()),
                (4, _) => strips_of::<4, 16>(self, strips, records.as_ptr(), words.as_mut_ptr()),
                (5, _) => strips_of::<5, 32>(self, strips, records.as_ptr(), words.as_mut_ptr()),
                _ => strips_of::<6, 16>(self, strips, records.as_ptr(), words.as_mut_ptr()),
            }
        }
    }
}

/// # Safety
/// So many records must be readable, and as many times 256 words writable.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
unsafe fn strips_of<const BITS: usize, const GROUP: usize>(
    form: Steps,
    strips: usize,
    records: *const u8,
    words: *mut u32,
) {
    const UNITS: usize = STRIP / 4;
    let (record, numbers) = (form.record(), form.form.numbers());
    let factor = _mm512_set1_epi32((form.factor() * 0x1_0001) as i32);
    for strip in 0..strips {
        for v in 0..2 {
            // SAFETY: (whole body) the layout of a record, and the caller's promise.
            unsafe {
                let from = records.add(strip * record);
                let to = words.add(strip * UNITS * PANEL + v * 16);
                let plane = |word: usize| _mm512_loadu_si512(from.cast::<i32>().add(word * PANEL + v * 16).cast());
                let small = |line: usize| {
                    _mm512_cvtepu8_epi32(_mm_loadu_si128(from.add(numbers + line * PANEL + v * 16).cast()))
                };
                let (mut steps, mut starts) = (_mm512_setzero_si512(), _mm512_setzero_si512());
                let (mut low, mut high) = (_mm512_setzero_si512(), _mm512_setzero_si512());
                // Written out, unit by unit: what each does is known then.
                macro_rules! units {
                    ($($u:literal)*) => { $(
                        if $u % (GROUP / 4) == 0 {
                            let g = $u / (GROUP / 4);
                            steps = _mm512_mullo_epi32(small(g), factor);
                            starts = _mm512_mullo_epi32(small(STRIP / GROUP + g), _mm512_set1_epi32(0x0101_0101));
                        }
                        low = if $u % 2 == 0 { plane($u / 2) } else { _mm512_srli_epi32::<4>(low) };
                        // Rotated so that the bits of this unit come above its low four.
                        high = match BITS {
                            5 if $u == 0 => _mm512_rol_epi32::<4>(plane(4)),
                            5 => _mm512_ror_epi32::<1>(high),
                            6 if $u % 4 == 0 => _mm512_rol_epi32::<4>(plane(4 + $u / 4)),
                            6 => _mm512_ror_epi32::<2>(high),
                            _ => high,
                        };
                        let bytes = _mm512_adds_epu8(scaled::<BITS>(low, high, steps), starts);
                        _mm512_storeu_si512(to.add($u * PANEL).cast(), bytes);
                    )* };
                }
                units!(0 1 2 3 4 5 6 7);
            }
        }
    }
}

/// Numbers of four inputs times their column's step: the upper 8 of 16 bits. Neighbours change places, the first with
/// the second, the third with the fourth.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
#[inline]
fn scaled<const BITS: usize>(low: __m512i, high: __m512i, steps: __m512i) -> __m512i {
    let upper = _mm512_set1_epi32(0xff00_ff00_u32 as i32);
    let (even, odd) = if BITS == 4 {
        let even = _mm512_and_si512(low, _mm512_set1_epi32(0x000f_000f));
        (even, _mm512_and_si512(low, _mm512_set1_epi32(0x0f00_0f00)))
    } else {
        let above = _mm512_set1_epi32(if BITS == 5 { 0x1010_1010 } else { 0x3030_3030 });
        let low = _mm512_and_si512(low, _mm512_set1_epi32(0x0f0f_0f0f));
        // low | (high & above)
        let q = _mm512_ternarylogic_epi32::<0xf8>(low, high, above);
        (_mm512_andnot_si512(upper, q), _mm512_and_si512(upper, q))
    };
    // The upper half of an even byte's product ends up where the odd byte was; an odd byte counts 256 times itself, and
    // the upper 16 bits of its product end up where the even byte was.
    let swapped = upper_halves(odd, steps);
    let product = _mm512_mullo_epi16(even, steps);
    _mm512_ternarylogic_epi32::<0xf8>(swapped, product, upper)
}

/// The upper 16 bits of products of unsigned 16 bits. As a function of the standard library it is put together from
/// wider products, and comes out as those where one factor stays the same in a loop.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
#[inline]
fn upper_halves(a: __m512i, b: __m512i) -> __m512i {
    let product;
    // SAFETY: the instruction is one of AVX-512 BW, and touches nothing else.
    unsafe {
        std::arch::asm!(
            "vpmulhuw {product}, {a}, {b}",
            product = lateout(zmm_reg) product,
            a = in(zmm_reg) a,
            b = in(zmm_reg) b,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    product
}

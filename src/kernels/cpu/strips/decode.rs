//! Strips put back together: as floats, or as pairs of bf16.

use super::{SUPERS, Scale, Strips};
use crate::cpu::{
    layout::{PANEL, STRIP},
    memory::ask,
    path::Task,
    simd::Simd,
};

/// One unit of a strip, for the lanes from `lane` on.
///
/// # Safety
/// `record` must point at a record of a format with `BITS` bits, `unit` be below 8, `lane + LANES` at most 32.
#[inline(always)]
unsafe fn unit<S: Simd, const BITS: usize>(s: S, record: *const u8, unit: usize, lane: usize) -> S::I {
    // SAFETY: planes of `[words, 32]` words, see `Form::place`.
    unsafe {
        let words = record.cast::<u32>().add(lane);
        if BITS == 8 {
            return s.load_words(words.add(unit * PANEL));
        }
        let low = s.load_words(words.add(unit / 2 * PANEL));
        let low = s.and(s.shift(low, if unit.is_multiple_of(2) { 0 } else { -4 }), 0x0f0f_0f0f);
        match BITS {
            4 => low,
            5 => {
                let high = s.load_words(words.add(4 * PANEL));
                s.or(low, s.and(s.shift(high, 4 - unit as i32), 0x1010_1010))
            }
            _ => {
                let high = s.load_words(words.add((4 + unit / 4) * PANEL));
                s.or(low, s.and(s.shift(high, 4 - 2 * (unit % 4) as i32), 0x3030_3030))
            }
        }
    }
}

/// Inputs `from .. from + length` of a panel, decoded into `out`; see [`Strips::decode`] and [`Strips::pairs`].
struct Piece<'a> {
    strips: &'a Strips,
    panel: usize,
    from: usize,
    length: usize,
    out: *mut f32,
}

/// To floats `[length, 32]`.
pub(in crate::cpu) struct Decode<'a>(Piece<'a>);

/// To pairs of bf16 `[length / 2, 32]`, the even input in the low half.
pub(in crate::cpu) struct DecodePairs<'a>(Piece<'a>);

impl Task for Decode<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        self.0.decode::<S, false>(s);
    }
}

impl Task for DecodePairs<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        self.0.decode::<S, true>(s);
    }
}

impl Piece<'_> {
    #[inline(always)]
    fn decode<S: Simd, const PAIRS: bool>(&self, s: S) {
        // SAFETY: `Strips::decode` and `Strips::pairs` checked the range and the room.
        unsafe {
            match self.strips.form.bits {
                8 => self.each::<S, PAIRS, 8>(s),
                6 => self.each::<S, PAIRS, 6>(s),
                5 => self.each::<S, PAIRS, 5>(s),
                _ => self.each::<S, PAIRS, 4>(s),
            }
        }
    }

    /// # Safety
    /// The strips must lie inside the matrix, and `out` must have room for them.
    #[inline(always)]
    unsafe fn each<S: Simd, const PAIRS: bool, const BITS: usize>(&self, s: S) {
        for strip in self.from / STRIP..(self.from + self.length) / STRIP {
            // SAFETY: the caller's promise.
            unsafe { self.strip::<S, PAIRS, BITS>(s, strip) };
        }
    }

    /// # Safety
    /// The strip must lie inside the matrix and its place inside `out`.
    #[inline(always)]
    unsafe fn strip<S: Simd, const PAIRS: bool, const BITS: usize>(&self, s: S, strip: usize) {
        let (strips, form) = (self.strips, self.strips.form);
        // SAFETY: the caller's promise.
        unsafe {
            let record = strips.records.as_ptr().add((self.panel * strips.strips + strip) * form.record());
            let supers = strips.supers.as_ptr().wrapping_add(strips.super_at(self.panel, strip));
            let first = (strip * STRIP - self.from) * PANEL;
            for lane in (0..PANEL).step_by(S::LANES) {
                for g in 0..form.groups() {
                    let (scale, minimum) = strips.scale(s, record, supers, g, lane);
                    // Exact: the offset is a power of two.
                    let shifted = s.sub(minimum, s.mul(s.splat(form.offset), scale));
                    let number = |words: S::I, byte: u32| {
                        let q = s.byte(words, byte);
                        if S::FUSED {
                            s.fma(q, scale, shifted)
                        } else {
                            s.add(s.mul(s.sub(q, s.splat(form.offset)), scale), minimum)
                        }
                    };
                    for u in 0..form.group / 4 {
                        let u = g * (form.group / 4) + u;
                        let words = unit::<S, BITS>(s, record, u, lane);
                        if PAIRS {
                            let out = self.out.cast::<u32>().add(first / 2 + 2 * u * PANEL + lane);
                            s.store_words(out, s.pairs(number(words, 0), number(words, 1)));
                            s.store_words(out.add(PANEL), s.pairs(number(words, 2), number(words, 3)));
                        } else {
                            let out = self.out.add(first + 4 * u * PANEL + lane);
                            for byte in 0..4 {
                                s.store(out.add(byte as usize * PANEL), number(words, byte));
                            }
                        }
                    }
                }
            }
        }
    }
}

impl Strips {
    /// Asks for inputs of a panel that will be read soon.
    pub(in crate::cpu) fn prefetch(&self, panel: usize, inputs: std::ops::Range<usize>) {
        let record = self.form.record();
        let from = (panel * self.strips + inputs.start / STRIP) * record;
        ask(&self.records[from..from + inputs.len() / STRIP * record]);
        if self.form.scale == Scale::Nested {
            ask(&self.supers[self.super_at(panel, inputs.start / STRIP)..][..SUPERS]);
        }
    }

    fn piece(&self, panel: usize, from: usize, length: usize, out: *mut f32) -> Piece<'_> {
        assert!(from / STRIP + length / STRIP <= self.strips);
        Piece { strips: self, panel, from, length, out }
    }

    /// The task that decodes inputs `from .. from + length` of a panel into `out`, `[length, 32]`.
    pub(in crate::cpu) fn decode<'a>(
        &'a self,
        panel: usize,
        from: usize,
        length: usize,
        out: &'a mut [f32],
    ) -> Decode<'a> {
        assert!(out.len() >= length * PANEL);
        Decode(self.piece(panel, from, length, out.as_mut_ptr()))
    }

    /// The task that decodes inputs `from .. from + length` of a panel, rounded to bf16, into words
    /// `[length / 2, 32]`, kept in a buffer of floats.
    pub(in crate::cpu) fn pairs<'a>(
        &'a self,
        panel: usize,
        from: usize,
        length: usize,
        out: &'a mut [f32],
    ) -> DecodePairs<'a> {
        assert!(out.len() >= length / 2 * PANEL);
        DecodePairs(self.piece(panel, from, length, out.as_mut_ptr()))
    }
}

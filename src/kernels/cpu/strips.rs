//! Quantised blocks in the order in which the kernels read them.
//!
//! A *strip* is 32 inputs of a panel's 32 columns. Its numbers are unsigned and lie in *units*: one 32-bit word per
//! column for four inputs, a byte each, once the bits are put together. A format's low four bits of two units share a
//! word, so that a shift and a mask give 64 numbers; the fifth and sixth bits have planes of their own. A number means
//! `(q − offset)·scale + minimum`, scale and minimum per group of 32 or 16 inputs. Nothing is rounded: scales stay the
//! halves and small integers they were.

mod decode;
mod parts;

pub(super) use parts::Parts;

use super::{
    layout::{PANEL, STRIP},
    memory::{Aligned, Shared},
    simd::Simd,
};
use crate::ElementType;

/// Inputs that share a half-precision scale in the nested formats.
const SUPER: usize = 256;
/// Halves per panel and super-block: scales, then minima.
const SUPERS: usize = 2 * PANEL;

/// How one number format is laid out in a strip.
#[derive(Debug, Clone, Copy)]
pub(super) struct Form {
    /// 4, 5, 6 or 8; formats with fewer take 4.
    pub bits: usize,
    /// Inputs that share a scale: 32 or 16.
    pub group: usize,
    offset: f32,
    scale: Scale,
    minimum: Minimum,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scale {
    /// A half per strip.
    Half,
    /// A small integer per group times a half per super-block.
    Nested,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Minimum {
    None,
    /// Added.
    Half,
    /// Subtracted.
    Nested,
}

impl Form {
    /// `None` for formats without blocks.
    pub(super) fn of(element: ElementType) -> Option<Form> {
        let (half, nested) = (Scale::Half, Scale::Nested);
        let form = |bits, group, offset, scale, minimum| Some(Form { bits, group, offset, scale, minimum });
        match element {
            ElementType::F32 | ElementType::F16 | ElementType::Bf16 => None,
            ElementType::Q4_0 => form(4, 32, 8.0, half, Minimum::None),
            ElementType::Q4_1 => form(4, 32, 0.0, half, Minimum::Half),
            ElementType::Q5_0 => form(5, 32, 16.0, half, Minimum::None),
            ElementType::Q5_1 => form(5, 32, 0.0, half, Minimum::Half),
            ElementType::Q8_0 => form(8, 32, 128.0, half, Minimum::None),
            ElementType::Q2K => form(4, 16, 0.0, nested, Minimum::Nested),
            ElementType::Q3K => form(4, 16, 4.0, nested, Minimum::None),
            ElementType::Q4K => form(4, 32, 0.0, nested, Minimum::Nested),
            ElementType::Q5K => form(5, 32, 0.0, nested, Minimum::Nested),
            ElementType::Q6K => form(6, 16, 32.0, nested, Minimum::None),
        }
    }

    /// Bytes of a strip's numbers.
    pub(super) fn numbers(self) -> usize {
        PANEL * STRIP * self.bits / 8
    }

    /// Groups of a strip.
    pub(super) fn groups(self) -> usize {
        STRIP / self.group
    }

    /// Bytes of a strip.
    fn record(self) -> usize {
        let scales = match self.scale {
            Scale::Half => 2 * PANEL,
            Scale::Nested => self.groups() * PANEL,
        };
        self.numbers() + if self.minimum == Minimum::None { scales } else { 2 * scales }
    }

    /// Halves of super-blocks in a panel of so many inputs.
    fn supers(self, inputs: usize) -> usize {
        match self.scale {
            Scale::Half => 0,
            Scale::Nested => inputs / SUPER * SUPERS,
        }
    }

    /// Where number `i` of a strip's column lies: byte and shift of its low bits, then of its high bits.
    fn place(self, lane: usize, i: usize) -> ((usize, usize), (usize, usize)) {
        let (unit, byte) = (i / 4, i % 4);
        let word = |word: usize| (word * PANEL + lane) * 4 + byte;
        let low = if self.bits == 8 { (word(unit), 0) } else { (word(unit / 2), 4 * (unit % 2)) };
        let high = match self.bits {
            5 => (word(4), unit),
            _ => (word(4 + unit / 4), 2 * (unit % 4)),
        };
        (low, high)
    }

    /// Number `i` of a strip's column.
    pub(super) fn number(self, record: &[u8], lane: usize, i: usize) -> u8 {
        let ((low, shift), (high, high_shift)) = self.place(lane, i);
        match self.bits {
            8 => record[low],
            4 => (record[low] >> shift) & 15,
            5 => (record[low] >> shift) & 15 | ((record[high] >> high_shift) & 1) << 4,
            _ => (record[low] >> shift) & 15 | ((record[high] >> high_shift) & 3) << 4,
        }
    }

    /// The halves of a block: scale and minimum.
    pub(super) fn halves(self, block: &Parts) -> (f32, f32) {
        let half = |bits: u16| half::f16::from_bits(bits).to_f32();
        (half(block.scale), if self.minimum == Minimum::None { 0.0 } else { half(block.minimum) })
    }

    /// Scale and minimum of group `g` of a block, given its halves: a number means `scale·q + minimum`.
    #[inline(always)]
    pub(super) fn line(self, block: &Parts, (scale, minimum): (f32, f32), g: usize) -> (f32, f32) {
        let scale = match self.scale {
            Scale::Half => scale,
            Scale::Nested => scale * f32::from(block.scales[g]),
        };
        let minimum = match self.minimum {
            Minimum::None => 0.0,
            Minimum::Half => minimum,
            Minimum::Nested => -minimum * f32::from(block.minima[g]),
        };
        (scale, minimum - self.offset * scale)
    }

    /// Puts the 32 numbers of a column into a strip's record, four at a time; see [`Form::place`].
    #[inline]
    pub(super) fn store(self, q: &[u8], lane: usize, record: &mut [u8]) {
        const LOW: u32 = 0x0f0f_0f0f;
        let mut units = [0u32; STRIP / 4];
        for (unit, q) in units.iter_mut().zip(q.chunks_exact(4)) {
            *unit = u32::from_le_bytes([q[0], q[1], q[2], q[3]]);
        }
        let mut put = |word: usize, bytes: u32| {
            record[(word * PANEL + lane) * 4..][..4].copy_from_slice(&bytes.to_le_bytes());
        };
        if self.bits == 8 {
            units.iter().enumerate().for_each(|(word, unit)| put(word, *unit));
            return;
        }
        for (word, pair) in units.chunks_exact(2).enumerate() {
            put(word, pair[0] & LOW | (pair[1] & LOW) << 4);
        }
        // The bits above the fourth of several units, side by side.
        let high = |units: &[u32], bits: usize| {
            let mask = 0x0101_0101 * ((1 << bits) - 1);
            units.iter().enumerate().fold(0, |word, (i, unit)| word | (unit >> 4 & mask) << (bits * i))
        };
        match self.bits {
            5 => put(4, high(&units, 1)),
            6 => units.chunks_exact(4).enumerate().for_each(|(half, units)| put(4 + half, high(units, 2))),
            _ => {}
        }
    }
}

/// A quantised matrix.
pub(super) struct Strips {
    form: Form,
    /// Strips per panel.
    strips: usize,
    /// `[panel][strip]` records: numbers, scales, minima.
    records: Aligned<u8>,
    /// `[panel][super-block][scale or minimum][column]` of the nested formats.
    supers: Aligned<u16>,
}

impl Strips {
    /// Room for `panels` panels of `inputs` inputs, all zero. `None` for formats without blocks.
    pub(super) fn zeroed(element: ElementType, panels: usize, inputs: usize) -> Option<Strips> {
        let form = Form::of(element)?;
        let strips = inputs / STRIP;
        let (records, supers) = (panels * strips * form.record(), panels * form.supers(inputs));
        Some(Strips { form, strips, records: Aligned::zeroed(records), supers: Aligned::zeroed(supers) })
    }

    /// Bytes that so many panels of so many inputs hold. `None` for formats without blocks.
    pub(super) fn bytes_of(element: ElementType, panels: usize, inputs: usize) -> Option<usize> {
        let form = Form::of(element)?;
        Some(panels * (inputs / STRIP * form.record() + size_of::<u16>() * form.supers(inputs)))
    }

    /// Bytes held.
    pub(super) fn bytes(&self) -> usize {
        self.records.bytes() + self.supers.bytes()
    }

    /// The parts that belong to `panel`, for writing: records and super-block scales.
    pub(super) fn panel_mut(&mut self) -> (Shared<u8>, Shared<u16>) {
        (Shared::new(&mut self.records), Shared::new(&mut self.supers))
    }

    /// Bytes of records and halves of super-blocks per panel.
    pub(super) fn panel_lengths(&self) -> (usize, usize) {
        (self.strips * self.form.record(), self.form.supers(self.strips * STRIP))
    }

    /// Writes one column's stored row into its panel.
    pub(super) fn write(element: ElementType, row: &[u8], lane: usize, records: &mut [u8], supers: &mut [u16]) {
        let form = Form::of(element).expect("only block formats come here");
        let (length, size) = element.block();
        for (index, block) in row.chunks_exact(size).enumerate() {
            let parts = Parts::read(element, block);
            for (s, q) in parts.q[..length].chunks_exact(STRIP).enumerate() {
                let strip = index * length / STRIP + s;
                let record = &mut records[strip * form.record()..][..form.record()];
                form.store(q, lane, record);
                let tail = &mut record[form.numbers()..];
                match form.scale {
                    Scale::Half => {
                        tail[2 * lane..][..2].copy_from_slice(&parts.scale.to_le_bytes());
                        if form.minimum == Minimum::Half {
                            tail[2 * (PANEL + lane)..][..2].copy_from_slice(&parts.minimum.to_le_bytes());
                        }
                    }
                    Scale::Nested => {
                        let groups = form.groups();
                        for g in 0..groups {
                            tail[g * PANEL + lane] = parts.scales[s * groups + g] as u8;
                            if form.minimum == Minimum::Nested {
                                tail[(groups + g) * PANEL + lane] = parts.minima[s * groups + g] as u8;
                            }
                        }
                    }
                }
            }
            if form.scale == Scale::Nested {
                supers[index * SUPERS + lane] = parts.scale;
                supers[index * SUPERS + PANEL + lane] = parts.minimum;
            }
        }
    }

    /// Decodes one column: an embedding lookup.
    pub(super) fn column(&self, panel: usize, lane: usize, out: &mut [f32]) {
        let form = self.form;
        let half = |bits: u16| half::f16::from_bits(bits).to_f32();
        for (strip, out) in out.chunks_exact_mut(STRIP).enumerate() {
            let record = &self.records[(panel * self.strips + strip) * form.record()..][..form.record()];
            let tail = &record[form.numbers()..];
            for (i, y) in out.iter_mut().enumerate() {
                let q = form.number(record, lane, i);
                let pair = |at: usize| half(u16::from_le_bytes([tail[2 * at], tail[2 * at + 1]]));
                let (scale, minimum) = match form.scale {
                    Scale::Half => (pair(lane), if form.minimum == Minimum::Half { pair(PANEL + lane) } else { 0.0 }),
                    Scale::Nested => {
                        let (groups, g) = (form.groups(), i / form.group);
                        let supers = &self.supers[self.super_at(panel, strip)..][..SUPERS];
                        let scale = half(supers[lane]) * f32::from(tail[g * PANEL + lane] as i8);
                        let minimum = if form.minimum == Minimum::Nested {
                            -half(supers[PANEL + lane]) * f32::from(tail[(groups + g) * PANEL + lane])
                        } else {
                            0.0
                        };
                        (scale, minimum)
                    }
                };
                *y = (f32::from(q) - form.offset) * scale + minimum;
            }
        }
    }

    fn super_at(&self, panel: usize, strip: usize) -> usize {
        (panel * (self.strips * STRIP / SUPER) + strip * STRIP / SUPER) * SUPERS
    }

    /// Scale and minimum of a group, for the lanes from `lane` on.
    ///
    /// # Safety
    /// `record` must point at the strip's record, and `lane + LANES` be at most 32.
    #[inline(always)]
    unsafe fn scale<S: Simd>(
        &self,
        s: S,
        record: *const u8,
        supers: *const u16,
        g: usize,
        lane: usize,
    ) -> (S::V, S::V) {
        let form = self.form;
        // SAFETY: the layout of a record, see `Form::record`; supers are only read where the format has them.
        unsafe {
            let tail = record.add(form.numbers());
            match form.scale {
                Scale::Half => {
                    let scale = s.load_half(tail.cast::<u16>().add(lane));
                    let minimum = match form.minimum {
                        Minimum::Half => s.load_half(tail.cast::<u16>().add(PANEL + lane)),
                        _ => s.splat(0.0),
                    };
                    (scale, minimum)
                }
                Scale::Nested => {
                    let scale = s.mul(s.load_half(supers.add(lane)), s.load_signed(tail.add(g * PANEL + lane).cast()));
                    let minimum = match form.minimum {
                        Minimum::Nested => {
                            let small = s.load_signed(tail.add((form.groups() + g) * PANEL + lane).cast());
                            s.sub(s.splat(0.0), s.mul(s.load_half(supers.add(PANEL + lane)), small))
                        }
                        _ => s.splat(0.0),
                    };
                    (scale, minimum)
                }
            }
        }
    }
}

//! Quantised blocks in the order in which the kernels read them.
//!
//! A *strip* is 32 inputs of a panel's 32 columns. Its numbers are unsigned and lie in *units*: one 32-bit word per
//! column for four inputs, a byte each, once the bits are put together. A format's low four bits of two units share a
//! word, so that a shift and a mask give 64 numbers; the fifth and sixth bits have planes of their own. A number means
//! `(q − offset)·scale + minimum`, scale and minimum per group of 32 or 16 inputs. Nothing is rounded: scales stay the
//! halves and small integers they were.

use super::{blocks, memory::Aligned, pack::PANEL, path::Task, simd::Simd};
use crate::ElementType;

/// Inputs of a strip.
pub(super) const STRIP: usize = 32;
/// Inputs that share a half-precision scale in the nested formats.
const SUPER: usize = 256;
/// Halves per panel and super-block: scales, then minima.
const SUPERS: usize = 2 * PANEL;

/// How one number format is laid out in a strip.
#[derive(Debug, Clone, Copy)]
struct Form {
    /// 4, 5, 6 or 8; formats with fewer take 4.
    bits: usize,
    /// Inputs that share a scale: 32 or 16.
    group: usize,
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

/// One stored block taken apart.
struct Parts {
    q: [u8; SUPER],
    scale: u16,
    minimum: u16,
    scales: [i8; 16],
    minima: [i8; 16],
}

impl Form {
    fn of(element: ElementType) -> Option<Form> {
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
    fn numbers(self) -> usize {
        PANEL * STRIP * self.bits / 8
    }

    fn groups(self) -> usize {
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

    /// Puts the 32 numbers of a column into a strip's record, four at a time; see [`Form::place`].
    fn store(self, q: &[u8], lane: usize, record: &mut [u8]) {
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
        let supers = match form.scale {
            Scale::Half => 0,
            Scale::Nested => panels * (inputs / SUPER) * SUPERS,
        };
        let records = Aligned::zeroed(panels * strips * form.record());
        Some(Strips { form, strips, records, supers: Aligned::zeroed(supers) })
    }

    /// Bytes held.
    pub(super) fn bytes(&self) -> usize {
        self.records.bytes() + self.supers.bytes()
    }

    /// Inputs that share a scale.
    pub(super) fn group(&self) -> usize {
        self.form.group
    }

    /// The parts that belong to `panel`, for writing: records and super-block scales.
    pub(super) fn panel_mut(&mut self) -> (super::memory::Shared<u8>, super::memory::Shared<u16>) {
        (super::memory::Shared::new(&mut self.records), super::memory::Shared::new(&mut self.supers))
    }

    /// Bytes of records and halves of super-blocks per panel.
    pub(super) fn panel_lengths(&self) -> (usize, usize) {
        let supers = if self.form.scale == Scale::Half { 0 } else { self.strips * STRIP / SUPER * SUPERS };
        (self.strips * self.form.record(), supers)
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
                let ((low, shift), (high, high_shift)) = form.place(lane, i);
                let q = match form.bits {
                    8 => record[low],
                    4 => (record[low] >> shift) & 15,
                    5 => (record[low] >> shift) & 15 | ((record[high] >> high_shift) & 1) << 4,
                    _ => (record[low] >> shift) & 15 | ((record[high] >> high_shift) & 3) << 4,
                };
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

    /// The task that decodes inputs `from .. from + length` of a panel into `out`, `[length, 32]`.
    pub(super) fn decode<'a>(&'a self, panel: usize, from: usize, length: usize, out: &'a mut [f32]) -> Decode<'a> {
        assert!(out.len() >= length * PANEL && from / STRIP + length / STRIP <= self.strips);
        Decode { strips: self, panel, from, length, out }
    }

    /// The task that puts the units of inputs `from .. from + length` together, `[length / 4, 32]`, and their scales
    /// and offsets, `[length / group, 32]` each: a number means `q·scale + offset`.
    pub(super) fn units<'a>(
        &'a self,
        panel: usize,
        from: usize,
        length: usize,
        out: (&'a mut [f32], &'a mut [f32], &'a mut [f32]),
    ) -> Units<'a> {
        let (units, scales, offsets) = out;
        let groups = length / self.form.group;
        assert!(units.len() >= length / 4 * PANEL && scales.len() >= groups * PANEL && offsets.len() >= groups * PANEL);
        assert!(from / STRIP + length / STRIP <= self.strips);
        Units { strips: self, panel, from, length, units, scales, offsets }
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

/// See [`Strips::decode`].
pub(super) struct Decode<'a> {
    strips: &'a Strips,
    panel: usize,
    from: usize,
    length: usize,
    out: &'a mut [f32],
}

impl Task for Decode<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        // SAFETY: `Strips::decode` checked the range and the room.
        unsafe {
            match self.strips.form.bits {
                8 => self.strips(s, Decode::strip::<S, 8>),
                6 => self.strips(s, Decode::strip::<S, 6>),
                5 => self.strips(s, Decode::strip::<S, 5>),
                _ => self.strips(s, Decode::strip::<S, 4>),
            }
        }
    }
}

impl Decode<'_> {
    #[inline(always)]
    unsafe fn strips<S: Simd>(mut self, s: S, each: impl Fn(&mut Self, S, usize)) {
        for strip in self.from / STRIP..(self.from + self.length) / STRIP {
            each(&mut self, s, strip);
        }
    }

    #[inline(always)]
    fn strip<S: Simd, const BITS: usize>(&mut self, s: S, strip: usize) {
        let (strips, form) = (self.strips, self.strips.form);
        // SAFETY: the strip lies inside the matrix and its place inside `out`; see `Strips::decode`.
        unsafe {
            let record = strips.records.as_ptr().add((self.panel * strips.strips + strip) * form.record());
            let supers = strips.supers.as_ptr().wrapping_add(strips.super_at(self.panel, strip));
            let out = self.out.as_mut_ptr().add((strip * STRIP - self.from) * PANEL);
            for lane in (0..PANEL).step_by(S::LANES) {
                for g in 0..form.groups() {
                    let (scale, minimum) = strips.scale(s, record, supers, g, lane);
                    // Exact: the offset is a power of two.
                    let shifted = s.sub(minimum, s.mul(s.splat(form.offset), scale));
                    for u in 0..form.group / 4 {
                        let u = g * (form.group / 4) + u;
                        let words = unit::<S, BITS>(s, record, u, lane);
                        for byte in 0..4 {
                            let q = s.byte(words, byte);
                            let y = if S::FUSED {
                                s.fma(q, scale, shifted)
                            } else {
                                s.add(s.mul(s.sub(q, s.splat(form.offset)), scale), minimum)
                            };
                            s.store(out.add((4 * u + byte as usize) * PANEL + lane), y);
                        }
                    }
                }
            }
        }
    }
}

/// See [`Strips::units`].
pub(super) struct Units<'a> {
    strips: &'a Strips,
    panel: usize,
    from: usize,
    length: usize,
    /// Words, kept in a buffer of floats.
    units: &'a mut [f32],
    scales: &'a mut [f32],
    offsets: &'a mut [f32],
}

impl Task for Units<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        match self.strips.form.bits {
            8 => self.all::<S, 8>(s),
            6 => self.all::<S, 6>(s),
            5 => self.all::<S, 5>(s),
            _ => self.all::<S, 4>(s),
        }
    }
}

impl Units<'_> {
    #[inline(always)]
    fn all<S: Simd, const BITS: usize>(&mut self, s: S) {
        let (strips, form) = (self.strips, self.strips.form);
        for strip in self.from / STRIP..(self.from + self.length) / STRIP {
            let here = strip - self.from / STRIP;
            // SAFETY: the strip lies inside the matrix and its places inside the buffers; see `Strips::units`.
            unsafe {
                let record = strips.records.as_ptr().add((self.panel * strips.strips + strip) * form.record());
                let supers = strips.supers.as_ptr().wrapping_add(strips.super_at(self.panel, strip));
                for lane in (0..PANEL).step_by(S::LANES) {
                    for g in 0..form.groups() {
                        let (scale, minimum) = strips.scale(s, record, supers, g, lane);
                        let at = (here * form.groups() + g) * PANEL + lane;
                        s.store(self.scales.as_mut_ptr().add(at), scale);
                        let offset = s.sub(minimum, s.mul(s.splat(form.offset), scale));
                        s.store(self.offsets.as_mut_ptr().add(at), offset);
                    }
                    let units = self.units.as_mut_ptr().cast::<u32>().add(here * STRIP / 4 * PANEL + lane);
                    for u in 0..STRIP / 4 {
                        s.store_words(units.add(u * PANEL), unit::<S, BITS>(s, record, u, lane));
                    }
                }
            }
        }
    }
}

impl Parts {
    fn read(element: ElementType, b: &[u8]) -> Parts {
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
            ElementType::Q4K | ElementType::Q5K => {
                parts.minimum = pair(2);
                let low = if element == ElementType::Q5K { &b[48..] } else { &b[16..] };
                for (i, q) in parts.q.iter_mut().enumerate() {
                    let (group, l) = (i / 32, i % 32);
                    *q = (low[group / 2 * 32 + l] >> (4 * (group % 2))) & 15;
                    if element == ElementType::Q5K {
                        *q |= ((b[16 + l] >> group) & 1) << 4;
                    }
                }
                for group in 0..8 {
                    let (scale, minimum) = blocks::k_scale(&b[4..16], group);
                    (parts.scales[group], parts.minima[group]) = (scale as i8, minimum as i8);
                }
            }
            ElementType::Q6K => {
                parts.scale = pair(208);
                for (i, q) in parts.q.iter_mut().enumerate() {
                    let (part, quarter, l) = (i / 128, i % 128 / 32, i % 32);
                    let low = (b[part * 64 + quarter % 2 * 32 + l] >> (4 * (quarter / 2))) & 15;
                    *q = low | ((b[128 + part * 32 + l] >> (2 * quarter)) & 3) << 4;
                }
                parts.scales.iter_mut().zip(&b[192..]).for_each(|(scale, &x)| *scale = x as i8);
            }
            ElementType::Q2K => {
                (parts.scale, parts.minimum) = (pair(80), pair(82));
                for (i, q) in parts.q.iter_mut().enumerate() {
                    *q = (b[16 + i / 128 * 32 + i % 32] >> (2 * (i % 128 / 32))) & 3;
                }
                for (j, &x) in b[..16].iter().enumerate() {
                    (parts.scales[j], parts.minima[j]) = ((x & 15) as i8, (x >> 4) as i8);
                }
            }
            ElementType::Q3K => {
                parts.scale = pair(108);
                for (i, q) in parts.q.iter_mut().enumerate() {
                    let low = (b[32 + i / 128 * 32 + i % 32] >> (2 * (i % 128 / 32))) & 3;
                    *q = low | ((b[i % 32] >> (i / 32)) & 1) << 2;
                }
                for (j, scale) in parts.scales.iter_mut().enumerate() {
                    *scale = blocks::q3k_scale(&b[96..108], j);
                }
            }
        }
        parts
    }

    /// Nibbles of 32 numbers, the high bits of each from `high`.
    fn legacy(&mut self, nibbles: &[u8], high: u32) {
        for i in 0..32 {
            let nibble = (nibbles[i % 16] >> (4 * (i / 16))) & 15;
            self.q[i] = nibble | (((high >> i) & 1) as u8) << 4;
        }
    }
}

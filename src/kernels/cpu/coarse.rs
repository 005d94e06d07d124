//! Quantised matrices as 8-bit panels with coarse scales: what products of bytes read fastest.
//!
//! Every number is a byte times a scale, one scale per column and 256 inputs (the last group may be shorter). Matrices
//! that every row meets are rounded so at load: a number is then off by at most half a step, `max|w| / 254` of its
//! group, a sixteenth of what the numbers of a 4-bit format are themselves off by, an eighth of a 5-bit format, a
//! quarter of a 6-bit one. Nothing is unpacked while computing, and scales are met once in 64 instructions. Matrices
//! that must stay small keep their 4 to 6 bits, and become the same bytes while they are read ([`steps`]).
//!
//! A panel is `[inputs / 4, 32]` words. Byte b of word `[j, c]` is input `4j + b` of column c, as `128 + w / scale`.
//! Scales are `[groups, 32]` floats per panel.

mod steps;
mod tile;

use std::ops::Range;

use steps::{Lines, Steps};
pub(super) use tile::{COARSE_ROWS, CoarseTile, RoundRow, RowParts};

use super::{
    Cpu,
    bytes::Vnni,
    layout::{PANEL, STRIP, WORDS},
    memory::{Aligned, Shared},
    path::{Checked, Task},
    simd::Simd,
    strips::Form,
};
use crate::{ElementType, KernelError};

/// Inputs that share a scale, of weights and of activations.
pub(super) const GROUP: usize = 256;

/// What a stored byte is above the number it stands for.
const OFFSET: f32 = 128.0;

/// A matrix of 8-bit numbers.
pub(super) struct Coarse {
    inputs: usize,
    numbers: Numbers,
    /// `[panel][group][column]`.
    scales: Aligned<f32>,
}

/// Where bytes come from.
enum Numbers {
    /// `[panel][depth / 4][column]` words, depth being the inputs rounded up to a multiple of 64; zeros pad.
    Words(Aligned<u32>),
    /// `[panel][strip]` records.
    Steps(Steps, Aligned<u8>),
}

/// One panel, for writing.
pub(super) struct Panel<'a> {
    numbers: PanelNumbers<'a>,
    scales: &'a mut [f32],
}

enum PanelNumbers<'a> {
    Words(&'a mut [u32]),
    Steps(Steps, &'a mut [u8]),
}

/// Words of a panel of so many inputs.
fn panel_words(inputs: usize) -> usize {
    inputs.next_multiple_of(4 * WORDS) / 4 * PANEL
}

/// Scales of a panel of so many inputs.
fn panel_scales(inputs: usize) -> usize {
    inputs.div_ceil(GROUP) * PANEL
}

impl Coarse {
    /// A matrix of `panels` panels of `inputs` inputs that takes a byte for each number, or no more than its format
    /// where that is possible; `fill` writes each panel, on all threads.
    pub(super) fn new(
        cpu: &Cpu,
        (panels, inputs): (usize, usize),
        small: Option<ElementType>,
        fill: impl Fn(usize, &mut Panel<'_>) + Sync,
    ) -> Result<Coarse, KernelError> {
        let mut numbers = match small.and_then(Steps::of) {
            Some(steps) => Numbers::Steps(steps, Aligned::zeroed(panels * inputs / STRIP * steps.record())),
            None => Numbers::Words(Aligned::zeroed(panels * panel_words(inputs))),
        };
        let mut scales = Aligned::zeroed(panels * panel_scales(inputs));
        let to_scales = Shared::new(&mut scales);
        let (panel_words, panel_scales) = (panel_words(inputs), panel_scales(inputs));
        match &mut numbers {
            Numbers::Words(words) => {
                let words = Shared::new(words);
                cpu.pool().run(panels, |index| {
                    // SAFETY: each panel is written by one call.
                    let (words, scales) = unsafe {
                        (
                            words.part(index * panel_words, panel_words),
                            to_scales.part(index * panel_scales, panel_scales),
                        )
                    };
                    fill(index, &mut Panel { numbers: PanelNumbers::Words(words), scales });
                })?;
            }
            Numbers::Steps(steps, records) => {
                let (steps, records) = (*steps, Shared::new(records));
                let panel = inputs / STRIP * steps.record();
                cpu.pool().run(panels, |index| {
                    // SAFETY: as above.
                    let (records, scales) = unsafe {
                        (records.part(index * panel, panel), to_scales.part(index * panel_scales, panel_scales))
                    };
                    fill(index, &mut Panel { numbers: PanelNumbers::Steps(steps, records), scales });
                })?;
            }
        }
        Ok(Coarse { inputs, numbers, scales })
    }

    /// Bytes that a matrix of so many panels and inputs holds.
    pub(super) fn bytes_of(panels: usize, inputs: usize, small: Option<ElementType>) -> usize {
        let numbers = match small.and_then(Steps::of) {
            Some(steps) => inputs / STRIP * steps.record(),
            None => 4 * panel_words(inputs),
        };
        panels * (numbers + 4 * panel_scales(inputs))
    }

    /// Bytes held.
    pub(super) fn bytes(&self) -> usize {
        let numbers = match &self.numbers {
            Numbers::Words(words) => words.bytes(),
            Numbers::Steps(_, records) => records.bytes(),
        };
        numbers + self.scales.bytes()
    }

    /// Whether bytes are stored, and need not be made while they are read.
    pub(super) fn is_stored(&self) -> bool {
        matches!(self.numbers, Numbers::Words(_))
    }

    /// Inputs of a panel as words `[length / 4, 32]`, a byte for each of four inputs: `128 + w / scale`; of a matrix
    /// whose bytes are stored. The range begins at a multiple of 4.
    pub(super) fn words(&self, panel: usize, inputs: Range<usize>) -> &[u32] {
        let Numbers::Words(words) = &self.numbers else { unreachable!("asked for what is not stored") };
        let from = panel * panel_words(self.inputs) + inputs.start / 4 * PANEL;
        &words[from..from + inputs.len().div_ceil(4) * PANEL]
    }

    /// The same of any matrix: in place, or made in `scratch`, words kept in a buffer of floats. The range begins at a
    /// multiple of 32. With `vnni`, faster.
    pub(super) fn read<'a>(
        &'a self,
        vnni: Option<Vnni>,
        panel: usize,
        inputs: Range<usize>,
        scratch: &'a mut [f32],
    ) -> &'a [u32] {
        let Numbers::Steps(steps, _) = &self.numbers else { return self.words(panel, inputs) };
        let scratch = &mut scratch[..inputs.len() / 4 * PANEL];
        // SAFETY: floats and words have one size and accept every bit pattern.
        let words = unsafe { std::slice::from_raw_parts_mut(scratch.as_mut_ptr().cast::<u32>(), scratch.len()) };
        match vnni {
            Some(vnni) => steps.read_fast(vnni, self.records(panel, &inputs), words),
            None => steps.read(self.records(panel, &inputs), words),
        }
        words
    }

    /// Records of a matrix of steps.
    fn records(&self, panel: usize, inputs: &Range<usize>) -> &[u8] {
        match &self.numbers {
            Numbers::Words(_) => &[],
            Numbers::Steps(steps, records) => {
                let first = panel * (self.inputs / STRIP) + inputs.start / STRIP;
                &records[first * steps.record()..(first + inputs.len() / STRIP) * steps.record()]
            }
        }
    }

    /// Scales of a panel's columns for inputs `256·group ..`.
    pub(super) fn scales(&self, panel: usize, group: usize) -> &[f32] {
        &self.scales[panel * panel_scales(self.inputs) + group * PANEL..][..PANEL]
    }

    /// Decodes one column: an embedding lookup.
    pub(super) fn column(&self, panel: usize, lane: usize, out: &mut [f32]) {
        let mut scratch = [0.0; GROUP / 4 * PANEL];
        for (group, out) in out.chunks_mut(GROUP).enumerate() {
            let words = self.read(None, panel, group * GROUP..group * GROUP + out.len(), &mut scratch);
            let scale = self.scales(panel, group)[lane];
            for (i, y) in out.iter_mut().enumerate() {
                let word = words[i / 4 * PANEL + lane];
                *y = (f32::from(word.to_le_bytes()[i % 4]) - OFFSET) * scale;
            }
        }
    }

    /// The task that decodes inputs `from .. from + length` of a panel into `out`, `[length, 32]`; `from` is a
    /// multiple of 256.
    pub(super) fn decode<'a>(&'a self, panel: usize, from: usize, length: usize, out: &'a mut [f32]) -> Decode<'a> {
        assert!(out.len() >= length * PANEL);
        Decode { coarse: self, panel, from, length, out }
    }

    /// The task that decodes inputs `from .. from + length` of a panel, rounded to bf16, into words
    /// `[length / 2, 32]`, kept in a buffer of floats; `from` is a multiple of 256, `length` even.
    pub(super) fn pairs<'a>(&'a self, panel: usize, from: usize, length: usize, out: &'a mut [f32]) -> DecodePairs<'a> {
        assert!(out.len() >= length / 2 * PANEL);
        DecodePairs(Decode { coarse: self, panel, from, length, out })
    }

    /// What is stored of inputs of a panel, to be asked for before it is read.
    pub(super) fn lines(&self, panel: usize, inputs: Range<usize>) -> &[u8] {
        match &self.numbers {
            Numbers::Words(_) => {
                let words = self.words(panel, inputs);
                // SAFETY: words are four bytes each.
                unsafe { std::slice::from_raw_parts(words.as_ptr().cast(), 4 * words.len()) }
            }
            Numbers::Steps(..) => self.records(panel, &inputs),
        }
    }
}

impl Panel<'_> {
    /// Writes one column's stored row.
    pub(super) fn write(&mut self, path: Checked, element: ElementType, row: &[u8], lane: usize) {
        let form = Form::of(element).expect("only block formats come here");
        path.run(Write { panel: self, form, element, row, lane });
    }
}

/// Writes one column into its panel.
struct Write<'a, 'b> {
    panel: &'a mut Panel<'b>,
    form: Form,
    element: ElementType,
    row: &'a [u8],
    lane: usize,
}

impl Task for Write<'_, '_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Write { panel: Panel { numbers, scales }, form, element, row, lane } = self;
        let words = match numbers {
            PanelNumbers::Words(words) => words,
            PanelNumbers::Steps(steps, records) => return steps.write(element, row, lane, records, scales),
        };
        let (length, size) = element.block();
        for (group, blocks) in row.chunks(GROUP / length * size).enumerate() {
            let (mut values, mut bytes) = ([0.0; GROUP], [0i8; GROUP]);
            Lines::read(element, form, blocks).values(&mut values);
            scales[group * PANEL + lane] = tile::round(s, &values, &mut bytes).0;
            let count = blocks.len() / size * length;
            let words = words[group * GROUP / 4 * PANEL..].chunks_exact_mut(PANEL);
            for (words, four) in words.zip(bytes[..count].as_chunks::<4>().0) {
                words[lane] = u32::from_le_bytes(four.map(|byte| byte as u8)) ^ 0x8080_8080;
            }
        }
    }
}

/// See [`Coarse::decode`].
pub(super) struct Decode<'a> {
    coarse: &'a Coarse,
    panel: usize,
    from: usize,
    length: usize,
    out: &'a mut [f32],
}

/// See [`Coarse::pairs`].
pub(super) struct DecodePairs<'a>(Decode<'a>);

impl Task for Decode<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        self.all::<S, false>(s);
    }
}

impl Task for DecodePairs<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        self.0.all::<S, true>(s);
    }
}

impl Decode<'_> {
    #[inline(always)]
    fn all<S: Simd, const PAIRS: bool>(self, s: S) {
        let Decode { coarse, panel, from, length, out } = self;
        let mut scratch = [0.0; GROUP / 4 * PANEL];
        for first in (0..length).step_by(GROUP) {
            let last = length.min(first + GROUP);
            let words = coarse.read(None, panel, from + first..from + last, &mut scratch);
            let scales = coarse.scales(panel, (from + first) / GROUP);
            for lane in (0..PANEL).step_by(S::LANES) {
                // SAFETY: LANES divides the 32 lanes of scales, words and lines of `out`, whose length was checked.
                unsafe {
                    let scale = s.load(scales.as_ptr().add(lane));
                    for i in 0..last - first {
                        let word = s.load_words(words.as_ptr().add(i / 4 * PANEL + lane));
                        let number = |i: usize| s.mul(s.sub(s.byte(word, (i % 4) as u32), s.splat(OFFSET)), scale);
                        if !PAIRS {
                            s.store(out.as_mut_ptr().add((first + i) * PANEL + lane), number(i));
                        } else if i % 2 == 0 {
                            let out = out.as_mut_ptr().cast::<u32>().add((first + i) / 2 * PANEL + lane);
                            s.store_words(out, s.pairs(number(i), number(i + 1)));
                        }
                    }
                }
            }
        }
    }
}

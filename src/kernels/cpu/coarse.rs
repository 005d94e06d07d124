//! Quantised matrices as 8-bit panels with coarse scales: what products of bytes read fastest.
//!
//! Every number is decoded exactly at load and rounded to 8 bits, one scale per column and 256 inputs (the last group
//! may be shorter): it is then off by at most half a step, `max|w| / 254` of its group. That is a sixteenth of what the
//! numbers of a 4-bit format are themselves off by, an eighth of a 5-bit format, a quarter of a 6-bit one. In exchange
//! nothing is unpacked while computing, and scales are met once in 64 instructions.
//!
//! A panel is `[depth / 4, 32]` words, depth being the inputs rounded up to a multiple of 64. Byte b of word `[j, c]` is
//! input `4j + b` of column c, as `128 + w / scale`; zeros pad. Scales are `[groups, 32]` floats per panel.

mod tile;

use std::ops::Range;

pub(super) use tile::{COARSE_ROWS, CoarseTile, RoundRow, RowParts};

use super::{
    layout::{PANEL, WORDS},
    memory::{Aligned, Shared},
    path::Task,
    simd::Simd,
};

/// Inputs that share a scale, of weights and of activations.
pub(super) const GROUP: usize = 256;

/// What a stored byte is above the number it stands for.
const OFFSET: f32 = 128.0;

/// A matrix of 8-bit numbers.
pub(super) struct Coarse {
    inputs: usize,
    /// `[panel][depth / 4][column]`.
    words: Aligned<u32>,
    /// `[panel][group][column]`.
    scales: Aligned<f32>,
}

/// Words and scales of one panel of so many inputs.
fn panel_lengths(inputs: usize) -> (usize, usize) {
    (inputs.next_multiple_of(4 * WORDS) / 4 * PANEL, inputs.div_ceil(GROUP) * PANEL)
}

impl Coarse {
    /// Room for `panels` panels of `inputs` inputs, all zero.
    pub(super) fn zeroed(panels: usize, inputs: usize) -> Coarse {
        let (words, scales) = panel_lengths(inputs);
        Coarse { inputs, words: Aligned::zeroed(panels * words), scales: Aligned::zeroed(panels * scales) }
    }

    /// Bytes that such a matrix holds.
    pub(super) fn bytes_of(panels: usize, inputs: usize) -> usize {
        let (words, scales) = panel_lengths(inputs);
        4 * panels * (words + scales)
    }

    /// Bytes held.
    pub(super) fn bytes(&self) -> usize {
        self.words.bytes() + self.scales.bytes()
    }

    /// Words and scales of all panels, for writing.
    pub(super) fn panels_mut(&mut self) -> (Shared<u32>, Shared<f32>) {
        (Shared::new(&mut self.words), Shared::new(&mut self.scales))
    }

    /// Words and scales of one panel.
    pub(super) fn panel_lengths(&self) -> (usize, usize) {
        panel_lengths(self.inputs)
    }

    /// Inputs of a panel as words `[length / 4, 32]`, a byte for each of four inputs: `128 + w / scale`. The range
    /// begins at a multiple of 4.
    pub(super) fn words(&self, panel: usize, inputs: Range<usize>) -> &[u32] {
        let from = panel * panel_lengths(self.inputs).0 + inputs.start / 4 * PANEL;
        &self.words[from..from + inputs.len().div_ceil(4) * PANEL]
    }

    /// Scales of a panel's columns for inputs `256·group ..`.
    pub(super) fn scales(&self, panel: usize, group: usize) -> &[f32] {
        &self.scales[panel * panel_lengths(self.inputs).1 + group * PANEL..][..PANEL]
    }

    /// Decodes one column: an embedding lookup.
    pub(super) fn column(&self, panel: usize, lane: usize, out: &mut [f32]) {
        let words = self.words(panel, 0..self.inputs);
        for (group, out) in out.chunks_mut(GROUP).enumerate() {
            let scale = self.scales(panel, group)[lane];
            for (i, y) in out.iter_mut().enumerate() {
                let word = words[(group * GROUP + i) / 4 * PANEL + lane];
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

    /// Asks for inputs of a panel that will be read soon.
    pub(super) fn prefetch(&self, panel: usize, inputs: Range<usize>) {
        super::memory::ask(self.words(panel, inputs));
    }
}

/// Rounds one column into its panel.
pub(super) struct RoundColumn<'a> {
    pub column: &'a [f32],
    pub lane: usize,
    /// Of the panel.
    pub words: &'a mut [u32],
    pub scales: &'a mut [f32],
}

impl Task for RoundColumn<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let RoundColumn { column, lane, words, scales } = self;
        for (group, column) in column.chunks(GROUP).enumerate() {
            let mut bytes = [0i8; GROUP];
            scales[group * PANEL + lane] = tile::round(s, column, &mut bytes).0;
            for (j, four) in bytes[..column.len()].chunks(4).enumerate() {
                let mut word = [0x80; 4];
                word.iter_mut().zip(four).for_each(|(to, from)| *to = *from as u8 ^ 0x80);
                words[(group * GROUP / 4 + j) * PANEL + lane] = u32::from_le_bytes(word);
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
        for first in (0..length).step_by(GROUP) {
            let last = length.min(first + GROUP);
            let words = coarse.words(panel, from + first..from + last);
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

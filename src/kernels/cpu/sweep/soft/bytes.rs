//! The soft embedding in bytes: weights and table are 8-bit numbers, their products exact integers.
//!
//! What is rounded are a row's weights in a tile, each times its token's scale in the table, so that the scales need not
//! be met again: to unsigned bytes with one step per row, tile and 256 columns, the largest of them being 255. A weight is
//! then off by at most half a step. Those errors do not add up: what rounding takes from the weights' sum is given back
//! to the mean of the tile's tokens, so that the mass of a long tail stays where it is even where all of it lies below
//! half a step.
//!
//! Weights that would make the steps of the others coarse, those above an eighth of their tile's sum, are added in f32,
//! and so are rows with few tokens in a tile. Tiles with less than 2⁻²⁰ of a row's weight are left out, which in a
//! vocabulary of 1,024 tiles is less than a thousandth together.
//!
//! All of these rules look at the row's own weights, and integers add up to the same in any order: a row's bits do not
//! depend on its company.

mod tile;

use std::ops::Range;

use self::tile::{CHUNK, COLUMNS, Mean, ROWS, SoftTile};
use super::super::super::{
    bytes::Vnni,
    coarse::{Coarse, GROUP},
    layout::{PANEL, row_block},
    memory::Scratch,
    path::{Checked, Task},
    simd::Simd,
};

/// The part of a row's weight below which a tile is left out.
const SLIGHT: f64 = 1.0 / 1_048_576.0;
/// The part of a row's weight from which on a tile's largest weights are added apart: where they are a small part of the
/// row, so is what they make the others lose, and not worth the time.
const WEIGHTY: f64 = 1.0 / 32.0;
/// The part of a tile's weight above which a token is added apart.
const LARGE: f32 = 1.0 / 8.0;
/// As many tokens of a tile are added one by one: that takes less time than all of them.
const FEW: usize = 6;

/// Sums of `exp(z − max)·table` per row.
pub(in crate::cpu::sweep) struct ByteSoft<'a> {
    path: Checked,
    vnni: Vnni,
    table: &'a Coarse,
    vocabulary: usize,
    width: usize,
    rows: usize,
    /// `[columns / 64, rows, 64]`.
    sums: Scratch,
}

/// The rows of a tile that are multiplied, and what all groups of columns share.
struct Dense<'a> {
    panels: Range<usize>,
    rows: Vec<usize>,
    /// `[all rows, stride]`.
    weights: &'a [f32],
    stride: usize,
    /// Tokens, rounded up to whole chunks.
    padded: usize,
    mean: Mean,
}

impl<'a> ByteSoft<'a> {
    pub(in crate::cpu::sweep) fn new(
        path: Checked,
        vnni: Vnni,
        table: &'a Coarse,
        vocabulary: usize,
        width: usize,
        rows: usize,
    ) -> ByteSoft<'a> {
        let mut sums = Scratch::take(width.next_multiple_of(COLUMNS) * rows);
        sums.fill(0.0);
        ByteSoft { path, vnni, table, vocabulary, width, rows, sums }
    }

    /// A row's sums, 64 columns at a time.
    fn parts(&mut self, row: usize) -> impl Iterator<Item = &mut [f32]> {
        self.sums.chunks_exact_mut(COLUMNS).skip(row).step_by(self.rows)
    }

    /// Multiplies a row's sums.
    pub(in crate::cpu::sweep) fn scale(&mut self, row: usize, factor: f32) {
        self.parts(row).flatten().for_each(|sum| *sum *= factor);
    }

    /// Adds a tile; see [`super::Soft::add`].
    pub(in crate::cpu::sweep) fn add(
        &mut self,
        panels: Range<usize>,
        weights: &mut [f32],
        stride: usize,
        so_far: impl Fn(usize) -> f64,
    ) {
        let tokens = panels.len() * PANEL;
        let padded = tokens.next_multiple_of(CHUNK);
        let mut rows = Vec::with_capacity(self.rows);
        for row in 0..self.rows {
            let weights = &mut weights[row * stride..][..padded];
            weights[tokens..].fill(0.0);
            let (sum, present) = self.vnni.weight(weights);
            // Weights are relative to a token's, seen or foreseen: in the end there will be at least one.
            let all = so_far(row).max(1.0);
            if !sum.is_finite() {
                // Nothing that follows can make the row look sound.
                self.scale(row, f32::NAN);
            } else if f64::from(sum) < all * SLIGHT {
            } else if present <= FEW {
                self.add_above(row, &panels, weights, 0.0);
            } else {
                if f64::from(sum) >= all * WEIGHTY {
                    self.add_above(row, &panels, weights, sum * LARGE);
                }
                rows.push(row);
            }
        }
        if !rows.is_empty() {
            let real = self.vocabulary.min(panels.end * PANEL) - panels.start * PANEL;
            let dense = Dense { panels, rows, weights, stride, padded, mean: Mean::of(real, padded) };
            self.multiply(&dense);
        }
    }

    /// Adds the tokens above a weight one by one, and takes their weights away.
    fn add_above(&mut self, row: usize, panels: &Range<usize>, weights: &mut [f32], least: f32) {
        for (token, weight) in weights.iter_mut().enumerate().filter(|(_, weight)| **weight > least) {
            self.path.run(AddToken {
                table: self.table,
                panel: panels.start + token / PANEL,
                lane: token % PANEL,
                weight: std::mem::take(weight),
                sums: &mut self.sums,
                rows: self.rows,
                row,
            });
        }
    }

    /// Adds a tile's products of bytes.
    fn multiply(&mut self, tile: &Dense<'_>) {
        let (padded, words) = (tile.padded, tile.padded / 4);
        let mut scales = Scratch::take(padded);
        let mut bytes = Scratch::take(tile.rows.len() * words);
        let mut steps = vec![(0.0, 0.0); tile.rows.len()];
        let mut turned = Scratch::take(GROUP * words);
        for first in (0..self.width).step_by(GROUP) {
            let columns = first..self.width.min(first + GROUP).next_multiple_of(COLUMNS);
            scales.fill(0.0);
            for (panel, to) in tile.panels.clone().zip(scales.chunks_exact_mut(PANEL)) {
                to.copy_from_slice(self.table.scales(panel, first / GROUP));
            }
            for ((&row, to), step) in tile.rows.iter().zip(bytes.chunks_exact_mut(words)).zip(&mut steps) {
                *step = self.vnni.round_weights(&tile.weights[row * tile.stride..][..padded], &scales, to);
            }
            for (index, panel) in tile.panels.clone().enumerate() {
                self.vnni.turn(self.table.words(panel, columns.clone()), index, words, &mut turned);
            }
            let turned = turned[..columns.len() * words].chunks_exact(COLUMNS * words);
            for (column, turned) in columns.step_by(COLUMNS).zip(turned) {
                let mean = self.vnni.mean(&tile.mean, turned);
                let sums = &mut self.sums[column * self.rows..][..COLUMNS * self.rows];
                for index in 0..tile.rows.len().div_ceil(ROWS) {
                    let block = row_block(tile.rows.len(), ROWS, index);
                    self.vnni.soft(SoftTile {
                        rows: &tile.rows[block.clone()],
                        steps: &steps[block.clone()],
                        weights: &bytes[block.start * words..block.end * words],
                        table: turned,
                        mean: &mean,
                        sums,
                    });
                }
            }
        }
    }

    /// A row's soft embedding.
    pub(in crate::cpu::sweep) fn finish(&self, row: usize, sum: f32, out: &mut [f32]) {
        let parts = self.sums.chunks_exact(COLUMNS).skip(row).step_by(self.rows);
        for (out, part) in out.chunks_mut(COLUMNS).zip(parts) {
            out.iter_mut().zip(part).for_each(|(y, x)| *y = x / sum);
        }
    }
}

/// Adds one token's embedding times a weight to a row's sums, in f32.
struct AddToken<'a> {
    table: &'a Coarse,
    panel: usize,
    lane: usize,
    weight: f32,
    /// `[columns / 64, rows, 64]`.
    sums: &'a mut [f32],
    rows: usize,
    row: usize,
}

impl Task for AddToken<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let parts = self.sums.chunks_exact_mut(COLUMNS).skip(self.row).step_by(self.rows);
        for (index, part) in parts.enumerate() {
            let column = index * COLUMNS;
            let words = self.table.words(self.panel, column..column + COLUMNS);
            let weight = self.weight * self.table.scales(self.panel, column / GROUP)[self.lane];
            let mut bytes = [0; COLUMNS];
            for (bytes, words) in bytes.as_chunks_mut::<4>().0.iter_mut().zip(words.chunks_exact(PANEL)) {
                *bytes = words[self.lane].to_le_bytes();
            }
            for (sum, byte) in part.iter_mut().zip(bytes) {
                *sum += weight * (f32::from(byte) - 128.0);
            }
        }
    }
}

//! The soft embedding: probabilities times the table, accumulated tile by tile.

use std::ops::Range;

use super::super::{
    memory::Scratch,
    pack::{DEPTH, PANEL, PackedMatrix},
    path::Checked,
    product::row_block,
    tile::{Start, Tile},
};

/// Sums of `exp(z − max)·table` per row.
pub(super) struct Soft {
    path: Checked,
    rows: usize,
    width: usize,
    stride: usize,
    /// `[rows, stride]`.
    sums: Scratch,
}

/// The entries of a tile that at least one row of a block gives weight to.
struct Present {
    rows: Range<usize>,
    /// Which entries, ascending.
    entries: Vec<u32>,
    /// `[entries, rows]`.
    weights: Vec<f32>,
}

impl Soft {
    pub(super) fn new(path: Checked, rows: usize, width: usize) -> Soft {
        let stride = width.next_multiple_of(16);
        let mut sums = Scratch::take(rows * stride);
        sums.fill(0.0);
        Soft { path, rows, width, stride, sums }
    }

    /// Multiplies a row's sums.
    pub(super) fn scale(&mut self, row: usize, factor: f32) {
        for value in &mut self.sums[row * self.stride..][..self.stride] {
            *value *= factor;
        }
    }

    /// Adds a tile: `weights[rows, weight_stride]` times the table's panels. A term that is zero changes no bit, so
    /// that leaving out what is zero for a whole block of rows does not make a row depend on its company.
    pub(super) fn add(&mut self, table: &PackedMatrix, panels: Range<usize>, weights: &[f32], weight_stride: usize) {
        let most = self.path.tile_rows();
        let count = panels.len() * PANEL;
        let mut used = vec![false; panels.len()];
        let mut blocks = Vec::with_capacity(self.rows.div_ceil(most));
        for index in 0..self.rows.div_ceil(most) {
            let rows = row_block(self.rows, most, index);
            let present = Present::new(rows, count, weights, weight_stride);
            for &entry in &present.entries {
                used[entry as usize / PANEL] = true;
            }
            if !present.entries.is_empty() {
                blocks.push(present);
            }
        }
        if blocks.is_empty() {
            return;
        }
        let mut scratch = Scratch::take(DEPTH * PANEL);
        let mut turned = Scratch::take(count * DEPTH);
        for from in (0..self.width).step_by(DEPTH) {
            let depth = DEPTH.min(self.width - from);
            for (index, _) in used.iter().enumerate().filter(|(_, used)| **used) {
                let piece = table.piece(self.path, panels.start + index, from, depth, &mut scratch);
                turn(piece, &mut turned[index * PANEL * DEPTH..][..PANEL * DEPTH]);
            }
            for block in &blocks {
                // SAFETY: entries lie inside `turned` (`[count, DEPTH]`), and rows of the sums are padded to whole
                // vectors.
                unsafe {
                    self.path.tile(&Tile {
                        rows: block.rows.len(),
                        columns: depth.next_multiple_of(16),
                        k: block.entries.len(),
                        a: block.weights.as_ptr(),
                        a_stride: block.rows.len(),
                        b: turned.as_ptr(),
                        b_stride: DEPTH,
                        index: block.entries.as_ptr(),
                        c: self.sums[block.rows.start * self.stride + from..].as_mut_ptr(),
                        c_stride: self.stride,
                        start: Start::Add,
                    });
                }
            }
        }
    }

    /// A row's soft embedding.
    pub(super) fn finish(&self, row: usize, sum: f32, out: &mut [f32]) {
        for (y, x) in out.iter_mut().zip(&self.sums[row * self.stride..]) {
            *y = x / sum;
        }
    }
}

impl Present {
    fn new(rows: Range<usize>, count: usize, weights: &[f32], stride: usize) -> Present {
        let mut present = Present { rows: rows.clone(), entries: Vec::new(), weights: Vec::new() };
        for entry in 0..count {
            // Written so that a weight which is not a number counts as present.
            if rows.clone().any(|row| weights[row * stride + entry] != 0.0) {
                present.entries.push(entry as u32);
                present.weights.extend(rows.clone().map(|row| weights[row * stride + entry]));
            }
        }
        present
    }
}

/// `[depth, 32]` to `[32, DEPTH]`.
fn turn(piece: &[f32], to: &mut [f32]) {
    for (k, columns) in piece.chunks_exact(PANEL).enumerate() {
        for (lane, &value) in columns.iter().enumerate() {
            to[lane * DEPTH + k] = value;
        }
    }
}

//! The soft embedding: probabilities times the table, accumulated tile by tile.

use std::ops::Range;

use super::super::{
    memory::Scratch,
    pack::{DEPTH, PANEL, PackedMatrix},
    path::{Checked, Task},
    product::row_block,
    simd::Simd,
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
            Present::find(row_block(self.rows, most, index), count, weights, weight_stride, &mut blocks);
        }
        for &entry in blocks.iter().flat_map(|block: &Present| &block.entries) {
            used[entry as usize / PANEL] = true;
        }
        if blocks.is_empty() {
            return;
        }
        let mut scratch = Scratch::take(DEPTH * PANEL);
        // Blocks of 32 columns, each `[entries, 32]`, so that a tile reads memory straight through.
        let mut turned = Scratch::take(count * DEPTH);
        for from in (0..self.width).step_by(DEPTH) {
            let depth = DEPTH.min(self.width - from);
            for (index, _) in used.iter().enumerate().filter(|(_, used)| **used) {
                let piece = table.piece(self.path, panels.start + index, from, depth, &mut scratch);
                self.path.run(Turn { piece, depth, first: index * PANEL, count, to: &mut turned });
            }
            for block in &blocks {
                for column in (0..depth).step_by(PANEL) {
                    // SAFETY: entries lie inside their block of `turned`, and rows of the sums are padded to whole
                    // vectors.
                    unsafe {
                        self.path.tile(&Tile {
                            rows: block.rows.len(),
                            columns: PANEL.min((depth - column).next_multiple_of(16)),
                            k: block.entries.len(),
                            a: block.weights.as_ptr(),
                            a_stride: block.rows.len(),
                            b: turned[column * count..].as_ptr(),
                            b_stride: PANEL,
                            index: block.entries.as_ptr(),
                            c: self.sums[block.rows.start * self.stride + from + column..].as_mut_ptr(),
                            c_stride: self.stride,
                            start: Start::Add,
                        });
                    }
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
    /// Finds what is present for `rows`: together, or row by row where rows of few entries have few in common.
    fn find(rows: Range<usize>, count: usize, weights: &[f32], stride: usize, found: &mut Vec<Present>) {
        // Written so that a weight which is not a number counts as present.
        let present = |row: usize, entry: usize| weights[row * stride + entry] != 0.0;
        let mut any = vec![false; count];
        let mut total = 0;
        for row in rows.clone() {
            for (entry, any) in any.iter_mut().enumerate() {
                *any |= present(row, entry);
                total += usize::from(present(row, entry));
            }
        }
        let union = any.iter().filter(|any| **any).count();
        if union == 0 {
            return;
        }
        // A tile of one row costs about twice as much per term as a tile of many.
        if 2 * total < union * rows.len() {
            for row in rows {
                let entries: Vec<u32> =
                    (0..count).filter(|&entry| present(row, entry)).map(|entry| entry as u32).collect();
                if !entries.is_empty() {
                    found.push(Present::new(row..row + 1, entries, weights, stride));
                }
            }
        } else {
            let entries = (0..count).filter(|&entry| any[entry]).map(|entry| entry as u32).collect();
            found.push(Present::new(rows, entries, weights, stride));
        }
    }

    fn new(rows: Range<usize>, entries: Vec<u32>, weights: &[f32], stride: usize) -> Present {
        let weights = entries
            .iter()
            .flat_map(|&entry| rows.clone().map(move |row| weights[row * stride + entry as usize]))
            .collect();
        Present { rows, entries, weights }
    }
}

/// Turns a piece `[depth, 32]` of the table into entries `first .. first + 32` of blocks of 32 columns,
/// `[depth / 32, count, 32]`.
struct Turn<'a> {
    piece: &'a [f32],
    depth: usize,
    first: usize,
    count: usize,
    to: &'a mut [f32],
}

impl Task for Turn<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Turn { piece, depth, first, count, to } = self;
        let place = |k: usize, lane: usize| (k / PANEL * count + first + lane) * PANEL + k % PANEL;
        assert!(
            piece.len() >= depth * PANEL && to.len() >= depth.next_multiple_of(PANEL) * count && first + PANEL <= count
        );
        let whole = depth / 16 * 16;
        for k in (0..whole).step_by(16) {
            for lane in [0, 16] {
                // SAFETY: sixteen rows of the piece from k on, to sixteen entries of one block; checked above.
                unsafe { s.turn(piece.as_ptr().add(k * PANEL + lane), to.as_mut_ptr().add(place(k, lane))) };
            }
        }
        for k in whole..depth {
            for lane in 0..PANEL {
                to[place(k, lane)] = piece[k * PANEL + lane];
            }
        }
    }
}

//! The soft embedding in f32 or bf16.

use std::ops::Range;

use super::super::super::{
    layout::{DEPTH, PANEL, WORDS, row_block},
    memory::Scratch,
    pack::PackedMatrix,
    pairs::{PairTile, Pairs, RoundPairs, pair_width},
    path::{Checked, Task},
    simd::Simd,
    tile::{Start, Tile},
};

/// Sums of `exp(z − max)·table` per row.
pub(in crate::cpu::sweep) struct WideSoft<'a> {
    path: Checked,
    /// Where products are to be of bf16.
    pairs: Option<Pairs>,
    table: &'a PackedMatrix,
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

impl<'a> WideSoft<'a> {
    pub(in crate::cpu::sweep) fn new(
        path: Checked,
        pairs: Option<Pairs>,
        table: &'a PackedMatrix,
        rows: usize,
    ) -> WideSoft<'a> {
        let width = table.inputs();
        let stride = width.next_multiple_of(16);
        let mut sums = Scratch::take(rows * stride);
        sums.fill(0.0);
        WideSoft { path, pairs, table, rows, width, stride, sums }
    }

    /// Multiplies a row's sums.
    pub(in crate::cpu::sweep) fn scale(&mut self, row: usize, factor: f32) {
        for value in &mut self.sums[row * self.stride..][..self.stride] {
            *value *= factor;
        }
    }

    /// Adds a tile: `weights[rows, weight_stride]` times the table's panels. A term that is zero changes no bit, so
    /// that leaving out what is zero for a whole block of rows does not make a row depend on its company.
    pub(in crate::cpu::sweep) fn add(&mut self, panels: Range<usize>, weights: &[f32], weight_stride: usize) {
        match self.pairs {
            Some(pairs) => self.add_pairs(pairs, panels, weights, weight_stride),
            None => self.add_floats(panels, weights, weight_stride),
        }
    }

    fn add_floats(&mut self, panels: Range<usize>, weights: &[f32], weight_stride: usize) {
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
                let piece = self.table.piece(self.path, panels.start + index, from, depth, &mut scratch);
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

    /// The same with weights and table rounded to bf16. Entries come in pairs, and with AMX in whole panels, that are
    /// added or left out together: a row's sums do not depend on which of them other rows have.
    fn add_pairs(&mut self, pairs: Pairs, panels: Range<usize>, weights: &[f32], weight_stride: usize) {
        let count = panels.len() * PANEL / 2;
        let mut words = Scratch::take(self.rows * pair_width(2 * count));
        for (row, to) in words.chunks_exact_mut(pair_width(2 * count)).enumerate() {
            let x = &weights[row * weight_stride..][..2 * count];
            self.path.run_rounding(RoundPairs { x, to, rows: 1, row: 0 });
        }
        let mut packed =
            Packed { pairs, count, words: &words, weights: Scratch::take(words.len()), blocks: Vec::new() };
        packed.fill(self.rows);
        let mut used = vec![false; panels.len()];
        for &pair in packed.blocks.iter().flat_map(|block| &block.index) {
            used[pair as usize / WORDS] = true;
        }
        if packed.blocks.is_empty() {
            return;
        }
        let mut scratch = Scratch::take(DEPTH * PANEL);
        // Blocks of 32 columns, each `[pairs, 32]`.
        let mut turned = Scratch::take(count * DEPTH);
        let mut session = pairs.session();
        for from in (0..self.width).step_by(DEPTH) {
            let depth = DEPTH.min(self.width - from);
            for (index, _) in used.iter().enumerate().filter(|(_, used)| **used) {
                let piece = self.table.piece(self.path, panels.start + index, from, depth, &mut scratch);
                let turn = TurnPairs { piece, depth, first: index * WORDS, count, to: &mut turned };
                self.path.run_rounding(turn);
            }
            for block in &packed.blocks {
                let dense = block.index.len() == count;
                for column in (0..depth).step_by(PANEL) {
                    // SAFETY: pairs lie inside their block of `turned`, and rows of the sums are padded to whole
                    // vectors.
                    unsafe {
                        session.tile(&PairTile {
                            rows: block.rows.len(),
                            columns: PANEL.min((depth - column).next_multiple_of(16)),
                            pairs: block.index.len(),
                            a: packed.weights[block.weights..].as_ptr().cast(),
                            a_rows: block.rows.len(),
                            b: turned[column * count..].as_ptr().cast(),
                            b_stride: PANEL,
                            index: if dense { std::ptr::null() } else { block.index.as_ptr() },
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
    pub(in crate::cpu::sweep) fn finish(&self, row: usize, sum: f32, out: &mut [f32]) {
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

/// The weights of a tile in blocks of rows, as pairs of bf16.
struct Packed<'a> {
    pairs: Pairs,
    /// Pairs of a row.
    count: usize,
    /// `[rows, pairs]` words.
    words: &'a [f32],
    /// What blocks point into.
    weights: Scratch,
    blocks: Vec<Block>,
}

/// The pairs of a tile that at least one row of a block gives weight to.
struct Block {
    rows: Range<usize>,
    /// Which pairs, ascending.
    index: Vec<u32>,
    /// Where its words `[steps, rows, 16]` begin.
    weights: usize,
}

impl Packed<'_> {
    fn fill(&mut self, rows: usize) {
        let (most, granule) = (self.pairs.most(), self.pairs.granule());
        let mut any = vec![0; self.count];
        for index in 0..rows.div_ceil(most) {
            let rows = row_block(rows, most, index);
            any.fill(0);
            let mut total = 0;
            for row in rows.clone() {
                for (any, word) in any.iter_mut().zip(self.row(row)) {
                    *any |= word.to_bits();
                    total += usize::from(word.to_bits() != 0);
                }
            }
            for granule in any.chunks_mut(granule) {
                let together = granule.iter().fold(0, |all, any| all | any);
                granule.fill(together);
            }
            let union: Vec<u32> = (0..self.count as u32).filter(|&pair| any[pair as usize] != 0).collect();
            // A tile of one row costs about twice as much per term as a tile of many; with AMX, as much as one of 16.
            if granule == 1 && 2 * total < union.len() * rows.len() {
                for row in rows {
                    let own = (0..).zip(self.row(row)).filter(|(_, word)| word.to_bits() != 0);
                    let own: Vec<u32> = own.map(|(pair, _)| pair).collect();
                    self.push(row..row + 1, own);
                }
            } else {
                self.push(rows, union);
            }
        }
    }

    fn row(&self, row: usize) -> &[f32] {
        &self.words[row * self.count..][..self.count]
    }

    fn push(&mut self, rows: Range<usize>, index: Vec<u32>) {
        if index.is_empty() {
            return;
        }
        let begin = self
            .blocks
            .last()
            .map_or(0, |last| last.weights + last.index.len().next_multiple_of(WORDS) * last.rows.len());
        let length = index.len().next_multiple_of(WORDS) * rows.len();
        let to = &mut self.weights[begin..begin + length];
        for (r, row) in rows.clone().enumerate() {
            let from = &self.words[row * self.count..][..self.count];
            for (step, index) in index.chunks(WORDS).enumerate() {
                let to = &mut to[(step * rows.len() + r) * WORDS..][..WORDS];
                to.fill(0.0);
                for (to, &pair) in to.iter_mut().zip(index) {
                    *to = from[pair as usize];
                }
            }
        }
        self.blocks.push(Block { rows, index, weights: begin });
    }
}

/// Turns a piece `[depth, 32]` of the table into pairs `first .. first + 16` of blocks of 32 columns,
/// `[depth / 32, count, 32]`: entries 2i and 2i + 1 of the panel, as bf16, in one word.
struct TurnPairs<'a> {
    piece: &'a [f32],
    depth: usize,
    first: usize,
    count: usize,
    to: &'a mut [f32],
}

impl Task for TurnPairs<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let TurnPairs { piece, depth, first, count, to } = self;
        let place = |k: usize, pair: usize| (k / PANEL * count + first + pair) * PANEL + k % PANEL;
        assert!(
            piece.len() >= depth * PANEL && to.len() >= depth.next_multiple_of(PANEL) * count && first + WORDS <= count
        );
        // Sixteen inputs at a time: 16 words each, in lines of 32.
        let mut words = [0f32; 16 * PANEL];
        for k in (0..depth).step_by(16) {
            let inputs = 16.min(depth - k);
            for r in 0..inputs {
                for lane in (0..PANEL).step_by(S::LANES) {
                    // SAFETY: input k + r of the piece, to 32 halves of line r.
                    unsafe {
                        let x = s.load(piece.as_ptr().add((k + r) * PANEL + lane));
                        s.store_bf16(words.as_mut_ptr().cast::<u16>().add(2 * r * PANEL + lane), x);
                    }
                }
            }
            if inputs == 16 {
                // SAFETY: sixteen lines, to sixteen pairs of one block; checked above.
                unsafe { s.turn(words.as_ptr(), to.as_mut_ptr().add(place(k, 0))) };
            } else {
                for r in 0..inputs {
                    for pair in 0..WORDS {
                        to[place(k + r, pair)] = words[r * PANEL + pair];
                    }
                }
            }
        }
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

//! Activation rows in the order in which a product reads them, and their product with panels of a matrix.

use std::ops::Range;

use super::{
    bytes::Vnni,
    coarse::{COARSE_ROWS, Coarse, CoarseTile, GROUP, RoundRow, RowParts},
    layout::{DEPTH, PANEL, WORDS, row_block},
    memory::{Scratch, ask},
    pack::PackedMatrix,
    pairs::{PairTile, Pairs, RoundPairs, pair_width},
    path::Checked,
    tile::{Start, Tile},
};

/// How activation rows lie before a product.
#[derive(Debug, Clone, Copy)]
pub(super) enum Operand {
    /// Floats, for register tiles of [`Checked::tile`].
    Floats(Checked),
    /// Rounded to bf16, for those of [`Pairs`].
    Pairs(Checked, Pairs),
    /// Rounded to bytes, for those of [`Vnni::coarse`].
    Coarse(Checked, Vnni),
}

impl Operand {
    /// Most rows of a block.
    pub(super) fn most(self) -> usize {
        match self {
            Operand::Floats(path) => path.tile_rows(),
            Operand::Pairs(_, pairs) => pairs.most(),
            Operand::Coarse(..) => COARSE_ROWS,
        }
    }

    /// Floats that a packed row of `k` inputs takes.
    pub(super) fn width(self, k: usize) -> usize {
        match self {
            Operand::Floats(_) => k,
            Operand::Pairs(..) => pair_width(k),
            Operand::Coarse(..) => RowParts::width(k),
        }
    }

    /// Packs rows `block` (`row(i)` finds row i, of `k` inputs) into the block's place.
    pub(super) fn pack_block<'a>(
        self,
        block: Range<usize>,
        k: usize,
        row: impl Fn(usize) -> &'a [f32],
        to: &mut [f32],
    ) {
        let rows = block.len();
        for (r, i) in block.enumerate() {
            let x = &row(i)[..k];
            match self {
                Operand::Floats(_) => {
                    for (to, &value) in to[r..].iter_mut().step_by(rows).zip(x) {
                        *to = value;
                    }
                }
                Operand::Pairs(path, _) => path.run_rounding(RoundPairs { x, to, rows, row: r }),
                Operand::Coarse(path, _) => path.run(RoundRow { x, to, rows, row: r }),
            }
        }
    }

    /// Packs all rows on this thread; `to` holds `rows · width(k)` floats.
    pub(super) fn pack<'a>(self, rows: usize, k: usize, row: impl Fn(usize) -> &'a [f32], to: &mut [f32]) {
        let width = self.width(k);
        for index in 0..rows.div_ceil(self.most()) {
            let block = row_block(rows, self.most(), index);
            self.pack_block(block.clone(), k, &row, &mut to[block.start * width..block.end * width]);
        }
    }
}

/// Activation rows in tile order, block after block.
pub(super) struct PackedRows<'a> {
    pub operand: Operand,
    pub data: &'a [f32],
    pub rows: usize,
    pub k: usize,
}

/// Where a product goes: row r, panel p (counted from the first) begins at `out + r·stride + 32·p`.
#[derive(Clone, Copy)]
struct To {
    out: *mut f32,
    stride: usize,
}

impl To {
    /// Where rows from `row` on of a panel begin.
    ///
    /// # Safety
    /// Inside what `out` points at.
    unsafe fn at(self, row: usize, panel: usize) -> *mut f32 {
        // SAFETY: the caller's promise.
        unsafe { self.out.add(row * self.stride + panel * PANEL) }
    }
}

impl PackedRows<'_> {
    /// The product with some panels of `weight`: `out[row · stride + 32·(panel − first) + column]`.
    ///
    /// # Safety
    /// `out` must have room for whole panels in every row, and nobody else may touch that room.
    pub(super) unsafe fn times(&self, weight: &PackedMatrix, panels: Range<usize>, out: *mut f32, stride: usize) {
        debug_assert!(self.data.len() >= self.rows * self.operand.width(self.k) && weight.inputs() == self.k);
        let to = To { out, stride };
        // SAFETY: the caller's promise.
        unsafe {
            match (self.operand, weight.coarse()) {
                (Operand::Coarse(_, vnni), Some(coarse)) => self.coarse(vnni, coarse, panels, to),
                (Operand::Pairs(path, pairs), _) => self.pairs(path, pairs, weight, panels, to),
                (Operand::Floats(path), _) => self.floats(path, weight, panels, to),
                (Operand::Coarse(..), None) => unreachable!("rows are packed for their matrix"),
            }
        }
    }

    /// Pieces of the product, each some inputs of a panel, that stay in the first cache level. Few rows stay in the
    /// second one, so that the matrix can be read straight through; many are read piece by piece for all panels. For
    /// each element of the product the inputs come in the same order.
    fn pieces(&self, panels: Range<usize>) -> impl Iterator<Item = (Range<usize>, usize)> {
        const FEW: usize = 48;
        let (k, depths, count) = (self.k, self.k.div_ceil(DEPTH), panels.len());
        let few = self.rows <= FEW;
        (0..depths * count).map(move |index| {
            let (depth, panel) = if few { (index % depths, index / depths) } else { (index / count, index % count) };
            (depth * DEPTH..k.min((depth + 1) * DEPTH), panels.start + panel)
        })
    }

    /// # Safety
    /// As for [`PackedRows::times`].
    unsafe fn floats(&self, path: Checked, weight: &PackedMatrix, panels: Range<usize>, to: To) {
        let most = self.operand.most();
        let mut scratch = Scratch::take(DEPTH * PANEL);
        for (depth, panel) in self.pieces(panels.clone()) {
            let piece = weight.piece(path, panel, depth.start, depth.len(), &mut scratch);
            for index in 0..self.rows.div_ceil(most) {
                let block = row_block(self.rows, most, index);
                let a = &self.data[block.start * self.k + depth.start * block.len()..][..depth.len() * block.len()];
                // SAFETY: A and B are as long as the slices taken; C is the caller's promise.
                unsafe {
                    path.tile(&Tile {
                        rows: block.len(),
                        columns: PANEL,
                        k: depth.len(),
                        a: a.as_ptr(),
                        a_stride: block.len(),
                        b: piece.as_ptr(),
                        b_stride: PANEL,
                        index: std::ptr::null(),
                        c: to.at(block.start, panel - panels.start),
                        c_stride: to.stride,
                        start: if depth.start == 0 { Start::Zero } else { Start::Add },
                    });
                }
            }
        }
    }

    /// # Safety
    /// As for [`PackedRows::times`].
    unsafe fn pairs(&self, path: Checked, pairs: Pairs, weight: &PackedMatrix, panels: Range<usize>, to: To) {
        let (most, width) = (pairs.most(), pair_width(self.k));
        let mut scratch = Scratch::take(DEPTH / 2 * PANEL);
        let mut session = pairs.session();
        let mut next = self.pieces(panels.clone()).skip(1);
        for (depth, panel) in self.pieces(panels.clone()) {
            let words = depth.len().div_ceil(2);
            let step = depth.start / (2 * WORDS);
            let piece = weight.pairs(path, pairs.granule(), panel, depth.start, depth.len(), &mut scratch);
            if let (Some((depth, panel)), Some(strips)) = (next.next(), weight.strips()) {
                strips.prefetch(panel, depth);
            }
            for index in 0..self.rows.div_ceil(most) {
                let block = row_block(self.rows, most, index);
                let a = &self.data[block.start * width + step * block.len() * WORDS..];
                debug_assert!(a.len() >= words.next_multiple_of(WORDS) * block.len());
                // SAFETY: A and B are as long as the slices taken; C is the caller's promise.
                unsafe {
                    session.tile(&PairTile {
                        rows: block.len(),
                        columns: PANEL,
                        pairs: words,
                        a: a.as_ptr().cast(),
                        a_rows: block.len(),
                        b: piece,
                        b_stride: PANEL,
                        index: std::ptr::null(),
                        c: to.at(block.start, panel - panels.start),
                        c_stride: to.stride,
                        start: if depth.start == 0 { Start::Zero } else { Start::Add },
                    });
                }
            }
        }
    }

    /// Panel by panel, so that the matrix is read straight through, 256 inputs after 256 inputs, block of rows after block
    /// of rows. The rows and the sums of a panel stay in the second cache level, 256 inputs of a panel in the first.
    ///
    /// # Safety
    /// As for [`PackedRows::times`].
    unsafe fn coarse(&self, vnni: Vnni, coarse: &Coarse, panels: Range<usize>, to: To) {
        let (k, width) = (self.k, RowParts::width(self.k));
        let last = k.div_ceil(GROUP) - 1;
        let mut sums = Scratch::take(self.rows * PANEL);
        let mut scratch = Scratch::take(GROUP / 4 * PANEL);
        for panel in panels.clone() {
            for group in 0..=last {
                let inputs = group * GROUP..k.min((group + 1) * GROUP);
                let words = coarse.read(Some(vnni), panel, inputs.clone(), &mut scratch);
                let next = if group < last {
                    coarse.lines(panel, inputs.end..k.min(inputs.end + GROUP))
                } else if panel + 1 < panels.end {
                    coarse.lines(panel + 1, 0..k.min(GROUP))
                } else {
                    &[]
                };
                let blocks = self.rows.div_ceil(COARSE_ROWS);
                // A share before each block, lest more be asked for at once than can be on its way.
                let mut next = next.chunks(next.len().div_ceil(blocks).next_multiple_of(64).max(64));
                for index in 0..blocks {
                    ask(next.next().unwrap_or(&[]));
                    let block = row_block(self.rows, COARSE_ROWS, index);
                    let rows = block.len();
                    let x = &self.data[block.start * width..block.end * width];
                    let parts = RowParts::of(k, rows);
                    let own = sums[block.start * PANEL..block.end * PANEL].as_mut_ptr();
                    // SAFETY: a packed block holds every part for all of k; C is the caller's promise, or `own`.
                    unsafe {
                        let (c, c_stride) = match group == last {
                            true => (to.at(block.start, panel - panels.start), to.stride),
                            false => (own, PANEL),
                        };
                        vnni.coarse(&CoarseTile {
                            rows,
                            words: inputs.len().div_ceil(4),
                            x: x[inputs.start / 4 * rows..].as_ptr().cast(),
                            x_scales: x[parts.scales + group * rows..].as_ptr(),
                            x_sums: x[parts.sums + group * rows..].as_ptr().cast(),
                            w: words.as_ptr(),
                            w_scales: coarse.scales(panel, group).as_ptr(),
                            b: if group > 0 { own } else { std::ptr::null() },
                            c,
                            c_stride,
                        });
                    }
                }
            }
        }
    }
}

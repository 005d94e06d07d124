//! Products of activation rows with packed matrices.

use std::ops::Range;

use super::{
    Cpu,
    memory::{Scratch, Shared},
    pack::{Columns, DEPTH, PANEL, PackedMatrix},
    path::Checked,
    rows::GatedGelu,
    tile::{Start, Tile},
};
use crate::kernels::KernelError;

/// Products smaller than this many multiply-adds run on the calling thread: waking others would cost more.
const SMALL: usize = 1 << 17;

/// Rows `0 .. rows` cut into blocks of at most `most`, sizes as equal as possible; gives block `index`.
pub(super) fn row_block(rows: usize, most: usize, index: usize) -> Range<usize> {
    let blocks = rows.div_ceil(most).max(1);
    rows * index / blocks..rows * (index + 1) / blocks
}

/// Activation rows in tile order: block after block, each `[k, rows of the block]`.
pub(super) struct PackedRows<'a> {
    pub data: &'a [f32],
    pub rows: usize,
    pub k: usize,
}

/// Writes rows `block` of `x` (`row(i)` finds row i) in tile order.
pub(super) fn pack_block<'a>(block: Range<usize>, k: usize, row: impl Fn(usize) -> &'a [f32], to: &mut [f32]) {
    let count = block.len();
    for (r, i) in block.enumerate() {
        for (to, &value) in to[r..].iter_mut().step_by(count).zip(&row(i)[..k]) {
            *to = value;
        }
    }
}

impl PackedRows<'_> {
    /// Packs all rows on this thread.
    pub(super) fn pack<'a>(path: Checked, rows: usize, k: usize, row: impl Fn(usize) -> &'a [f32], to: &mut [f32]) {
        let most = path.tile_rows();
        for index in 0..rows.div_ceil(most) {
            let block = row_block(rows, most, index);
            pack_block(block.clone(), k, &row, &mut to[block.start * k..block.end * k]);
        }
    }

    /// The product with some panels of `weight`: `out[row · stride + 32·(panel − first) + column]`.
    ///
    /// # Safety
    /// `out` must have room for whole panels in every row, and nobody else may touch that room.
    pub(super) unsafe fn times(
        &self,
        path: Checked,
        weight: &PackedMatrix,
        panels: Range<usize>,
        out: *mut f32,
        stride: usize,
    ) {
        let mut scratch = Scratch::take(DEPTH * PANEL);
        let most = path.tile_rows();
        for from in (0..self.k).step_by(DEPTH) {
            let depth = DEPTH.min(self.k - from);
            for panel in panels.clone() {
                let piece = weight.piece(panel, from, depth, &mut scratch);
                for index in 0..self.rows.div_ceil(most) {
                    let block = row_block(self.rows, most, index);
                    let a = &self.data[block.start * self.k + from * block.len()..][..depth * block.len()];
                    // SAFETY: A and B are as long as the slices taken; C is the caller's promise.
                    unsafe {
                        path.tile(&Tile {
                            rows: block.len(),
                            columns: PANEL,
                            k: depth,
                            a: a.as_ptr(),
                            a_stride: block.len(),
                            b: piece.as_ptr(),
                            b_stride: PANEL,
                            index: std::ptr::null(),
                            c: out.add(block.start * stride + (panel - panels.start) * PANEL),
                            c_stride: stride,
                            start: if from == 0 { Start::Zero } else { Start::Add },
                        });
                    }
                }
            }
        }
    }
}

impl Cpu {
    /// `out[rows, outputs] = x[rows, inputs] · Wᵀ`, or `gelu_tanh(x·Gᵀ) ⊙ (x·Uᵀ)` for a gated matrix. The number of
    /// rows follows from the lengths. Every element is one sum in the order of the inputs: a row's bits do not depend
    /// on the other rows, their number or the threads.
    pub fn matmul(&self, x: &[f32], weight: &PackedMatrix, out: &mut [f32]) -> Result<(), KernelError> {
        let (k, n) = (weight.inputs(), weight.outputs());
        if k == 0 || n == 0 {
            out.fill(0.0);
            return Ok(());
        }
        let rows = x.len() / k;
        KernelError::expect("activations of a product", rows * k, x.len())?;
        KernelError::expect("results of a product", rows * n, out.len())?;
        if rows == 0 {
            return Ok(());
        }
        let path = self.checked();
        let mut packed = Scratch::take(rows * k);
        self.pack_rows(x, rows, k, &mut packed)?;
        let packed = PackedRows { data: &packed, rows, k };
        let panels = weight.panels();
        let chunk = if rows * n * k < SMALL { panels } else { self.chunk(panels) };
        let to = Shared::new(out);
        self.pool().run(panels.div_ceil(chunk), |index| {
            let panels = index * chunk..panels.min((index + 1) * chunk);
            let direct = weight.columns() == Columns::Plain && panels.end * PANEL <= n;
            if direct {
                // SAFETY: chunks are disjoint column ranges inside the n columns of `out`.
                unsafe { packed.times(path, weight, panels.clone(), to.get().add(panels.start * PANEL), n) };
                return;
            }
            let width = panels.len() * PANEL;
            let mut room = Scratch::take(rows * width);
            // SAFETY: `room` belongs to this call and holds whole panels.
            unsafe { packed.times(path, weight, panels.clone(), room.as_mut_ptr(), width) };
            let (first, panel_width) = match weight.columns() {
                Columns::Plain => (panels.start * PANEL, PANEL),
                Columns::Gated => (panels.start * PANEL / 2, PANEL / 2),
            };
            let columns = (panels.len() * panel_width).min(n - first);
            for row in 0..rows {
                let from = &mut room[row * width..][..width];
                if weight.columns() == Columns::Gated {
                    path.run(GatedGelu { panels: from });
                }
                // SAFETY: columns `first .. first + columns` of `out` belong to this chunk.
                unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), to.get().add(row * n + first), columns) };
            }
        })
    }

    /// Packs rows `[rows, k]` in tile order, on all threads.
    pub(super) fn pack_rows(&self, x: &[f32], rows: usize, k: usize, to: &mut [f32]) -> Result<(), KernelError> {
        let most = self.checked().tile_rows();
        let blocks = rows.div_ceil(most);
        let to = Shared::new(to);
        let group = if rows * k < SMALL / 4 { blocks } else { 4 };
        self.pool().run(blocks.div_ceil(group), |index| {
            for index in index * group..blocks.min((index + 1) * group) {
                let block = row_block(rows, most, index);
                // SAFETY: blocks are disjoint ranges of rows.
                let to = unsafe { std::slice::from_raw_parts_mut(to.get().add(block.start * k), block.len() * k) };
                pack_block(block, k, |row| &x[row * k..][..k], to);
            }
        })
    }

    /// Panels that one call of a parallel loop takes: enough calls to balance the threads, and no more.
    pub(super) fn chunk(&self, panels: usize) -> usize {
        (panels / (4 * self.threads())).clamp(1, 16)
    }
}

/// Runs a task per row in parallel groups; for element-wise work.
pub(super) fn each_row(cpu: &Cpu, rows: usize, width: usize, work: impl Fn(usize) + Sync) -> Result<(), KernelError> {
    let group = (SMALL / 4 / width.max(1)).max(1);
    cpu.pool().run(rows.div_ceil(group), |index| (index * group..rows.min((index + 1) * group)).for_each(&work))
}

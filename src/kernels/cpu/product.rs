//! Products of activation rows with packed matrices.

use std::ops::Range;

use super::{
    Cpu,
    bytes::{BYTE_ROWS, ByteTile, Round, Vnni, packed_width, parts},
    memory::{Scratch, Shared},
    pack::{Columns, DEPTH, PANEL, PackedMatrix},
    path::Checked,
    rows::GatedGelu,
    strips::Strips,
    tile::{Start, Tile},
};
use crate::KernelError;

/// Products smaller than this many multiply-adds run on the calling thread: waking others would cost more.
const SMALL: usize = 1 << 17;

/// Rows `0 .. rows` cut into blocks of at most `most`, sizes as equal as possible; gives block `index`.
pub(super) fn row_block(rows: usize, most: usize, index: usize) -> Range<usize> {
    let blocks = rows.div_ceil(most).max(1);
    rows * index / blocks..rows * (index + 1) / blocks
}

/// How activation rows lie before a product.
#[derive(Debug, Clone, Copy)]
pub(super) enum Operand {
    /// Floats, for register tiles of [`Checked::tile`].
    Floats(Checked),
    /// Rounded to bytes, for those of [`Vnni::tile`].
    Bytes(Checked, Vnni),
}

impl Operand {
    /// Most rows of a block.
    pub(super) fn most(self) -> usize {
        match self {
            Operand::Floats(path) => path.tile_rows(),
            Operand::Bytes(..) => BYTE_ROWS,
        }
    }

    /// Floats that a packed row of `k` inputs takes.
    pub(super) fn width(self, k: usize) -> usize {
        match self {
            Operand::Floats(_) => k,
            Operand::Bytes(..) => packed_width(k),
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
            match self {
                Operand::Floats(_) => {
                    for (to, &value) in to[r..].iter_mut().step_by(rows).zip(&row(i)[..k]) {
                        *to = value;
                    }
                }
                Operand::Bytes(path, _) => path.run(Round { x: &row(i)[..k], to, rows, row: r }),
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

impl PackedRows<'_> {
    /// The product with some panels of `weight`: `out[row · stride + 32·(panel − first) + column]`.
    ///
    /// # Safety
    /// `out` must have room for whole panels in every row, and nobody else may touch that room.
    pub(super) unsafe fn times(&self, weight: &PackedMatrix, panels: Range<usize>, out: *mut f32, stride: usize) {
        debug_assert!(self.data.len() >= self.rows * self.operand.width(self.k) && weight.inputs() == self.k);
        for from in (0..self.k).step_by(DEPTH) {
            let depth = from..self.k.min(from + DEPTH);
            // SAFETY: the caller's promise.
            unsafe {
                match (self.operand, weight.strips()) {
                    (Operand::Bytes(path, vnni), Some(strips)) => {
                        self.bytes(path, vnni, strips, panels.clone(), depth, out, stride)
                    }
                    (Operand::Floats(path) | Operand::Bytes(path, _), _) => {
                        self.floats(path, weight, panels.clone(), depth, out, stride)
                    }
                }
            }
        }
    }

    /// Adds inputs `depth` of every panel.
    ///
    /// # Safety
    /// As for [`PackedRows::times`].
    unsafe fn floats(
        &self,
        path: Checked,
        weight: &PackedMatrix,
        panels: Range<usize>,
        depth: Range<usize>,
        out: *mut f32,
        stride: usize,
    ) {
        let most = self.operand.most();
        let mut scratch = Scratch::take(DEPTH * PANEL);
        for panel in panels.clone() {
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
                        c: out.add(block.start * stride + (panel - panels.start) * PANEL),
                        c_stride: stride,
                        start: if depth.start == 0 { Start::Zero } else { Start::Add },
                    });
                }
            }
        }
    }

    /// Adds inputs `depth` of every panel, in bytes.
    ///
    /// # Safety
    /// As for [`PackedRows::times`].
    #[allow(clippy::too_many_arguments)]
    unsafe fn bytes(
        &self,
        path: Checked,
        vnni: Vnni,
        strips: &Strips,
        panels: Range<usize>,
        depth: Range<usize>,
        out: *mut f32,
        stride: usize,
    ) {
        let (group, width) = (strips.group(), self.operand.width(self.k));
        let mut w = Scratch::take(DEPTH / 4 * PANEL);
        let mut w_scales = Scratch::take(DEPTH / 16 * PANEL);
        let mut w_offsets = Scratch::take(DEPTH / 16 * PANEL);
        for panel in panels.clone() {
            path.run(strips.units(panel, depth.start, depth.len(), (&mut w, &mut w_scales, &mut w_offsets)));
            for index in 0..self.rows.div_ceil(BYTE_ROWS) {
                let block = row_block(self.rows, BYTE_ROWS, index);
                let rows = block.len();
                let x = &self.data[block.start * width..block.end * width];
                let (scales, sums16, sums32) = parts(self.k, rows);
                let sums = if group == 16 { sums16 } else { sums32 };
                // SAFETY: a packed block holds every part for all of k; the pieces of w are as long as `units` wrote
                // them; C is the caller's promise.
                unsafe {
                    vnni.tile(&ByteTile {
                        rows,
                        groups: depth.len() / group,
                        group,
                        x: x[depth.start / 4 * rows..].as_ptr(),
                        x_scales: x[scales + depth.start / 32 * rows..].as_ptr(),
                        x_sums: x[sums + depth.start / group * rows..].as_ptr(),
                        w: w.as_ptr(),
                        w_scales: w_scales.as_ptr(),
                        w_offsets: w_offsets.as_ptr(),
                        c: out.add(block.start * stride + (panel - panels.start) * PANEL),
                        c_stride: stride,
                        add: depth.start > 0,
                    });
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
        let operand = self.operand(weight);
        let mut packed = Scratch::take(rows * operand.width(k));
        self.pack_rows(operand, x, rows, k, &mut packed)?;
        let packed = PackedRows { operand, data: &packed, rows, k };
        let panels = weight.panels();
        let chunk = if rows * n * k < SMALL { panels } else { self.chunk(panels) };
        let to = Shared::new(out);
        self.pool().run(panels.div_ceil(chunk), |index| {
            let panels = index * chunk..panels.min((index + 1) * chunk);
            let direct = weight.columns() == Columns::Plain && panels.end * PANEL <= n;
            if direct {
                // SAFETY: chunks are disjoint column ranges inside the n columns of `out`.
                unsafe { packed.times(weight, panels.clone(), to.get().add(panels.start * PANEL), n) };
                return;
            }
            let width = panels.len() * PANEL;
            let mut room = Scratch::take(rows * width);
            // SAFETY: `room` belongs to this call and holds whole panels.
            unsafe { packed.times(weight, panels.clone(), room.as_mut_ptr(), width) };
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

    /// How activations must lie for products with `weight`.
    pub(super) fn operand(&self, weight: &PackedMatrix) -> Operand {
        match (self.bytes, weight.strips()) {
            (Some(vnni), Some(_)) => Operand::Bytes(self.checked(), vnni),
            _ => Operand::Floats(self.checked()),
        }
    }

    /// Packs rows `[rows, k]` in tile order, on all threads.
    fn pack_rows(&self, operand: Operand, x: &[f32], rows: usize, k: usize, to: &mut [f32]) -> Result<(), KernelError> {
        let (most, width) = (operand.most(), operand.width(k));
        let blocks = rows.div_ceil(most);
        let to = Shared::new(to);
        let group = if rows * k < SMALL / 4 { blocks } else { 4 };
        self.pool().run(blocks.div_ceil(group), |index| {
            for index in index * group..blocks.min((index + 1) * group) {
                let block = row_block(rows, most, index);
                // SAFETY: blocks are disjoint ranges of rows.
                let to =
                    unsafe { std::slice::from_raw_parts_mut(to.get().add(block.start * width), block.len() * width) };
                operand.pack_block(block, k, |row| &x[row * k..][..k], to);
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

//! Products of activation rows with packed matrices.

use super::{
    Cpu,
    layout::{PANEL, row_block},
    memory::{Scratch, Shared},
    operand::{Operand, PackedRows},
    pack::{Columns, Kind, PackedMatrix},
    pool::SMALL,
    rows::GatedGelu,
};
use crate::KernelError;

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
        let path = self.checked();
        match (weight.kind(), self.engines.bytes, self.engines.pairs) {
            (Kind::Coarse, Some(vnni), _) => Operand::Coarse(path, vnni),
            (Kind::Coarse | Kind::Blocks | Kind::Bf16, _, Some(pairs)) => Operand::Pairs(path, pairs),
            _ => Operand::Floats(path),
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
                let to = unsafe { to.part(block.start * width, block.len() * width) };
                operand.pack_block(block, k, |row| &x[row * k..][..k], to);
            }
        })
    }

    /// Panels that one call of a parallel loop takes: enough calls to balance the threads, and no more.
    pub(super) fn chunk(&self, panels: usize) -> usize {
        (panels / (4 * self.threads())).clamp(1, 16)
    }
}

//! What all work on single rows shares: how threads take them, how many there are, and the gated activation.

use super::{Cpu, math::gelu, path::Task, pool::SMALL, simd::Simd};
use crate::KernelError;

/// Runs a task per row in parallel groups; for element-wise work.
pub(super) fn each_row(cpu: &Cpu, rows: usize, width: usize, work: impl Fn(usize) + Sync) -> Result<(), KernelError> {
    let group = (SMALL / 4 / width.max(1)).max(1);
    cpu.pool().run(rows.div_ceil(group), |index| (index * group..rows.min((index + 1) * group)).for_each(&work))
}

/// How many rows of `width` make `length`.
pub(super) fn whole_rows(what: &'static str, length: usize, width: usize) -> Result<usize, KernelError> {
    let rows = length.checked_div(width).unwrap_or(0);
    KernelError::expect(what, rows * width, length)?;
    Ok(rows)
}

/// One row of gated panels, 16 gate and 16 up numbers each: leaves the activations at the row's start, 16 per panel.
pub(super) struct GatedGelu<'a> {
    pub panels: &'a mut [f32],
}

impl Task for GatedGelu<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let start = self.panels.as_mut_ptr();
        for panel in 0..self.panels.len() / 32 {
            for i in (0..16).step_by(S::LANES) {
                // SAFETY: inside the panel; results go to places whose inputs were read before.
                unsafe {
                    let gate = s.load(start.add(panel * 32 + i));
                    let up = s.load(start.add(panel * 32 + 16 + i));
                    s.store(start.add(panel * 16 + i), s.mul(gelu(s, gate), up));
                }
            }
        }
    }
}

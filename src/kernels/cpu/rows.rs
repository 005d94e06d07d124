//! Work on single rows: norms, rotation, activations. Each row's sums have one fixed order.

use super::{Cpu, math::gelu, memory::Shared, path::Task, pool::SMALL, simd::Simd};
use crate::KernelError;

impl Cpu {
    /// Root-mean-square norm of each row of `x[rows, width]`: `x · (mean(x²) + eps)^(−½)`, times `weight[width]` where
    /// given (as stored, no offset).
    pub fn rms_norm(
        &self,
        x: &[f32],
        width: usize,
        weight: Option<&[f32]>,
        eps: f32,
        out: &mut [f32],
    ) -> Result<(), KernelError> {
        KernelError::expect("results of a norm", x.len(), out.len())?;
        if let Some(weight) = weight {
            KernelError::expect("weights of a norm", width, weight.len())?;
        }
        let rows = whole_rows("activations of a norm", x.len(), width)?;
        let to = Shared::new(out);
        let path = self.checked();
        each_row(self, rows, width, |row| {
            // SAFETY: each row is written by one call.
            let out = unsafe { std::slice::from_raw_parts_mut(to.get().add(row * width), width) };
            path.run(RmsNorm { x: &x[row * width..][..width], weight, eps, out });
        })
    }

    /// Rotates `x[rows, heads, head_dim]` in place: with halves `x₁, x₂` of a head, pair j becomes
    /// `(x₁·cos − x₂·sin, x₂·cos + x₁·sin)` at angle `position · frequencies[j]`. `frequencies` has `head_dim / 2`
    /// entries; pairs of frequency zero stay as they are. `positions` has one entry per row.
    pub fn rope(&self, x: &mut [f32], heads: usize, positions: &[u32], frequencies: &[f32]) -> Result<(), KernelError> {
        let width = heads * frequencies.len() * 2;
        KernelError::expect("activations of a rotation", positions.len() * width, x.len())?;
        let half = frequencies.len();
        let to = Shared::new(x);
        // Sine and cosine cost some twenty times a rotation, so that rows count for more than their width.
        each_row(self, positions.len(), width + 32 * half, |row| {
            // SAFETY: each row is written by one call.
            let x = unsafe { std::slice::from_raw_parts_mut(to.get().add(row * width), width) };
            for (j, &frequency) in frequencies.iter().enumerate() {
                if frequency == 0.0 {
                    continue;
                }
                let (sin, cos) = (positions[row] as f32 * frequency).sin_cos();
                for head in x.chunks_exact_mut(2 * half) {
                    let (a, b) = (head[j], head[j + half]);
                    head[j] = a * cos - b * sin;
                    head[j + half] = b * cos + a * sin;
                }
            }
        })
    }
}

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

struct RmsNorm<'a> {
    x: &'a [f32],
    weight: Option<&'a [f32]>,
    eps: f32,
    out: &'a mut [f32],
}

impl Task for RmsNorm<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let RmsNorm { x, weight, eps, out } = self;
        let whole = x.len() / S::LANES * S::LANES;
        let mut sum = s.splat(0.0);
        for i in (0..whole).step_by(S::LANES) {
            // SAFETY: `i + LANES ≤ whole`.
            let v = unsafe { s.load(x.as_ptr().add(i)) };
            sum = s.fma(v, v, sum);
        }
        let mut squares = s.sum(sum);
        for value in &x[whole..] {
            squares += value * value;
        }
        let factor = 1.0 / (squares / x.len() as f32 + eps).sqrt();
        let scale = s.splat(factor);
        for i in (0..whole).step_by(S::LANES) {
            // SAFETY: all three slices have the length of `x`, and `i + LANES ≤ whole`.
            unsafe {
                let mut y = s.mul(s.load(x.as_ptr().add(i)), scale);
                if let Some(weight) = weight {
                    y = s.mul(y, s.load(weight.as_ptr().add(i)));
                }
                s.store(out.as_mut_ptr().add(i), y);
            }
        }
        for i in whole..x.len() {
            out[i] = x[i] * factor * weight.map_or(1.0, |weight| weight[i]);
        }
    }
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

//! Row-wise arithmetic between products, several steps in one visit of a row: what would otherwise read and write the
//! activations once per step. Threads take whole rows; a row's bits do not depend on the others.

use super::{
    Cpu, PackedMatrix,
    memory::Shared,
    path::Task,
    rows::{each_row, whole_rows},
    simd::Simd,
};
use crate::KernelError;

/// What a row is multiplied by after its norm; `None` leaves it at the norm.
pub type NormWeight<'a> = Option<&'a [f32]>;

/// The end of a layer: `(stream + norm(sum)) · scalar`, where `sum` is `dense` alone, or `norm(dense) + norm(mixture)`.
#[derive(Debug, Clone, Copy)]
pub struct LayerEnd<'a> {
    /// The residual stream `[rows, width]`.
    pub stream: &'a [f32],
    /// Results of the dense branch `[rows, width]`.
    pub dense: &'a [f32],
    /// Results of the mixture branch `[rows, width]`, and the weights of the two branches' norms: dense, mixture.
    pub mixture: Option<(&'a [f32], &'a [f32], &'a [f32])>,
    /// Weight of the norm of the sum.
    pub weight: &'a [f32],
    /// Added to the mean square of every norm.
    pub eps: f32,
    /// The factor of the first `split` rows, and that of the others.
    pub scalars: (f32, f32),
    /// How many rows take the first factor.
    pub split: usize,
}

impl Cpu {
    /// Root-mean-square norm of each row of `x[rows, width]`: `x · (mean(x²) + eps)^(−½)`, times `weight[width]` where
    /// given (as stored, no offset).
    pub fn rms_norm(
        &self,
        x: &[f32],
        width: usize,
        weight: NormWeight<'_>,
        eps: f32,
        out: &mut [f32],
    ) -> Result<(), KernelError> {
        self.rms_norms(x, width, [weight], eps, [out])
    }

    /// Several norms of the same rows `x[rows, width]`, that differ in their weights: one output each.
    pub fn rms_norms<const N: usize>(
        &self,
        x: &[f32],
        width: usize,
        weights: [NormWeight<'_>; N],
        eps: f32,
        outs: [&mut [f32]; N],
    ) -> Result<(), KernelError> {
        let rows = whole_rows("activations of a norm", x.len(), width)?;
        for (weight, out) in weights.iter().zip(&outs) {
            KernelError::expect("weights of a norm", width, weight.map_or(width, <[f32]>::len))?;
            KernelError::expect("results of a norm", x.len(), out.len())?;
        }
        let outs = outs.map(Shared::new);
        let path = self.checked();
        each_row(self, rows, width * N, |row| {
            let x = &x[row * width..][..width];
            let factor = path.run(Factor { x, eps });
            for (weight, out) in weights.iter().zip(outs) {
                // SAFETY: each row of each output is written by one call.
                let out = unsafe { out.part(row * width, width) };
                path.run(Scale { x, factor, weight: *weight, out });
            }
        })
    }

    /// `stream + norm(x) · weight`, all `[rows, width]`.
    pub fn add_norm(
        &self,
        stream: &[f32],
        x: &[f32],
        weight: &[f32],
        eps: f32,
        out: &mut [f32],
    ) -> Result<(), KernelError> {
        let width = weight.len();
        let rows = whole_rows("activations of a norm", x.len(), width)?;
        KernelError::expect("stream beside a norm", x.len(), stream.len())?;
        KernelError::expect("results of a norm", x.len(), out.len())?;
        let to = Shared::new(out);
        let path = self.checked();
        each_row(self, rows, width * 2, |row| {
            let part = row * width..(row + 1) * width;
            let x = &x[part.clone()];
            let factor = path.run(Factor { x, eps });
            // SAFETY: each row is written by one call.
            let out = unsafe { to.part(part.start, width) };
            path.run(AddScaled { stream: &stream[part], x, factor, weight, scalar: 1.0, out });
        })
    }

    /// The end of a layer, into `out[rows, width]`.
    pub fn layer_end(&self, end: LayerEnd<'_>, out: &mut [f32]) -> Result<(), KernelError> {
        let width = end.weight.len();
        let rows = whole_rows("the stream of a layer", end.stream.len(), width)?;
        KernelError::expect("results of the dense branch", end.stream.len(), end.dense.len())?;
        KernelError::expect("results of a layer", end.stream.len(), out.len())?;
        if let Some((mixture, first, second)) = end.mixture {
            KernelError::expect("results of the mixture branch", end.stream.len(), mixture.len())?;
            KernelError::expect("weights of a branch's norm", width, first.len())?;
            KernelError::expect("weights of a branch's norm", width, second.len())?;
        }
        let to = Shared::new(out);
        let path = self.checked();
        each_row(self, rows, width * 4, |row| {
            let part = row * width..(row + 1) * width;
            // SAFETY: each row is written by one call.
            let out = unsafe { to.part(part.start, width) };
            let dense = &end.dense[part.clone()];
            match end.mixture {
                None => out.copy_from_slice(dense),
                Some((mixture, first, second)) => {
                    let mixture = &mixture[part.clone()];
                    let factor = path.run(Factor { x: dense, eps: end.eps });
                    path.run(Scale { x: dense, factor, weight: Some(first), out });
                    let factor = path.run(Factor { x: mixture, eps: end.eps });
                    path.run(AddInPlace { x: mixture, factor, weight: second, out });
                }
            }
            let factor = path.run(Factor { x: out, eps: end.eps });
            let scalar = if row < end.split { end.scalars.0 } else { end.scalars.1 };
            path.run(EndRow { stream: &end.stream[part], factor, weight: end.weight, scalar, out });
        })
    }

    /// Norm of every head, then its rotation: `x[rows, heads, head_dim]` into `out`. `cos` and `sin` are
    /// `[rows, head_dim / 2]`; with halves `x₁, x₂` of a normed head, pair j becomes
    /// `(x₁·cos − x₂·sin, x₂·cos + x₁·sin)`.
    pub fn norm_rope(
        &self,
        x: &[f32],
        head_dim: usize,
        weight: NormWeight<'_>,
        eps: f32,
        (cos, sin): (&[f32], &[f32]),
        out: &mut [f32],
    ) -> Result<(), KernelError> {
        let half = head_dim / 2;
        KernelError::expect("width of a head, even", half * 2, head_dim)?;
        let rows = whole_rows("cosines of a rotation", cos.len(), half)?;
        KernelError::expect("sines of a rotation", cos.len(), sin.len())?;
        KernelError::expect("weights of a head's norm", head_dim, weight.map_or(head_dim, <[f32]>::len))?;
        KernelError::expect("results of a rotation", x.len(), out.len())?;
        let width = x.len().checked_div(rows).unwrap_or(0);
        KernelError::expect("heads to rotate", rows * width.checked_div(head_dim).unwrap_or(0) * head_dim, x.len())?;
        let to = Shared::new(out);
        let path = self.checked();
        each_row(self, rows, width * 3, |row| {
            let (cos, sin) = (&cos[row * half..][..half], &sin[row * half..][..half]);
            // SAFETY: each row is written by one call.
            let out = unsafe { to.part(row * width, width) };
            let heads = x[row * width..][..width].chunks_exact(head_dim);
            for (x, out) in heads.zip(out.chunks_exact_mut(head_dim)) {
                let factor = path.run(Factor { x, eps });
                path.run(Scale { x, factor, weight, out });
                let (first, second) = out.split_at_mut(half);
                path.run(Turn { first, second, cos, sin });
            }
        })
    }

    /// Rows `tokens` of a table `[entries, width]`, times `scale`, into `out[tokens, width]`.
    pub fn embed(&self, table: &PackedMatrix, tokens: &[u32], scale: f32, out: &mut [f32]) -> Result<(), KernelError> {
        let width = table.inputs();
        KernelError::expect("results of an embedding", tokens.len() * width, out.len())?;
        for &token in tokens {
            KernelError::below("token", token as usize, table.outputs())?;
        }
        let to = Shared::new(out);
        // Taking a number out of its block costs several times what adding it does.
        each_row(self, tokens.len(), width * 8, |row| {
            // SAFETY: each row is written by one call.
            let out = unsafe { to.part(row * width, width) };
            table.row(tokens[row] as usize, out).expect("token and width were checked");
            out.iter_mut().for_each(|x| *x *= scale);
        })
    }
}

/// `(mean(x²) + ε)^(−1/2)`.
struct Factor<'a> {
    x: &'a [f32],
    eps: f32,
}

impl Task for Factor<'_> {
    type Output = f32;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        let x = self.x;
        let whole = x.len() / S::LANES * S::LANES;
        let mut sum = s.splat(0.0);
        for i in (0..whole).step_by(S::LANES) {
            // SAFETY: `i + LANES ≤ whole`.
            let v = unsafe { s.load(x.as_ptr().add(i)) };
            sum = s.fma(v, v, sum);
        }
        let squares = x[whole..].iter().fold(s.sum(sum), |squares, value| squares + value * value);
        1.0 / (squares / x.len() as f32 + self.eps).sqrt()
    }
}

/// Calls `vector(i)` for whole vectors and `number(i)` for what is left.
macro_rules! along {
    ($s:ident, $length:expr, |$i:ident| $vector:expr, $number:expr) => {
        let whole = $length / S::LANES * S::LANES;
        for $i in (0..whole).step_by(S::LANES) {
            $vector
        }
        for $i in whole..$length {
            $number
        }
    };
}

/// `out = x · factor · weight`.
struct Scale<'a> {
    x: &'a [f32],
    factor: f32,
    weight: NormWeight<'a>,
    out: &'a mut [f32],
}

impl Task for Scale<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Scale { x, factor, weight, out } = self;
        debug_assert!(out.len() == x.len() && weight.is_none_or(|weight| weight.len() == x.len()));
        let scale = s.splat(factor);
        along!(
            s,
            x.len(),
            |i| {
                // SAFETY: all slices have the length of `x`, and a vector lies inside.
                unsafe {
                    let mut y = s.mul(s.load(x.as_ptr().add(i)), scale);
                    if let Some(weight) = weight {
                        y = s.mul(y, s.load(weight.as_ptr().add(i)));
                    }
                    s.store(out.as_mut_ptr().add(i), y);
                }
            },
            out[i] = x[i] * factor * weight.map_or(1.0, |weight| weight[i])
        );
    }
}

/// `out += x · factor · weight`.
struct AddInPlace<'a> {
    x: &'a [f32],
    factor: f32,
    weight: &'a [f32],
    out: &'a mut [f32],
}

impl Task for AddInPlace<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let AddInPlace { x, factor, weight, out } = self;
        debug_assert!(out.len() == x.len() && weight.len() == x.len());
        let scale = s.splat(factor);
        along!(
            s,
            x.len(),
            |i| {
                // SAFETY: all slices have the length of `x`, and a vector lies inside.
                unsafe {
                    let y = s.mul(s.mul(s.load(x.as_ptr().add(i)), scale), s.load(weight.as_ptr().add(i)));
                    let place = out.as_mut_ptr().add(i);
                    s.store(place, s.add(s.load(place), y));
                }
            },
            out[i] += x[i] * factor * weight[i]
        );
    }
}

/// `out = (stream + x · factor · weight) · scalar`.
struct AddScaled<'a> {
    stream: &'a [f32],
    x: &'a [f32],
    factor: f32,
    weight: &'a [f32],
    scalar: f32,
    out: &'a mut [f32],
}

impl Task for AddScaled<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let AddScaled { stream, x, factor, weight, scalar, out } = self;
        out.copy_from_slice(x);
        EndRow { stream, factor, weight, scalar, out }.run(s);
    }
}

/// `out = (stream + out · factor · weight) · scalar`.
struct EndRow<'a> {
    stream: &'a [f32],
    factor: f32,
    weight: &'a [f32],
    scalar: f32,
    out: &'a mut [f32],
}

impl Task for EndRow<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let EndRow { stream, factor, weight, scalar, out } = self;
        debug_assert!(out.len() == stream.len() && weight.len() == stream.len());
        let (scale, all) = (s.splat(factor), s.splat(scalar));
        along!(
            s,
            stream.len(),
            |i| {
                // SAFETY: all slices have the length of `stream`, and a vector lies inside.
                unsafe {
                    let place = out.as_mut_ptr().add(i);
                    let y = s.mul(s.mul(s.load(place), scale), s.load(weight.as_ptr().add(i)));
                    s.store(place, s.mul(s.add(s.load(stream.as_ptr().add(i)), y), all));
                }
            },
            out[i] = (stream[i] + out[i] * factor * weight[i]) * scalar
        );
    }
}

/// Rotates a head's halves against each other.
struct Turn<'a> {
    first: &'a mut [f32],
    second: &'a mut [f32],
    cos: &'a [f32],
    sin: &'a [f32],
}

impl Task for Turn<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Turn { first, second, cos, sin } = self;
        debug_assert!(second.len() == first.len() && cos.len() == first.len() && sin.len() == first.len());
        along!(
            s,
            first.len(),
            |i| {
                // SAFETY: all slices have one length, and a vector lies inside.
                unsafe {
                    let (a, b) = (s.load(first.as_ptr().add(i)), s.load(second.as_ptr().add(i)));
                    let (c, d) = (s.load(cos.as_ptr().add(i)), s.load(sin.as_ptr().add(i)));
                    s.store(first.as_mut_ptr().add(i), s.sub(s.mul(a, c), s.mul(b, d)));
                    s.store(second.as_mut_ptr().add(i), s.add(s.mul(b, c), s.mul(a, d)));
                }
            },
            (first[i], second[i]) = (first[i] * cos[i] - second[i] * sin[i], second[i] * cos[i] + first[i] * sin[i])
        );
    }
}

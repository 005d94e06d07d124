//! One transformer layer in both modes (the model's reference, sections 3.2 and 3.3).

use candle_core::{Result, Tensor};

use super::attention::{Attend, KvPool};
use super::backend::Backend;
use super::config::LayerKind;
use super::experts::{Experts, Router};
use super::linear::{Linear, Mlp};
use super::norm::{Angles, RmsNorm};
use super::plan::Plan;

/// Weights of one layer.
pub(super) struct Layer {
    pub kind: LayerKind,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub q: Linear,
    pub k: Linear,
    /// `None` on full layers, whose values are the raw keys.
    pub v: Option<Linear>,
    pub o: Linear,
    pub q_norm: RmsNorm,
    pub k_norm: RmsNorm,
    /// Unweighted.
    pub v_norm: RmsNorm,
    pub input_norm: RmsNorm,
    pub post_attention_norm: RmsNorm,
    pub pre_feedforward_norm: RmsNorm,
    pub post_feedforward_norm: RmsNorm,
    pub mlp: Mlp,
    pub mixture: Option<Mixture>,
    /// The stream's factor in encoder mode.
    pub encoder_scalar: f32,
    /// The stream's factor in decoder mode.
    pub decoder_scalar: f32,
}

/// The mixture branch beside the dense MLP.
pub(super) struct Mixture {
    pub router: Router,
    pub experts: Experts,
    /// `pre_feedforward_layernorm_2`, before the experts.
    pub pre_norm: RmsNorm,
    /// `post_feedforward_layernorm_1`, after the dense MLP.
    pub dense_norm: RmsNorm,
    /// `post_feedforward_layernorm_2`, after the experts.
    pub post_norm: RmsNorm,
}

/// What a layer needs beside its weights.
pub(super) struct Context<'a> {
    pub backend: &'a Backend,
    pub plan: &'a Plan<'a>,
    pub window: usize,
    pub angles: &'a Angles,
    /// The first row whose output is wanted: 0, or the first denoise row in the last layer.
    pub first_wanted: usize,
}

impl Layer {
    /// `x [rows, hidden]` to the stream of the rows from `first_wanted` on, or `None` if there are none. Writes the
    /// encode rows' keys and values before any row attends.
    pub fn forward(&self, x: &Tensor, pool: &mut KvPool, context: &Context<'_>) -> Result<Option<Tensor>> {
        let rows = x.dim(0)?;
        let y = self.input_norm.forward(x)?;
        let k = self.k.forward(&y)?.reshape((rows, self.kv_heads, self.head_dim))?;
        let v = match &self.v {
            Some(v) => self.v_norm.forward(&v.forward(&y)?.reshape((rows, self.kv_heads, self.head_dim))?)?,
            None => self.v_norm.forward(&k)?,
        };
        let k = self.k_norm.rotated(&k, context.angles)?;
        pool.write(context.backend, self.kind, context.plan, &k, &v)?;

        let first = context.first_wanted;
        if first == rows {
            return Ok(None);
        }
        let wanted =
            |t: &Tensor| if first == 0 { Ok(t.clone()) } else { t.narrow(0, first, rows - first)?.contiguous() };
        let (x, y) = (wanted(x)?, wanted(&y)?);
        let angles = if first == 0 { None } else { Some(context.angles.from(first)?) };
        let q = self.q.forward(&y)?.reshape((rows - first, self.heads, self.head_dim))?;
        let q = self.q_norm.rotated(&q, angles.as_ref().unwrap_or(context.angles))?;
        let attended = Attend {
            backend: context.backend,
            plan: context.plan,
            kind: self.kind,
            window: context.window,
            pool,
            q: &q,
            first_query: first,
            k: &k,
            v: &v,
        }
        .run()?;
        let r = (x + self.post_attention_norm.forward(&self.o.forward(&attended)?)?)?;
        let x = (&r + self.feed_forward(&r, context)?)?;
        self.scaled(&x, context.plan.encode_rows.saturating_sub(first)).map(Some)
    }

    /// What the feed-forward part adds to the stream `r`.
    fn feed_forward(&self, r: &Tensor, context: &Context<'_>) -> Result<Tensor> {
        let dense = self.mlp.forward(&self.pre_feedforward_norm.forward(r)?)?;
        let sum = match &self.mixture {
            None => dense,
            Some(mixture) => {
                let a = mixture.dense_norm.forward(&dense)?;
                let routing = mixture.router.route(r)?;
                let z = mixture.pre_norm.forward(r)?;
                let e = mixture.experts.forward(context.backend, &z, &routing)?;
                (a + mixture.post_norm.forward(&e)?)?
            }
        };
        self.post_feedforward_norm.forward(&sum)
    }

    /// The whole stream times the layer's scalar, by mode; the first `encode_rows` rows are encoder mode.
    fn scaled(&self, x: &Tensor, encode_rows: usize) -> Result<Tensor> {
        let rows = x.dim(0)?;
        let (encoder, decoder) = (f64::from(self.encoder_scalar), f64::from(self.decoder_scalar));
        match encode_rows {
            0 => x * decoder,
            n if n == rows => x * encoder,
            n => Tensor::cat(&[(x.narrow(0, 0, n)? * encoder)?, (x.narrow(0, n, rows - n)? * decoder)?], 0),
        }
    }
}

//! One transformer layer in both modes (the model's reference, sections 3.2 and 3.3).

use candle_core::{Error, Result, Tensor};

use super::attention::{Attend, KvPool};
use super::backend::Backend;
use super::clock::{Clock, Operation};
use super::config::LayerKind;
use super::experts::{Experts, Router};
use super::linear::{Linear, Mlp};
use super::norm::{Angles, LayerEnd, RmsNorm};
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
    pub clock: &'a Clock,
    pub plan: &'a Plan<'a>,
    pub window: usize,
    pub angles: &'a Angles,
    /// The first row whose output is wanted: 0, or the first denoise row in the last layer.
    pub first_wanted: usize,
}

impl Context<'_> {
    fn elementwise<R>(&self, work: impl FnOnce() -> R) -> R {
        self.clock.time(Operation::Elementwise, work)
    }
}

impl Layer {
    /// `x [rows, hidden]` to the stream of the rows from `first_wanted` on, or `None` if there are none. Writes the
    /// encode rows' keys and values before any row attends.
    pub fn forward(&self, x: &Tensor, pool: &mut KvPool, context: &Context<'_>) -> Result<Option<Tensor>> {
        let rows = x.dim(0)?;
        let (clock, heads) = (context.clock, (rows, self.kv_heads, self.head_dim));
        let y = context.elementwise(|| self.input_norm.forward(x))?;
        let (k, v) = clock.time(Operation::Projections, || {
            let v = self.v.as_ref().map(|v| v.forward(&y)?.reshape(heads)).transpose()?;
            Ok::<_, Error>((self.k.forward(&y)?.reshape(heads)?, v))
        })?;
        let v = context.elementwise(|| self.v_norm.forward(v.as_ref().unwrap_or(&k)))?;
        let k = context.elementwise(|| self.k_norm.rotated(&k, context.angles))?;
        clock.time(Operation::Cache, || pool.write(context.backend, self.kind, context.plan, &k, &v))?;

        let first = context.first_wanted;
        if first == rows {
            return Ok(None);
        }
        let wanted =
            |t: &Tensor| if first == 0 { Ok(t.clone()) } else { t.narrow(0, first, rows - first)?.contiguous() };
        let (x, y) = (wanted(x)?, wanted(&y)?);
        let angles = if first == 0 { None } else { Some(context.angles.from(first)?) };
        let q = clock
            .time(Operation::Projections, || self.q.forward(&y)?.reshape((rows - first, self.heads, self.head_dim)))?;
        let q = context.elementwise(|| self.q_norm.rotated(&q, angles.as_ref().unwrap_or(context.angles)))?;
        let attend = Attend {
            backend: context.backend,
            plan: context.plan,
            kind: self.kind,
            window: context.window,
            pool,
            q: &q,
            first_query: first,
            k: &k,
            v: &v,
        };
        let attended = clock.time(Operation::Attention, || attend.run())?;
        let attended = clock.time(Operation::Projections, || self.o.forward(&attended))?;
        let r = context.elementwise(|| self.post_attention_norm.added(&x, &attended))?;
        self.feed_forward(&r, context, context.plan.encode_rows.saturating_sub(first)).map(Some)
    }

    /// From the stream after attention to the one that leaves the layer; the first `encode_rows` rows are encoder mode.
    fn feed_forward(&self, r: &Tensor, context: &Context<'_>, encode_rows: usize) -> Result<Tensor> {
        let (clock, scalars) = (context.clock, (self.encoder_scalar, self.decoder_scalar));
        let norm = &self.post_feedforward_norm;
        let Some(mixture) = &self.mixture else {
            let y = context.elementwise(|| self.pre_feedforward_norm.forward(r))?;
            let dense = clock.time(Operation::Mlp, || self.mlp.forward(&y))?;
            let end = LayerEnd { stream: r, dense: &dense, mixture: None, norm, scalars, encode_rows };
            return context.elementwise(|| end.forward());
        };
        let norms = [&self.pre_feedforward_norm, &mixture.router.norm, &mixture.pre_norm];
        let [y, routed, z] = context.elementwise(|| RmsNorm::all(norms, r))?;
        let dense = clock.time(Operation::Mlp, || self.mlp.forward(&y))?;
        let routing = clock.time(Operation::Router, || mixture.router.route(&routed))?;
        let experts = clock.time(Operation::Experts, || mixture.experts.forward(context.backend, &z, &routing))?;
        let branches = Some((&experts, &mixture.dense_norm, &mixture.post_norm));
        let end = LayerEnd { stream: r, dense: &dense, mixture: branches, norm, scalars, encode_rows };
        context.elementwise(|| end.forward())
    }
}

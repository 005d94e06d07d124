//! The model itself: what it is, the bytes it holds between passes, and one pass from tokens to rows.

use std::time::Duration;

use candle_core::{DType, Tensor};

use super::attention::{KvPool, PAGE_TOKENS};
use super::backend::{Backend, said};
use super::clock::{Clock, Operation, Splits};
use super::config::{Config, LayerKind};
use super::footprint;
use super::layer::{Context, Layer};
use super::linear::{Linear, Mlp};
use super::load::{self, LoadError, Tuning};
use super::names::EMBEDDING;
use super::norm::{RmsNorm, Rotary};
use super::observe::{Nobody, Observer};
use super::options::LoadOptions;
use super::plan::{Bounds, Plan};
use super::vocab::{Request, Swept, VocabHead};
use super::weights::Weights;
use super::{KvElement, Path, Precision};
use crate::pass::{Capacity, Conditioning, Denoiser, EngineError, Limits, Output, Pass, Row, SegmentError};

/// A loaded DiffusionGemma.
pub struct DiffusionGemma {
    limits: Limits,
    slides: bool,
    hidden: usize,
    backend: Backend,
    parts: Parts,
    reserved: Option<Reserved>,
    clock: Clock,
}

/// The weights, ready to compute with.
pub(super) struct Parts {
    pub vocab: VocabHead,
    pub layers: Vec<Layer>,
    /// Before the self-conditioning MLP.
    pub conditioning_norm: RmsNorm,
    pub conditioning: Mlp,
    /// Unweighted, after the self-conditioning sum.
    pub conditioned_norm: RmsNorm,
    /// The final norm.
    pub norm: RmsNorm,
    pub sliding_rotary: Rotary,
    pub full_rotary: Rotary,
}

impl Parts {
    fn bytes(&self) -> Splits<u64> {
        let mut bytes = Splits::default();
        let mut add = |operation, more: usize| *bytes.of_mut(operation) += more as u64;
        add(Operation::SelfConditioning, self.conditioning.bytes());
        for layer in &self.layers {
            add(Operation::Projections, layer.q.bytes() + layer.k.bytes() + layer.o.bytes());
            add(Operation::Projections, layer.v.as_ref().map_or(0, Linear::bytes));
            add(Operation::Mlp, layer.mlp.bytes());
            if let Some(mixture) = &layer.mixture {
                add(Operation::Router, mixture.router.proj.bytes());
                add(Operation::Experts, mixture.experts.bytes());
            }
        }
        add(Operation::Head, self.vocab.table.bytes());
        add(Operation::SoftEmbedding, self.vocab.table.bytes());
        bytes
    }
}

/// What lives from pass to pass.
struct Reserved {
    capacity: Capacity,
    /// One pool per layer.
    pools: Vec<KvPool>,
    /// Soft embeddings, `[slots · canvas, hidden]`.
    soft: Tensor,
    /// Which slots hold one.
    filled: Vec<bool>,
}

impl DiffusionGemma {
    /// Loads the text part of a checkpoint; vision tensors are recognised and left alone.
    ///
    /// # Errors
    /// [`LoadError`], naming the tensor.
    pub fn load(config: &Config, weights: &dyn Weights, options: &LoadOptions) -> Result<DiffusionGemma, LoadError> {
        load::load(config, weights, options, Tuning::default())
    }

    /// Whether this build and this machine have the device and the instructions that are asked for; to be known before
    /// anything is downloaded.
    ///
    /// # Errors
    /// [`LoadError::Device`], as loading would end.
    pub fn check(options: &LoadOptions) -> Result<(), LoadError> {
        load::check(options)
    }

    /// The limits of the model that these weights would be, loaded so; to be known before they are read.
    ///
    /// # Errors
    /// Where the weights cannot say of what type they are.
    pub fn limits_of(config: &Config, weights: &dyn Weights, options: &LoadOptions) -> Result<Limits, LoadError> {
        let keys_and_values = options.keys_and_values(weights.element(EMBEDDING)?);
        Ok(footprint::limits(config, keys_and_values, footprint::row_bytes(config, options.device)))
    }

    pub(super) fn new(config: &Config, backend: Backend, parts: Parts) -> DiffusionGemma {
        DiffusionGemma {
            limits: footprint::limits(config, backend.kv, footprint::with_tile(config, parts.vocab.tile)),
            slides: config.count(LayerKind::Sliding) > 0,
            hidden: config.hidden,
            backend,
            parts,
            reserved: None,
            clock: Clock::stopped(),
        }
    }

    /// Sets the stopwatches of all operations to zero and lets them run from here on.
    pub fn start_clock(&mut self) {
        self.clock = Clock::running();
    }

    /// What each operation has taken since [`DiffusionGemma::start_clock`].
    pub fn clock(&self) -> Splits<Duration> {
        self.clock.splits()
    }

    /// Bytes of weights that one pass with every expert at work reads for each operation.
    pub fn weight_bytes(&self) -> Splits<u64> {
        self.parts.bytes()
    }

    /// The precision in use, which is exact where the processor lacks the instructions for another.
    pub fn precision(&self) -> Precision {
        self.backend.cpu.as_ref().map_or(Precision::Exact, |cpu| cpu.precision())
    }

    /// The kernels' instructions; `None` where candle's own operations compute.
    pub fn path(&self) -> Option<Path> {
        self.backend.cpu.as_ref().map(|cpu| cpu.path())
    }

    /// How keys and values are held.
    pub fn kv_element(&self) -> KvElement {
        self.backend.kv
    }

    /// One pass with an observer.
    pub(super) fn run_observed(
        &mut self,
        pass: &Pass,
        observer: &mut dyn Observer,
    ) -> Result<Vec<Result<Output, SegmentError>>, EngineError> {
        let reserved = self
            .reserved
            .as_mut()
            .ok_or_else(|| EngineError::Capacity("reserve was not called before the first pass".into()))?;
        let bounds = Bounds {
            limits: &self.limits,
            capacity: &reserved.capacity,
            filled: &reserved.filled,
            slides: self.slides,
        };
        let plan = Plan::of(pass, &bounds)?;
        let forward = Forward {
            parts: &self.parts,
            backend: &self.backend,
            limits: &self.limits,
            plan: &plan,
            clock: &self.clock,
        };
        let rows = forward.run(reserved, observer).map_err(device)?;
        Ok(answers(&plan, rows))
    }

    /// The soft embedding of a slot, `[canvas, hidden]`.
    pub(super) fn soft(&self, slot: usize) -> Result<Vec<f32>, EngineError> {
        let reserved = self.reserved()?;
        let canvas = self.limits.canvas;
        super::backend::host(&reserved.soft.narrow(0, slot * canvas, canvas).map_err(device)?).map_err(device)
    }

    /// Replaces the soft embedding of a slot, `[canvas, hidden]`.
    pub(super) fn set_soft(&mut self, slot: usize, values: Vec<f32>) -> Result<(), EngineError> {
        let canvas = self.limits.canvas;
        let soft = self.backend.tensor(values, &[canvas, self.hidden]).map_err(device)?;
        let reserved = self.reserved.as_mut().ok_or_else(|| EngineError::Capacity("reserve was not called".into()))?;
        reserved.soft.slice_set(&soft, 0, slot * canvas).map_err(device)?;
        if let Some(filled) = reserved.filled.get_mut(slot) {
            *filled = true;
        }
        Ok(())
    }

    /// `E[tokens] · √H`, `[tokens, hidden]`.
    pub(super) fn embed(&self, tokens: &[u32]) -> Result<Vec<f32>, EngineError> {
        let rows = self.parts.vocab.embed(&self.backend, tokens).map_err(device)?;
        super::backend::host(&rows).map_err(device)
    }

    /// Key and value that a layer holds in a row of its pool, each `[kv_heads, head_dim]`.
    pub(super) fn pool_row(&self, layer: usize, row: usize) -> Result<(Vec<f32>, Vec<f32>), EngineError> {
        let pool = self.reserved()?.pools.get(layer).ok_or_else(|| EngineError::Capacity("no such layer".into()))?;
        pool.row(row).map_err(device)
    }

    fn reserved(&self) -> Result<&Reserved, EngineError> {
        self.reserved.as_ref().ok_or_else(|| EngineError::Capacity("reserve was not called".into()))
    }
}

impl Denoiser for DiffusionGemma {
    fn limits(&self) -> &Limits {
        &self.limits
    }

    fn reserve(&mut self, capacity: Capacity) -> Result<(), EngineError> {
        let refuse = |what: &str| EngineError::Capacity(format!("{what} do not fit the address space"));
        // Row numbers travel as u32.
        for pages in [capacity.full_pages, capacity.sliding_pages] {
            if pages.checked_mul(PAGE_TOKENS).is_none_or(|rows| u32::try_from(rows).is_err()) {
                return Err(refuse("pages"));
            }
        }
        let soft_rows = capacity.slots.checked_mul(self.limits.canvas);
        let fits = |n: usize| n.checked_mul(self.hidden * 4).is_some_and(|bytes| isize::try_from(bytes).is_ok());
        let soft_rows = soft_rows.filter(|&n| fits(n)).ok_or_else(|| refuse("slots"))?;
        let pools = self.parts.layers.iter().map(|layer| {
            let pages = match layer.kind {
                LayerKind::Full => capacity.full_pages,
                LayerKind::Sliding => capacity.sliding_pages,
            };
            KvPool::new(&self.backend, pages, layer.kv_heads, layer.head_dim)
        });
        // The old state goes first: two of them may not fit.
        self.reserved = None;
        self.reserved = Some(Reserved {
            capacity,
            pools: pools.collect::<Result<_, _>>().map_err(device)?,
            soft: Tensor::zeros((soft_rows, self.hidden), DType::F32, &self.backend.device).map_err(device)?,
            filled: vec![false; capacity.slots],
        });
        Ok(())
    }

    fn run(&mut self, pass: &Pass) -> Result<Vec<Result<Output, SegmentError>>, EngineError> {
        self.run_observed(pass, &mut Nobody)
    }
}

fn device(error: candle_core::Error) -> EngineError {
    EngineError::Device(said(&error))
}

/// Each segment's answer; `rows` are those of all canvases, in plan order.
fn answers(plan: &Plan<'_>, rows: Vec<Row>) -> Vec<Result<Output, SegmentError>> {
    let mut answers: Vec<Result<Output, SegmentError>> = plan
        .refused
        .iter()
        .map(|refusal| match refusal {
            Some(error) => Err(error.clone()),
            None => Ok(Output::Encoded),
        })
        .collect();
    let mut rows = rows.into_iter();
    for (span, _) in &plan.denoises {
        let canvas: Vec<Row> = rows.by_ref().take(span.rows.len()).collect();
        if let Some(answer) = answers.get_mut(span.segment) {
            *answer = match canvas.iter().position(|row| !finite(row)) {
                Some(row) => Err(SegmentError::NotFinite { row }),
                None => Ok(Output::Denoised(canvas)),
            };
        }
    }
    answers
}

fn finite(row: &Row) -> bool {
    row.max.is_finite() && row.lse.is_finite() && row.entropy.is_finite()
}

/// One pass, from tokens to rows.
struct Forward<'a> {
    parts: &'a Parts,
    backend: &'a Backend,
    limits: &'a Limits,
    plan: &'a Plan<'a>,
    clock: &'a Clock,
}

impl Forward<'_> {
    /// Rows of all canvases, in plan order; keys, values and soft embeddings are written.
    fn run(&self, reserved: &mut Reserved, observer: &mut dyn Observer) -> candle_core::Result<Vec<Row>> {
        let plan = self.plan;
        if plan.tokens.is_empty() {
            return Ok(Vec::new());
        }
        let x = self.clock.time(Operation::Embed, || self.parts.vocab.embed(self.backend, &plan.tokens))?;
        let mut x = self.clock.time(Operation::SelfConditioning, || self.condition(x, reserved))?;
        let angles =
            |rotary: &Rotary| self.clock.time(Operation::Elementwise, || rotary.angles(self.backend, &plan.positions));
        let (sliding, full) = (angles(&self.parts.sliding_rotary)?, angles(&self.parts.full_rotary)?);
        let last = self.parts.layers.len().saturating_sub(1);
        for (i, (layer, pool)) in self.parts.layers.iter().zip(&mut reserved.pools).enumerate() {
            if observer.wants_hidden() {
                observer.hidden(i, x.dim(1)?, &super::backend::host(&x)?);
            }
            let context = Context {
                backend: self.backend,
                clock: self.clock,
                plan,
                window: self.limits.window,
                angles: match layer.kind {
                    LayerKind::Sliding => &sliding,
                    LayerKind::Full => &full,
                },
                // Of the last layer's encode rows only the keys and values are ever used.
                first_wanted: if i == last { plan.encode_rows } else { 0 },
            };
            match layer.forward(&x, pool, &context)? {
                Some(next) => x = next,
                None => return Ok(Vec::new()),
            }
        }
        let x = self.clock.time(Operation::Elementwise, || self.parts.norm.forward(&x))?;
        let swept = self.clock.time(Operation::Head, || self.sweep(&x, observer))?;
        self.clock.shift(Operation::Head, Operation::SoftEmbedding, swept.soft_time);
        self.clock.time(Operation::SoftEmbedding, || self.keep_soft(&swept, reserved))?;
        Ok(swept.rows)
    }

    /// Adds self-conditioning to the canvas rows (the model's reference, section 3.5).
    fn condition(&self, x: Tensor, reserved: &Reserved) -> candle_core::Result<Tensor> {
        let (plan, canvas) = (self.plan, self.limits.canvas);
        if plan.denoises.is_empty() {
            return Ok(x);
        }
        let mut soft = Vec::new();
        for (_, c) in &plan.denoises {
            if c.conditioning == Conditioning::Carried {
                soft.push(reserved.soft.narrow(0, c.slot * canvas, canvas)?);
            }
        }
        // A zero soft embedding passes the norm and the MLP as exact zeros, so fresh rows skip both.
        let signal = match soft.is_empty() {
            true => None,
            false => {
                let n = self.parts.conditioning_norm.forward(&Tensor::cat(&soft, 0)?)?;
                Some(self.parts.conditioning.forward(&n)?)
            }
        };
        let mut parts = Vec::with_capacity(plan.denoises.len());
        let mut carried = 0;
        for (span, c) in &plan.denoises {
            let rows = x.narrow(0, span.rows.start, span.rows.len())?;
            parts.push(match (&signal, c.conditioning) {
                (Some(signal), Conditioning::Carried) => {
                    carried += canvas;
                    (rows + signal.narrow(0, carried - canvas, canvas)?)?
                }
                _ => rows,
            });
        }
        let conditioned = self.parts.conditioned_norm.forward(&Tensor::cat(&parts, 0)?.contiguous()?)?;
        match plan.encode_rows {
            0 => Ok(conditioned),
            n => Tensor::cat(&[x.narrow(0, 0, n)?, conditioned], 0),
        }
    }

    fn sweep(&self, hidden: &Tensor, observer: &mut dyn Observer) -> candle_core::Result<Swept> {
        let first = self.plan.encode_rows;
        let requests: Vec<Request<'_>> = self
            .plan
            .denoises
            .iter()
            .map(|(span, canvas)| Request {
                rows: span.rows.start - first..span.rows.end - first,
                head: canvas.head,
                tokens: &self.plan.tokens[span.rows.clone()],
                uniforms: canvas.uniforms,
            })
            .collect();
        self.parts.vocab.sweep(self.backend, hidden, &requests, (self.clock, observer))
    }

    /// Leaves each canvas's soft embedding in its slot for the next step; a damaged one is not kept.
    fn keep_soft(&self, swept: &Swept, reserved: &mut Reserved) -> candle_core::Result<()> {
        let canvas = self.limits.canvas;
        for ((_, c), (i, rows)) in self.plan.denoises.iter().zip(swept.rows.chunks(canvas).enumerate()) {
            let good = rows.iter().all(finite);
            if good {
                let soft = swept.soft.narrow(0, i * canvas, canvas)?.contiguous()?;
                reserved.soft.slice_set(&soft, 0, c.slot * canvas)?;
            }
            if let Some(filled) = reserved.filled.get_mut(c.slot) {
                *filled = good;
            }
        }
        Ok(())
    }
}

//! From a checkpoint's tensors to a model: names and shapes checked first, then one tensor after another packed and
//! its source released, so that no weight exists twice.

use std::borrow::Cow;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};

use super::backend::{Backend, plain, said};
use super::config::{Config, LayerKind};
use super::experts::{Experts, Router};
use super::footprint::{TILE, TWIN_TILE};
use super::layer::{Layer, Mixture};
use super::linear::{Linear, Mlp};
use super::names::{DECODER, EMBEDDING, Known, Names, encoder_scalar};
use super::norm::{RmsNorm, Rotary};
use super::options::{DeviceChoice, LoadOptions, WeightType};
use super::vocab::{Table, VocabHead, embedding_scale};
use super::weights::{RawTensor, WeightError, Weights, widened};
use super::{DiffusionGemma, Parts};
use crate::kernels::cpu::{self, Cpu, KvElement, PackedMatrix, Packing, Source};
use crate::kernels::{ElementType, KernelError};

/// Why a checkpoint does not become a model.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A tensor cannot be read.
    #[error(transparent)]
    Weight(#[from] WeightError),
    /// Tensors the configuration asks for are not there.
    #[error("the checkpoint lacks {}; it is incomplete, or config.json belongs to another one", listed(.names))]
    Missing {
        /// Their names.
        names: Vec<String>,
    },
    /// Tensors that no DiffusionGemma has.
    #[error("the checkpoint holds tensors this model does not have: {}; is it another architecture?", listed(.names))]
    Unknown {
        /// Their names.
        names: Vec<String>,
    },
    /// A tensor's shape is not what config.json says.
    #[error("tensor {name} has shape {found:?}, config.json asks for {wanted:?}")]
    Shape {
        /// Its name.
        name: String,
        /// The shape in the file.
        found: Vec<usize>,
        /// The shape wanted.
        wanted: Vec<usize>,
    },
    /// A tensor's bytes do not fill its shape.
    #[error("tensor {name} has {found} bytes, its shape and type need {wanted}; the file is damaged")]
    Length {
        /// Its name.
        name: String,
        /// Bytes found.
        found: usize,
        /// Bytes needed.
        wanted: usize,
    },
    /// The kernels refuse.
    #[error("tensor {name} cannot be packed: {error}")]
    Kernel {
        /// The tensor's name.
        name: String,
        /// Why.
        error: KernelError,
    },
    /// The device cannot be used.
    #[error("the device cannot be used: {0}")]
    Device(String),
}

impl From<candle_core::Error> for LoadError {
    fn from(error: candle_core::Error) -> LoadError {
        LoadError::Device(said(&error))
    }
}

/// A few names, and how many more there are.
fn listed(names: &[String]) -> String {
    const SHOWN: usize = 5;
    // A damaged file can hold a "name" of any length, and control characters in it.
    const LONGEST: usize = 200;
    let shorten = |name: &String| name.chars().take(LONGEST).flat_map(char::escape_debug).collect::<String>();
    let shown = names.iter().take(SHOWN).map(shorten).collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(SHOWN) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

/// Choices of the inner workings that change speed, never the meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tuning {
    /// Columns of one vocabulary tile; `None` is the default of the operations.
    pub vocabulary_tile: Option<usize>,
    /// Which implementation computes.
    pub operations: Operations,
}

/// Which implementation of the four opaque operations computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Operations {
    /// Our kernels on the CPU, candle elsewhere.
    #[default]
    ByDevice,
    /// Plain candle operations everywhere.
    Twins,
}

/// Builds the model.
pub(super) fn load(
    config: &Config,
    weights: &dyn Weights,
    options: &LoadOptions,
    tuning: Tuning,
) -> Result<DiffusionGemma, LoadError> {
    let names = Names::of(config);
    check_names(&names, weights)?;
    let backend = backend(options, tuning, options.keys_and_values(weights.element(EMBEDDING)?))?;
    let loader = Loader { config, names: &names, weights, backend: &backend, dtype: options.dtype };
    let vocab = loader.vocab(tuning)?;
    let layers =
        config.layers.iter().enumerate().map(|(i, &kind)| loader.layer(i, kind)).collect::<Result<Vec<_>, _>>()?;
    let parts = Parts {
        vocab,
        layers,
        conditioning_norm: loader.norm(&format!("{DECODER}self_conditioning.pre_norm.weight"))?,
        conditioning: loader.mlp(&format!("{DECODER}self_conditioning."))?,
        conditioned_norm: RmsNorm::unweighted(&backend, config.hidden, config.rms_norm_eps)?,
        norm: loader.norm(&format!("{DECODER}norm.weight"))?,
        sliding_rotary: Rotary::new(&config.sliding.rope, config.sliding.head_dim),
        full_rotary: Rotary::new(&config.full.rope, config.full.head_dim),
    };
    for name in weights.names() {
        weights.release(&name);
    }
    Ok(DiffusionGemma::new(config, backend, parts))
}

/// Makes what would compute, with a single thread, and lets it go.
pub(super) fn check(options: &LoadOptions) -> Result<(), LoadError> {
    let alone = LoadOptions { threads: 1, ..*options };
    backend(&alone, Tuning::default(), options.keys_and_values(None)).map(drop)
}

fn backend(options: &LoadOptions, tuning: Tuning, kv: KvElement) -> Result<Backend, LoadError> {
    let device = device(options.device)?;
    let own = device.is_cpu() && tuning.operations == Operations::ByDevice;
    let cpu = match own {
        true => {
            let cpu = Cpu::new(options.threads.max(1), options.path);
            let cpu = cpu.map_err(|error| LoadError::Device(error.to_string()))?;
            Some(Arc::new(cpu.with_precision(options.precision)))
        }
        false => None,
    };
    Ok(Backend { device, cpu, kv })
}

fn device(choice: DeviceChoice) -> Result<Device, LoadError> {
    let missing = |feature: &str| LoadError::Device(format!("build with --features {feature} to use it"));
    match choice {
        DeviceChoice::Cpu => Ok(Device::Cpu),
        DeviceChoice::Cuda(_) if !cfg!(feature = "cuda") => Err(missing("cuda")),
        DeviceChoice::Metal(_) if !cfg!(feature = "metal") => Err(missing("metal")),
        DeviceChoice::Cuda(n) => Ok(Device::new_cuda(n)?),
        DeviceChoice::Metal(n) => Ok(Device::new_metal(n)?),
    }
}

fn check_names(names: &Names, weights: &dyn Weights) -> Result<(), LoadError> {
    let present = weights.names();
    let mut unknown: Vec<String> =
        present.iter().filter(|name| names.classify(name) == Known::Unknown).cloned().collect();
    if !unknown.is_empty() {
        unknown.sort();
        return Err(LoadError::Unknown { names: unknown });
    }
    let present: std::collections::HashSet<&str> = present.iter().map(String::as_str).collect();
    let mut missing: Vec<String> =
        names.needed().map(|(name, _)| name.to_owned()).filter(|name| !present.contains(name.as_str())).collect();
    if !missing.is_empty() {
        missing.sort();
        return Err(LoadError::Missing { names: missing });
    }
    for name in &present {
        if let Known::Duplicate(wanted) = names.classify(name)
            && let Some(raw) = weights.get(name)?
        {
            check_shape(name, &raw, wanted)?;
        }
    }
    Ok(())
}

fn check_shape(name: &str, raw: &RawTensor<'_>, wanted: &[usize]) -> Result<(), LoadError> {
    if raw.shape != wanted {
        return Err(LoadError::Shape { name: name.into(), found: raw.shape.clone(), wanted: wanted.to_vec() });
    }
    let (elements, bytes) = raw.element.block();
    // Sizes are bounded by the configuration, so the products cannot overflow; blocks run along the last dimension.
    let row = wanted.last().copied().unwrap_or(1);
    let rows: usize = wanted.iter().rev().skip(1).product();
    let wanted = rows * row.div_ceil(elements) * bytes;
    if row % elements != 0 || raw.bytes.len() != wanted {
        return Err(LoadError::Length { name: name.into(), found: raw.bytes.len(), wanted });
    }
    Ok(())
}

struct Loader<'a> {
    config: &'a Config,
    names: &'a Names,
    weights: &'a dyn Weights,
    backend: &'a Backend,
    dtype: Option<WeightType>,
}

impl Loader<'_> {
    /// The tensor, with the shape the configuration wants.
    fn raw(&self, name: &str) -> Result<RawTensor<'_>, LoadError> {
        let missing = || LoadError::Missing { names: vec![name.into()] };
        let Known::Needed(wanted) = self.names.classify(name) else { return Err(missing()) };
        let raw = self.weights.get(name)?.ok_or_else(missing)?;
        check_shape(name, &raw, wanted)?;
        Ok(raw)
    }

    /// A small tensor as f32.
    fn values(&self, name: &str) -> Result<Vec<f32>, LoadError> {
        let raw = self.raw(name)?;
        let values = widened(name, raw.element, &raw.bytes)?;
        drop(raw);
        self.weights.release(name);
        Ok(values)
    }

    fn scalar(&self, name: &str) -> Result<f32, LoadError> {
        Ok(self.values(name)?.first().copied().unwrap_or(1.0))
    }

    fn norm(&self, name: &str) -> Result<RmsNorm, LoadError> {
        Ok(RmsNorm::new(self.backend, self.values(name)?, self.config.rms_norm_eps)?)
    }

    /// Matrix bytes in the type they will be computed with.
    fn converted<'b>(
        &self,
        name: &str,
        element: ElementType,
        bytes: &'b [u8],
    ) -> Result<(ElementType, Cow<'b, [u8]>), LoadError> {
        let wanted = match self.dtype {
            Some(WeightType::F32) => ElementType::F32,
            Some(WeightType::Bf16) => ElementType::Bf16,
            None if self.backend.cpu.is_some() || plain(element).is_some() => element,
            // candle knows block formats in another layout; its twins take plain numbers.
            None if self.backend.device.is_cpu() => ElementType::F32,
            None => ElementType::Bf16,
        };
        if wanted == element {
            return Ok((element, Cow::Borrowed(bytes)));
        }
        let values = widened(name, element, bytes)?;
        let bytes = match wanted {
            ElementType::Bf16 => values.iter().flat_map(|&x| half::bf16::from_f32(x).to_le_bytes()).collect(),
            _ => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
        };
        Ok((wanted, Cow::Owned(bytes)))
    }

    /// A matrix as a candle tensor.
    fn tensor(&self, name: &str, element: ElementType, bytes: &[u8], shape: &[usize]) -> Result<Tensor, LoadError> {
        let (element, bytes) = self.converted(name, element, bytes)?;
        let dtype = plain(element).unwrap_or(DType::F32);
        Ok(Tensor::from_raw_buffer(&bytes, dtype, shape, &self.backend.device)?)
    }

    /// A matrix packed for our kernels.
    fn packed(
        &self,
        cpu: &Cpu,
        name: &str,
        element: ElementType,
        bytes: &[u8],
        shape: &[usize],
        packing: Packing,
    ) -> Result<PackedMatrix, LoadError> {
        let (element, bytes) = self.converted(name, element, bytes)?;
        PackedMatrix::plain(cpu, shape[0], shape[1], Source { element, bytes: &bytes }, packing).map_err(refused(name))
    }

    /// Gate and up packed side by side.
    fn gated(
        &self,
        cpu: &Cpu,
        name: &str,
        [gate, up]: [(ElementType, &[u8]); 2],
        (outputs, inputs): (usize, usize),
        packing: Packing,
    ) -> Result<PackedMatrix, LoadError> {
        let (gate, up) = (self.converted(name, gate.0, gate.1)?, self.converted(name, up.0, up.1)?);
        let gate = Source { element: gate.0, bytes: &gate.1 };
        let up = Source { element: up.0, bytes: &up.1 };
        PackedMatrix::gated(cpu, outputs, inputs, gate, up, packing).map_err(refused(name))
    }

    fn linear(&self, name: &str) -> Result<Linear, LoadError> {
        let raw = self.raw(name)?;
        let linear = match &self.backend.cpu {
            Some(cpu) => {
                Linear::Own(cpu.clone(), self.packed(cpu, name, raw.element, &raw.bytes, &raw.shape, Packing::Fast)?)
            }
            None => Linear::Twin(self.tensor(name, raw.element, &raw.bytes, &raw.shape)?),
        };
        drop(raw);
        self.weights.release(name);
        Ok(linear)
    }

    fn mlp(&self, prefix: &str) -> Result<Mlp, LoadError> {
        let [gate, up, down] = ["gate", "up", "down"].map(|part| format!("{prefix}{part}_proj.weight"));
        let mlp = {
            let (g, u, d) = (self.raw(&gate)?, self.raw(&up)?, self.raw(&down)?);
            match &self.backend.cpu {
                Some(cpu) => Mlp::Own {
                    cpu: cpu.clone(),
                    gate_up: self.gated(
                        cpu,
                        &gate,
                        [(g.element, &g.bytes), (u.element, &u.bytes)],
                        (g.shape[0], g.shape[1]),
                        Packing::Fast,
                    )?,
                    down: self.packed(cpu, &down, d.element, &d.bytes, &d.shape, Packing::Fast)?,
                },
                None => Mlp::Twin {
                    gate: self.tensor(&gate, g.element, &g.bytes, &g.shape)?,
                    up: self.tensor(&up, u.element, &u.bytes, &u.shape)?,
                    down: self.tensor(&down, d.element, &d.bytes, &d.shape)?,
                },
            }
        };
        for name in [gate, up, down] {
            self.weights.release(&name);
        }
        Ok(mlp)
    }

    fn vocab(&self, tuning: Tuning) -> Result<VocabHead, LoadError> {
        let raw = self.raw(EMBEDDING)?;
        let scale = embedding_scale(self.config.hidden, self.dtype, raw.element);
        let (table, tile) = match &self.backend.cpu {
            Some(cpu) => {
                let table = self.packed(cpu, EMBEDDING, raw.element, &raw.bytes, &raw.shape, Packing::Fast)?;
                (Table::Own(cpu.clone(), table), TILE)
            }
            None => (Table::Twin(self.tensor(EMBEDDING, raw.element, &raw.bytes, &raw.shape)?), TWIN_TILE),
        };
        drop(raw);
        self.weights.release(EMBEDDING);
        Ok(VocabHead {
            table,
            vocabulary: self.config.vocabulary,
            softcap: self.config.softcap,
            scale,
            tile: tuning.vocabulary_tile.unwrap_or(tile).clamp(1, self.config.vocabulary),
        })
    }

    fn layer(&self, index: usize, kind: LayerKind) -> Result<Layer, LoadError> {
        let at = |suffix: &str| format!("{DECODER}layers.{index}.{suffix}");
        let attention = self.config.attention(kind);
        Ok(Layer {
            kind,
            heads: self.config.heads,
            kv_heads: attention.kv_heads,
            head_dim: attention.head_dim,
            q: self.linear(&at("self_attn.q_proj.weight"))?,
            k: self.linear(&at("self_attn.k_proj.weight"))?,
            v: match kind {
                LayerKind::Sliding => Some(self.linear(&at("self_attn.v_proj.weight"))?),
                LayerKind::Full => None,
            },
            o: self.linear(&at("self_attn.o_proj.weight"))?,
            q_norm: self.norm(&at("self_attn.q_norm.weight"))?,
            k_norm: self.norm(&at("self_attn.k_norm.weight"))?,
            v_norm: RmsNorm::unweighted(self.backend, attention.head_dim, self.config.rms_norm_eps)?,
            input_norm: self.norm(&at("input_layernorm.weight"))?,
            post_attention_norm: self.norm(&at("post_attention_layernorm.weight"))?,
            pre_feedforward_norm: self.norm(&at("pre_feedforward_layernorm.weight"))?,
            post_feedforward_norm: self.norm(&at("post_feedforward_layernorm.weight"))?,
            mlp: self.mlp(&at("mlp."))?,
            mixture: self.mixture(&at)?,
            encoder_scalar: self.scalar(&encoder_scalar(index))?,
            decoder_scalar: self.scalar(&at("layer_scalar"))?,
        })
    }

    fn mixture(&self, at: &dyn Fn(&str) -> String) -> Result<Option<Mixture>, LoadError> {
        let Some(experts) = &self.config.experts else { return Ok(None) };
        let hidden = self.config.hidden;
        let root = (hidden as f64).powf(-0.5) as f32;
        let scale = self.values(&at("router.scale"))?.iter().map(|s| s * root).collect();
        Ok(Some(Mixture {
            router: Router {
                norm: RmsNorm::new(self.backend, scale, self.config.rms_norm_eps)?,
                proj: self.linear(&at("router.proj.weight"))?,
                per_expert_scale: self.values(&at("router.per_expert_scale"))?,
                top_k: experts.top_k,
            },
            experts: self.experts(&at("experts.gate_up_proj"), &at("experts.down_proj"))?,
            pre_norm: self.norm(&at("pre_feedforward_layernorm_2.weight"))?,
            dense_norm: self.norm(&at("post_feedforward_layernorm_1.weight"))?,
            post_norm: self.norm(&at("post_feedforward_layernorm_2.weight"))?,
        }))
    }

    fn experts(&self, gate_up: &str, down: &str) -> Result<Experts, LoadError> {
        let Some(cpu) = &self.backend.cpu else {
            let twin = |name: &str, element, bytes: &[u8], shape: &[usize]| self.tensor(name, element, bytes, shape);
            let (gate_up, down) = (self.stack(gate_up, twin)?, self.stack(down, twin)?);
            return Ok(Experts::Twin(gate_up.into_iter().zip(down).collect()));
        };
        let both = self.stack(gate_up, |name, element, bytes, shape| {
            // Gate rows, then up rows.
            let (gate, up) = bytes.split_at(bytes.len() / 2);
            self.gated(cpu, name, [(element, gate), (element, up)], (shape[0] / 2, shape[1]), Packing::Compact)
        })?;
        let downs = self.stack(down, |name, element, bytes, shape| {
            self.packed(cpu, name, element, bytes, shape, Packing::Compact)
        })?;
        Ok(Experts::Own(cpu.clone(), cpu::Experts::new(both, downs).map_err(refused(gate_up))?))
    }

    /// Makes something of each expert's matrix of a stacked tensor, and releases the tensor.
    fn stack<T>(
        &self,
        name: &str,
        make: impl Fn(&str, ElementType, &[u8], &[usize]) -> Result<T, LoadError>,
    ) -> Result<Vec<T>, LoadError> {
        let raw = self.raw(name)?;
        let (count, shape) = (raw.shape[0], &raw.shape[1..]);
        let each = raw.bytes.len() / count;
        let made = raw.bytes.chunks_exact(each).map(|bytes| make(name, raw.element, bytes, shape)).collect();
        drop(raw);
        self.weights.release(name);
        made
    }
}

fn refused(name: &str) -> impl FnOnce(KernelError) -> LoadError {
    let name = name.to_owned();
    move |error| LoadError::Kernel { name, error }
}

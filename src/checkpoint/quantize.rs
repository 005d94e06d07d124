//! Quantization while loading: each matrix is put into blocks when the loader asks for it, so that never more than one
//! matrix exists in both forms.

use std::borrow::Cow;
use std::str::FromStr;

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use rayon::prelude::*;

use crate::kernels::ElementType;
use crate::model::{EMBEDDING, RawTensor, WeightError, Weights, widened};

/// A way to put a model's matrices into blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quantization {
    /// 8.5 bits a weight: no loss that can be measured in answers.
    Q8_0,
    /// 6.6 bits.
    Q6K,
    /// 5.5 bits, 6.6 where it matters most.
    Q5KM,
    /// 5.5 bits.
    Q5K,
    /// 4.5 bits, 6.6 where it matters most: the usual choice where memory is short.
    Q4KM,
    /// 4.5 bits.
    Q4K,
    /// 5.5 bits in small blocks.
    Q5_0,
    /// 4.5 bits in small blocks.
    Q4_0,
}

/// Spelling, scheme, and GGUF's number for a file made so.
const SCHEMES: [(&str, Quantization, u32); 8] = [
    ("q8_0", Quantization::Q8_0, 7),
    ("q6_k", Quantization::Q6K, 18),
    ("q5_k_m", Quantization::Q5KM, 17),
    ("q5_k", Quantization::Q5K, 16),
    ("q4_k_m", Quantization::Q4KM, 15),
    ("q4_k", Quantization::Q4K, 14),
    ("q5_0", Quantization::Q5_0, 8),
    ("q4_0", Quantization::Q4_0, 2),
];

impl FromStr for Quantization {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let lower = text.to_ascii_lowercase();
        let found = SCHEMES.iter().find(|(name, ..)| *name == lower);
        found.map(|(_, scheme, _)| *scheme).ok_or_else(|| {
            let names: Vec<&str> = SCHEMES.iter().map(|(name, ..)| *name).collect();
            format!("{} is no quantization; there are {}", super::error::shown(text), names.join(", "))
        })
    }
}

impl std::fmt::Display for Quantization {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(SCHEMES.iter().find(|(_, scheme, _)| scheme == self).map_or("", |(name, ..)| name))
    }
}

/// What a tensor is, as far as its type depends on it.
enum Role {
    /// The embedding, which is the output head too.
    Embedding,
    /// A projection whose errors add up in the residual stream, in this layer: values and down projections.
    Sensitive(usize),
    /// Any other matrix.
    Plain,
    /// Norms, scalars and the router: small, and worth their full precision.
    Kept,
}

impl Role {
    fn of(name: &str) -> Self {
        if name == EMBEDDING {
            return Self::Embedding;
        }
        let layer = name.strip_prefix("model.decoder.layers.").and_then(|rest| rest.split_once('.'));
        let Some((layer, suffix)) = layer.and_then(|(layer, suffix)| Some((layer.parse().ok()?, suffix))) else {
            let own = name.starts_with("model.decoder.self_conditioning.") && name.ends_with("_proj.weight");
            return if own { Self::Plain } else { Self::Kept };
        };
        match suffix {
            "self_attn.v_proj.weight" | "mlp.down_proj.weight" | "experts.down_proj" => Self::Sensitive(layer),
            "experts.gate_up_proj" => Self::Plain,
            _ if suffix.starts_with("self_attn.") && suffix.ends_with("_proj.weight") => Self::Plain,
            _ if suffix.starts_with("mlp.") => Self::Plain,
            _ => Self::Kept,
        }
    }
}

impl Quantization {
    /// GGUF's `general.file_type` of such a file.
    pub(crate) fn file_type(self) -> u32 {
        SCHEMES.iter().find(|(_, scheme, _)| *scheme == self).map_or(0, |(.., number)| *number)
    }

    /// The type a stored tensor gets; `None` where it stays as it is. `layers` is the model's number of layers.
    pub(crate) fn target(self, name: &str, shape: &[usize], layers: usize) -> Option<ElementType> {
        let role = Role::of(name);
        let mixed = matches!(self, Self::Q4KM | Self::Q5KM);
        let wanted = match role {
            Role::Kept => return None,
            // As in published files of every type but this.
            Role::Embedding if self != Self::Q8_0 => ElementType::Q6K,
            Role::Sensitive(layer) if mixed && more_bits(layer, layers) => ElementType::Q6K,
            _ => self.base(),
        };
        let inner = *shape.last()?;
        let fits = |element: ElementType| inner > 0 && inner.is_multiple_of(element.block().0);
        // Rows that are no multiple of 256 take the blocks of 32 that lose least beside the wanted type, as published files do.
        let smaller = match wanted {
            ElementType::Q4K => ElementType::Q5_0,
            ElementType::Q5K => ElementType::Q5_1,
            _ => ElementType::Q8_0,
        };
        [wanted, smaller].into_iter().find(|&element| fits(element))
    }

    fn base(self) -> ElementType {
        match self {
            Self::Q8_0 => ElementType::Q8_0,
            Self::Q6K => ElementType::Q6K,
            Self::Q5K | Self::Q5KM => ElementType::Q5K,
            Self::Q4K | Self::Q4KM => ElementType::Q4K,
            Self::Q5_0 => ElementType::Q5_0,
            Self::Q4_0 => ElementType::Q4_0,
        }
    }
}

/// The first and last eighth of the layers and every third between: where the published mixed files spend more bits.
fn more_bits(layer: usize, layers: usize) -> bool {
    let eighth = layers / 8;
    layer < eighth || layer >= 7 * layers / 8 || (layer - eighth) % 3 == 2
}

/// Weights that are put into blocks on their way to the loader.
pub(crate) struct Quantized {
    pub(crate) inner: Box<dyn Weights>,
    pub(crate) scheme: Quantization,
    pub(crate) layers: usize,
}

impl Weights for Quantized {
    fn names(&self) -> Vec<String> {
        self.inner.names()
    }

    fn get(&self, name: &str) -> Result<Option<RawTensor<'_>>, WeightError> {
        let Some(raw) = self.inner.get(name)? else { return Ok(None) };
        match self.scheme.target(name, &raw.shape, self.layers) {
            Some(target) if raw.element != target => quantize(name, &raw, target).map(Some),
            _ => Ok(Some(raw)),
        }
    }

    fn element(&self, name: &str) -> Result<Option<ElementType>, WeightError> {
        // A file's own tensor costs nothing to look at; the blocks would have to be made.
        let Some(raw) = self.inner.get(name)? else { return Ok(None) };
        Ok(Some(self.scheme.target(name, &raw.shape, self.layers).unwrap_or(raw.element)))
    }

    fn release(&self, name: &str) {
        self.inner.release(name);
    }
}

/// Puts a plain tensor into blocks, rows in parallel. A tensor that is in blocks already is refused: quantizing twice loses twice.
pub(crate) fn quantize(
    name: &str,
    raw: &RawTensor<'_>,
    target: ElementType,
) -> Result<RawTensor<'static>, WeightError> {
    let fail = |why: String| WeightError::Unreadable { name: name.to_owned(), why };
    let inner = raw.shape.last().copied().unwrap_or(0);
    let (Some(width), Some(kind)) = (plain_width(raw.element), ggml(target)) else {
        let why = format!("it is {:?} already; quantize from the bfloat16 checkpoint", raw.element);
        return Err(fail(why));
    };
    if inner == 0 || !raw.bytes.len().is_multiple_of(inner * width) {
        return Err(fail("its bytes do not make whole rows".to_owned()));
    }
    let (block, size) = target.block();
    if !inner.is_multiple_of(block) {
        return Err(fail(format!("its rows of {inner} are no multiple of {target:?}'s blocks of {block}")));
    }
    // Some 64 Ki weights at a time: enough work for a thread, little memory in flight.
    let rows = (65_536 / inner).max(1);
    let row = inner / block * size;
    let mut blocks = vec![0; raw.bytes.len() / (inner * width) * row];
    raw.bytes
        .par_chunks(rows * inner * width)
        .zip(blocks.par_chunks_mut(rows * row))
        .try_for_each(|(bytes, blocks)| {
            let values = widened(name, raw.element, bytes).map_err(candle_core::Error::wrap)?;
            let shape = (values.len() / inner, inner);
            let tensor = QTensor::quantize(&Tensor::from_vec(values, shape, &Device::Cpu)?, kind)?;
            let made = tensor.data()?;
            if made.len() != blocks.len() {
                candle_core::bail!("{} bytes of blocks where {} were expected", made.len(), blocks.len());
            }
            blocks.copy_from_slice(&made);
            Ok(())
        })
        .map_err(|error: candle_core::Error| fail(format!("it cannot be quantized: {error}")))?;
    Ok(RawTensor { shape: raw.shape.clone(), element: target, bytes: Cow::Owned(blocks) })
}

/// Bytes of one plain number; `None` for blocks.
fn plain_width(element: ElementType) -> Option<usize> {
    match element.block() {
        (1, width) => Some(width),
        _ => None,
    }
}

fn ggml(element: ElementType) -> Option<GgmlDType> {
    Some(match element {
        ElementType::Q4_0 => GgmlDType::Q4_0,
        ElementType::Q4_1 => GgmlDType::Q4_1,
        ElementType::Q5_0 => GgmlDType::Q5_0,
        ElementType::Q5_1 => GgmlDType::Q5_1,
        ElementType::Q8_0 => GgmlDType::Q8_0,
        ElementType::Q2K => GgmlDType::Q2K,
        ElementType::Q3K => GgmlDType::Q3K,
        ElementType::Q4K => GgmlDType::Q4K,
        ElementType::Q5K => GgmlDType::Q5K,
        ElementType::Q6K => GgmlDType::Q6K,
        ElementType::F32 | ElementType::F16 | ElementType::Bf16 => return None,
    })
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;

    const ALL: [ElementType; 10] = [
        ElementType::Q4_0,
        ElementType::Q4_1,
        ElementType::Q5_0,
        ElementType::Q5_1,
        ElementType::Q8_0,
        ElementType::Q2K,
        ElementType::Q3K,
        ElementType::Q4K,
        ElementType::Q5K,
        ElementType::Q6K,
    ];

    fn wave(count: usize) -> Vec<f32> {
        (0..count).map(|i| ((i * i % 977) as f32 / 488.5 - 1.0) * 0.1).collect()
    }

    fn plain(values: &[f32], shape: &[usize]) -> RawTensor<'static> {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
        RawTensor { shape: shape.to_vec(), element: ElementType::F32, bytes: Cow::Owned(bytes) }
    }

    #[test]
    fn every_type_comes_back_within_its_bound() {
        // More rows than one chunk has, so that chunks are put together in order.
        let (rows, inner) = (300, 512);
        let values = wave(rows * inner);
        for target in ALL {
            let made = quantize("w", &plain(&values, &[rows, inner]), target).unwrap();
            let (block, bytes) = target.block();
            assert_eq!((made.element, made.bytes.len()), (target, values.len() / block * bytes));
            let back = QTensor::from_ggml(&made, rows, inner, target);
            let square = |values: &mut dyn Iterator<Item = f32>| values.map(|v| f64::from(v * v)).sum::<f64>();
            let error = square(&mut values.iter().zip(&back).map(|(a, b)| a - b)) / square(&mut values.iter().copied());
            // Bits a weight, less scales: each bit quarters the squared error of the one before.
            let bound = match target {
                ElementType::Q2K => 0.1,
                ElementType::Q3K => 0.03,
                ElementType::Q4_0 | ElementType::Q4_1 | ElementType::Q4K => 0.01,
                ElementType::Q5_0 | ElementType::Q5_1 | ElementType::Q5K => 0.0025,
                ElementType::Q6K => 0.0007,
                _ => 0.00005,
            };
            assert!(error < bound, "{target:?}: {error}");
        }
    }

    /// Dequantizes with candle.
    trait FromGgml {
        fn from_ggml(raw: &RawTensor<'_>, rows: usize, inner: usize, target: ElementType) -> Vec<f32>;
    }

    impl FromGgml for QTensor {
        fn from_ggml(raw: &RawTensor<'_>, rows: usize, inner: usize, target: ElementType) -> Vec<f32> {
            let kind = ggml(target).unwrap();
            let storage = candle_core::quantized::QStorage::from_data(raw.bytes.clone(), &Device::Cpu, kind).unwrap();
            let tensor = QTensor::new(storage, (rows, inner)).unwrap();
            tensor.dequantize(&Device::Cpu).unwrap().flatten_all().unwrap().to_vec1().unwrap()
        }
    }

    #[test]
    fn plain_types_give_equal_blocks() {
        let values: Vec<f32> = wave(512).into_iter().map(|value| bf16::from_f32(value).to_f32()).collect();
        let halves: Vec<u8> = values.iter().flat_map(|&value| bf16::from_f32(value).to_le_bytes()).collect();
        let from_half = RawTensor { shape: vec![2, 256], element: ElementType::Bf16, bytes: Cow::Owned(halves) };
        let one = quantize("w", &plain(&values, &[2, 256]), ElementType::Q4K).unwrap();
        assert_eq!(one.bytes, quantize("w", &from_half, ElementType::Q4K).unwrap().bytes);
        let again = quantize("w", &one, ElementType::Q4K).unwrap_err().to_string();
        assert!(again.contains("already"), "{again}");
    }

    #[test]
    fn the_published_mixture() {
        let of = |scheme: &str, name: &str, inner: usize| {
            let scheme: Quantization = scheme.parse().unwrap();
            scheme.target(&format!("model.decoder.{name}"), &[8, inner], 30)
        };
        use ElementType::{Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0};
        for scheme in ["q4_0", "q5_0", "q4_k", "Q4_K_M", "q5_k", "q5_k_m", "q6_k"] {
            assert_eq!(of(scheme, "embed_tokens.weight", 2816), Some(Q6K), "{scheme}");
        }
        assert_eq!(of("q8_0", "embed_tokens.weight", 2816), Some(Q8_0));
        assert_eq!(of("q4_0", "embed_tokens.weight", 192), Some(Q8_0), "rows too short for it");
        assert_eq!(of("q4_k_m", "layers.0.experts.gate_up_proj", 2816), Some(Q4K));
        let downs = |wanted| {
            (0..30)
                .filter(|i| of("q4_k_m", &format!("layers.{i}.experts.down_proj"), 704) == Some(wanted))
                .collect::<Vec<_>>()
        };
        assert_eq!(downs(Q8_0), [0, 1, 2, 5, 8, 11, 14, 17, 20, 23, 26, 27, 28, 29]);
        assert_eq!(downs(Q5_0).len(), 16);
        assert_eq!(of("q4_k_m", "self_conditioning.down_proj.weight", 2112), Some(Q5_0));
        assert_eq!(of("q5_k", "layers.3.mlp.down_proj.weight", 2112), Some(Q5_1));
        assert_eq!(of("q5_k", "layers.3.self_attn.q_proj.weight", 2816), Some(Q5K));
        assert_eq!(of("q8_0", "layers.3.mlp.up_proj.weight", 100), None, "no block fits");
        for kept in
            ["norm.weight", "layers.1.router.proj.weight", "layers.1.layer_scalar", "layers.1.self_attn.q_norm.weight"]
        {
            assert_eq!(of("q4_0", kept, 2816), None, "{kept}");
        }
        assert!("q4_k_xl".parse::<Quantization>().unwrap_err().contains("q4_k_m"));
    }
}

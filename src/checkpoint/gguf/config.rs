//! A GGUF file's keys in the form of config.json and generation_config.json.

use serde_json::{Map, Value as Json, json};

use tokenizers::Tokenizer;

use super::super::error::{CheckpointError, shown};
use super::super::gguf_tokenizer::{Vocabulary, build};
use super::super::text::catching;
use super::container::{Array, Container, Value};
use super::names::ROPE_FREQS;
use crate::kernels::ElementType;

/// The one architecture that can be served.
pub(crate) const ARCHITECTURE: &str = "diffusion-gemma";

/// The end tokens beside the one that a file names, by their spelling.
const TURN_ENDS: [&str; 2] = ["<turn|>", "<|tool_response>"];

/// Divisors of at least this size stand for "does not rotate" (files have 1e30).
const STILL: f32 = 1e9;

/// Keys of one file, with the file's bytes for the arrays.
pub(crate) struct Keys<'a> {
    pub(crate) container: &'a Container,
    pub(crate) bytes: &'a [u8],
}

/// The layers' kinds, and the heads of each kind.
struct Heads {
    /// Of each layer, whether it slides.
    kinds: Vec<bool>,
    /// Key/value heads; `None` where there is no layer of the kind.
    full_kv: Option<u64>,
    sliding_kv: Option<u64>,
    /// Numbers in a head.
    full_size: u64,
    sliding_size: u64,
}

impl Keys<'_> {
    /// Sees that the file holds this model, whole.
    pub(crate) fn check_architecture(&self) -> Result<(), CheckpointError> {
        let file = &self.container.file;
        match self.text("general.architecture")? {
            Some(ARCHITECTURE) => {}
            other => {
                let found = other.map_or("none".to_owned(), shown);
                let why = format!("its architecture is {found}; only {ARCHITECTURE} files can be served");
                return Err(CheckpointError::unsupported(file, why));
            }
        }
        match self.whole("split.count")? {
            None | Some(0 | 1) => Ok(()),
            Some(parts) => {
                let why = format!("it is one of {parts} parts; join them first (llama-gguf-split --merge)");
                Err(CheckpointError::unsupported(file, why))
            }
        }
    }

    /// The file's config.json.
    pub(crate) fn config(&self) -> Result<Json, CheckpointError> {
        let text = self.text_section()?;
        let canvas = self.whole("diffusion.canvas_length")?.filter(|&canvas| canvas > 0);
        let canvas =
            canvas.ok_or_else(|| self.container.wrong("diffusion.canvas_length", "it must be there and above 0"))?;
        Ok(json!({
            "architectures": ["DiffusionGemmaForBlockDiffusion"],
            "model_type": "diffusion_gemma",
            "canvas_length": canvas,
            "tie_word_embeddings": true,
            "text_config": text,
        }))
    }

    /// Its section on the text part.
    fn text_section(&self) -> Result<Json, CheckpointError> {
        let layers = self.needed("block_count")? as usize;
        if layers == 0 || layers > 1 << 10 {
            return Err(self.wrong("block_count", format!("{layers} layers")));
        }
        let heads = self.heads(layers)?;
        self.check_features()?;
        let mut text = json!({
            "model_type": "diffusion_gemma_text",
            "vocab_size": self.vocabulary()?,
            "hidden_size": self.needed("embedding_length")?,
            "intermediate_size": self.alike("feed_forward_length", layers)?,
            "num_hidden_layers": layers,
            "layer_types": heads.kinds.iter().map(|&sliding| layer_type(sliding)).collect::<Vec<_>>(),
            "num_attention_heads": self.alike("attention.head_count", layers)?,
            "num_key_value_heads": heads.sliding_kv.or(heads.full_kv),
            "num_global_key_value_heads": heads.full_kv.or(heads.sliding_kv),
            "head_dim": heads.sliding_size,
            "global_head_dim": heads.full_size,
            "sliding_window": self.needed("attention.sliding_window")?,
            "max_position_embeddings": self.needed("context_length")?,
            "rms_norm_eps": self.float("attention.layer_norm_rms_epsilon")?.unwrap_or(1e-6),
            "hidden_activation": "gelu_pytorch_tanh",
            "final_logit_softcapping": self.float("final_logit_softcapping")?.unwrap_or(30.0),
            "rope_parameters": self.rope_section()?,
            "tie_word_embeddings": true,
        });
        if let Some(experts) = self.model("expert_count")?.filter(|&count| count > 0) {
            text["num_experts"] = experts.into();
            text["top_k_experts"] = self.needed("expert_used_count")?.into();
            text["moe_intermediate_size"] = self.needed("expert_feed_forward_length")?.into();
        }
        Ok(text)
    }

    /// The kinds of layers and their heads.
    fn heads(&self, layers: usize) -> Result<Heads, CheckpointError> {
        let kinds = self.layer_kinds(layers)?;
        let kv = self.per_layer("attention.head_count_kv", layers)?;
        let kv = kv.ok_or_else(|| self.wrong("attention.head_count_kv", "the key is missing"))?;
        let (full_kv, sliding_kv) = (self.common(&kinds, &kv, false)?, self.common(&kinds, &kv, true)?);
        let (full_size, sliding_size) = (self.head_size("")?, self.head_size("_swa")?);
        let full_size = full_size.ok_or_else(|| self.wrong("attention.key_length", "the key is missing"))?;
        let sliding_size = sliding_size.unwrap_or(full_size);
        Ok(Heads { kinds, full_kv, sliding_kv, full_size, sliding_size })
    }

    /// Refuses what other models of the family have, and this one's attention does not do.
    fn check_features(&self) -> Result<(), CheckpointError> {
        for key in ["attention.shared_kv_layers", "embedding_length_per_layer_input"] {
            if self.model(key)?.is_some_and(|count| count != 0) {
                return Err(self.wrong(key, "layers that share keys and per-layer inputs are not supported"));
            }
        }
        if self.container.keys.get(&prefixed("attention.causal")).and_then(Value::whole) == Some(1) {
            return Err(self.wrong("attention.causal", "a diffusion model's canvas is not causal"));
        }
        Ok(())
    }

    /// How positions turn the heads; how much of a global one turns, [`Keys::rotating_pairs`] says.
    fn rope_section(&self) -> Result<Json, CheckpointError> {
        Ok(json!({
            "sliding_attention": {
                "rope_type": "default",
                "rope_theta": self.float("rope.freq_base_swa")?.unwrap_or(1e4),
            },
            "full_attention": {
                "rope_type": "proportional",
                "rope_theta": self.float("rope.freq_base")?.unwrap_or(1e6),
            },
        }))
    }

    /// The file's generation_config.json; the file names one end token, and the two that end a turn go by their spelling.
    pub(crate) fn generation(&self, tokens: &[String]) -> Result<Json, CheckpointError> {
        let mut map = Map::new();
        for (key, field) in [
            ("diffusion.eb_max_steps", "max_denoising_steps"),
            ("diffusion.eb_stability_threshold", "stability_threshold"),
        ] {
            if let Some(value) = self.whole(key)? {
                map.insert(field.to_owned(), value.into());
            }
        }
        for (key, field) in [
            ("diffusion.eb_t_min", "t_min"),
            ("diffusion.eb_t_max", "t_max"),
            ("diffusion.eb_confidence_threshold", "confidence_threshold"),
        ] {
            if let Some(value) = self.number(key)? {
                map.insert(field.to_owned(), json!(value));
            }
        }
        if let Some(bound) = self.number("diffusion.eb_entropy_bound")? {
            map.insert("sampler_config".to_owned(), json!({"entropy_bound": bound}));
        }
        let mut ends = Vec::new();
        for key in ["tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id"] {
            ends.extend(self.whole(key)?);
        }
        let spelled = |text| tokens.iter().position(|token| token == text).map(|id| id as u64);
        ends.extend(TURN_ENDS.into_iter().filter_map(spelled));
        map.insert("eos_token_id".to_owned(), json!(ends));
        Ok(Json::Object(map))
    }

    /// The tokenizer that the file describes; `tokens` is its list of tokens.
    pub(crate) fn tokenizer(&self, tokens: Vec<String>) -> Result<Tokenizer, CheckpointError> {
        const LIST: &str = "tokenizer.ggml.tokens";
        if tokens.is_empty() {
            return Err(self.container.wrong(LIST, "it is missing, and there is no tokenizer.json beside the file"));
        }
        let model = self.text("tokenizer.ggml.model")?.unwrap_or("none");
        if !matches!(model, "gemma4" | "gemma") {
            let why = format!("{} is not known, only gemma4 is; put a tokenizer.json beside the file", shown(model));
            return Err(self.container.wrong("tokenizer.ggml.model", why));
        }
        let types = self.wholes("tokenizer.ggml.token_type", tokens.len(), "tokens")?.unwrap_or_default();
        let id = |name: &str| -> Result<Option<u32>, CheckpointError> {
            let key = format!("tokenizer.ggml.{name}_token_id");
            let Some(id) = self.whole(&key)? else { return Ok(None) };
            let below = u32::try_from(id).ok().filter(|&id| (id as usize) < tokens.len());
            below.map(Some).ok_or_else(|| self.container.wrong(&key, format!("{id} is not below {}", tokens.len())))
        };
        let vocabulary = Vocabulary {
            bos: id("bos")?,
            eos: id("eos")?,
            unknown: id("unknown")?,
            pad: id("padding")?,
            add_bos: self.whole("tokenizer.ggml.add_bos_token")? != Some(0),
            types: types.iter().map(|&kind| u32::try_from(kind).unwrap_or(u32::MAX)).collect(),
            merges: self.texts("tokenizer.ggml.merges")?.unwrap_or_default(),
            tokens,
        };
        catching(|| build(&vocabulary)).map_err(|why| self.container.wrong(LIST, why))
    }

    /// Which layers slide: an array of flags, one flag for all, or the reference's rule where the key is missing.
    pub(crate) fn layer_kinds(&self, layers: usize) -> Result<Vec<bool>, CheckpointError> {
        const KEY: &str = "attention.sliding_window_pattern";
        match self.per_layer(KEY, layers)? {
            Some(flags) if flags.iter().all(|&flag| flag <= 1) => Ok(flags.iter().map(|&flag| flag == 1).collect()),
            // One number above 1 is a period: every n-th layer is global.
            Some(period) if period.iter().all(|&each| each == period[0]) => {
                Ok((1..=layers as u64).map(|layer| layer % period[0] != 0).collect())
            }
            Some(_) => Err(self.wrong(KEY, "flags (0 or 1) were expected")),
            None => Ok((1..=layers).map(|layer| layer % 6 != 0).collect()),
        }
    }

    /// Tokens of the vocabulary: the token list's length, or else the rows of the embedding.
    pub(crate) fn vocabulary(&self) -> Result<usize, CheckpointError> {
        let rows = self.container.tensors.get("token_embd.weight").and_then(|record| record.shape.first().copied());
        match (self.container.keys.get("tokenizer.ggml.tokens"), rows) {
            (Some(Value::Array(Array { count, .. })), Some(rows)) if *count != rows => {
                let why = format!("{count} tokens, and token_embd.weight has {rows} rows");
                Err(self.container.wrong("tokenizer.ggml.tokens", why))
            }
            (Some(Value::Array(Array { count, .. })), _) => Ok(*count),
            (Some(_), _) => Err(self.container.wrong("tokenizer.ggml.tokens", "an array was expected")),
            (None, rows) => rows.ok_or_else(|| self.container.wrong("tokenizer.ggml.tokens", "the key is missing")),
        }
    }

    /// Key and value lengths of one kind of layer; they must agree.
    fn head_size(&self, suffix: &str) -> Result<Option<u64>, CheckpointError> {
        let key = format!("attention.key_length{suffix}");
        let Some(size) = self.model(&key)? else { return Ok(None) };
        for other in [format!("attention.value_length{suffix}"), format!("rope.dimension_count{suffix}")] {
            if let Some(found) = self.model(&other)?.filter(|&found| found != size) {
                return Err(self.wrong(&other, format!("{found} differs from {key}, {size}")));
            }
        }
        Ok(Some(size))
    }

    /// The one value that all layers of a kind share; `None` where there is no such layer.
    fn common(&self, kinds: &[bool], values: &[u64], sliding: bool) -> Result<Option<u64>, CheckpointError> {
        let mut of_kind = kinds.iter().zip(values).filter(|(kind, _)| **kind == sliding).map(|(_, value)| *value);
        let Some(first) = of_kind.next() else { return Ok(None) };
        if of_kind.any(|value| value != first) {
            let why = "layers of one kind must have equally many key/value heads";
            return Err(self.wrong("attention.head_count_kv", why));
        }
        Ok(Some(first))
    }

    /// How many pairs of a global head rotate, read off the tensor of divisors; all of them where there is none.
    pub(crate) fn rotating_pairs(&self, head: usize) -> Result<usize, CheckpointError> {
        let file = &self.container.file;
        let Some(record) = self.container.tensors.get(ROPE_FREQS) else { return Ok(head / 2) };
        let wrong = |why: &str| CheckpointError::unsupported(file, format!("tensor {ROPE_FREQS}: {why}"));
        if record.kind.element != Some(ElementType::F32) || record.shape.len() != 1 || record.shape[0] != head / 2 {
            return Err(wrong(&format!("{} F32 divisors were expected", head / 2)));
        }
        let bytes = &self.bytes[record.range.clone()];
        let divisors: Vec<f32> =
            bytes.chunks_exact(4).map(|four| f32::from_le_bytes([four[0], four[1], four[2], four[3]])).collect();
        let rotating = divisors.iter().take_while(|&&divisor| divisor == 1.0).count();
        if !divisors[rotating..].iter().all(|&divisor| divisor >= STILL) {
            return Err(wrong("divisors other than 1 followed by 1e30 are not supported"));
        }
        Ok(rotating)
    }

    fn wrong(&self, key: &str, why: impl Into<String>) -> CheckpointError {
        self.container.wrong(&prefixed(key), why)
    }

    fn needed(&self, key: &str) -> Result<u64, CheckpointError> {
        self.model(key)?.ok_or_else(|| self.wrong(key, "the key is missing"))
    }

    fn model(&self, key: &str) -> Result<Option<u64>, CheckpointError> {
        self.whole(&prefixed(key))
    }

    fn float(&self, key: &str) -> Result<Option<f64>, CheckpointError> {
        self.number(&prefixed(key))
    }

    /// A whole number, whatever integer type the writer chose.
    pub(crate) fn whole(&self, key: &str) -> Result<Option<u64>, CheckpointError> {
        let Some(value) = self.container.keys.get(key) else { return Ok(None) };
        value.whole().map(Some).ok_or_else(|| self.container.wrong(key, "a whole number, 0 or more, was expected"))
    }

    /// A number; single precision is widened by its shortest decimal, so that 0.1 stays 0.1.
    fn number(&self, key: &str) -> Result<Option<f64>, CheckpointError> {
        let Some(value) = self.container.keys.get(key) else { return Ok(None) };
        let number = value.float().filter(|number| number.is_finite());
        let number = number.ok_or_else(|| self.container.wrong(key, "a number was expected"))?;
        Ok(Some((number as f32).to_string().parse().unwrap_or(number)))
    }

    pub(crate) fn text(&self, key: &str) -> Result<Option<&str>, CheckpointError> {
        match self.container.keys.get(key) {
            None => Ok(None),
            Some(Value::Text(text)) => Ok(Some(text)),
            Some(_) => Err(self.container.wrong(key, "a text was expected")),
        }
    }

    /// An array of texts.
    pub(crate) fn texts(&self, key: &str) -> Result<Option<Vec<String>>, CheckpointError> {
        match self.container.keys.get(key) {
            None => Ok(None),
            Some(Value::Array(array)) => {
                array.texts(self.bytes).map(Some).map_err(|why| self.container.wrong(key, why))
            }
            Some(_) => Err(self.container.wrong(key, "an array was expected")),
        }
    }

    /// An array of whole numbers, of any element type: one for each of so many things. The file's count is looked at before
    /// a number is read, for one byte in the file takes many in memory.
    fn wholes(&self, key: &str, count: usize, things: &str) -> Result<Option<Vec<u64>>, CheckpointError> {
        let wrong = |why: String| self.container.wrong(key, why);
        match self.container.keys.get(key) {
            None => Ok(None),
            Some(Value::Array(array)) if array.count != count => {
                Err(wrong(format!("{} entries for {count} {things}", array.count)))
            }
            Some(Value::Array(array)) => {
                let values = array.numbers(self.bytes).map_err(wrong)?;
                let values: Option<Vec<u64>> = values.iter().map(Value::whole).collect();
                values.map(Some).ok_or_else(|| wrong("whole numbers, 0 or more, were expected".to_owned()))
            }
            Some(_) => Err(wrong("an array was expected".to_owned())),
        }
    }

    /// One whole number per layer, from an array or from one number for all.
    fn per_layer(&self, key: &str, layers: usize) -> Result<Option<Vec<u64>>, CheckpointError> {
        let full = prefixed(key);
        match self.container.keys.get(&full) {
            None => Ok(None),
            Some(Value::Array(_)) => self.wholes(&full, layers, "layers"),
            Some(_) => Ok(self.whole(&full)?.map(|value| vec![value; layers])),
        }
    }

    /// A number that must be the same for all layers.
    fn alike(&self, key: &str, layers: usize) -> Result<u64, CheckpointError> {
        let list = self.per_layer(key, layers)?.ok_or_else(|| self.wrong(key, "the key is missing"))?;
        match list.first() {
            Some(&first) if list.iter().all(|&value| value == first) => Ok(first),
            _ => Err(self.wrong(key, "all layers must agree")),
        }
    }
}

fn prefixed(key: &str) -> String {
    format!("{ARCHITECTURE}.{key}")
}

fn layer_type(sliding: bool) -> &'static str {
    if sliding { "sliding_attention" } else { "full_attention" }
}

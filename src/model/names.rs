//! Which tensors a checkpoint must hold, with their shapes, and what every other name is.
//!
//! Names are the hub's (the model's reference, section 2). Pure: no bytes, no device.

use std::collections::HashMap;

use super::config::{Config, LayerKind};

/// Prefix of the decoder's tensors; every tied tensor is stored here.
pub(super) const DECODER: &str = "model.decoder.";
/// Prefix under which a file may repeat the tied text tensors.
const ENCODER_TEXT: &str = "model.encoder.language_model.";
/// The embedding, which is also the output head.
pub const EMBEDDING: &str = "model.decoder.embed_tokens.weight";
const HEAD: &str = "lm_head.weight";

/// What a name in a file stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Known<'a> {
    /// Needed, with this shape.
    Needed(&'a [usize]),
    /// A second copy of a tied tensor, with this shape; not loaded.
    Duplicate(&'a [usize]),
    /// Part of the vision tower; not loaded.
    Vision,
    /// Nothing this model has.
    Unknown,
}

/// The tensors of one configuration.
pub(super) struct Names {
    needed: HashMap<String, Vec<usize>>,
}

impl Names {
    pub fn of(config: &Config) -> Names {
        let mut needed = HashMap::new();
        let (h, f) = (config.hidden, config.intermediate);
        needed.insert(EMBEDDING.to_owned(), vec![config.vocabulary, h]);
        let mut put = |name: String, shape: &[usize]| {
            needed.insert(format!("{DECODER}{name}"), shape.to_vec());
        };
        put("norm.weight".into(), &[h]);
        put("self_conditioning.pre_norm.weight".into(), &[h]);
        put("self_conditioning.gate_proj.weight".into(), &[f, h]);
        put("self_conditioning.up_proj.weight".into(), &[f, h]);
        put("self_conditioning.down_proj.weight".into(), &[h, f]);
        for (i, &kind) in config.layers.iter().enumerate() {
            for (suffix, shape) in layer(config, kind) {
                put(format!("layers.{i}.{suffix}"), &shape);
            }
        }
        for i in 0..config.layers.len() {
            needed.insert(encoder_scalar(i), vec![1]);
        }
        Names { needed }
    }

    /// Every needed name and its shape.
    pub fn needed(&self) -> impl Iterator<Item = (&str, &[usize])> {
        self.needed.iter().map(|(name, shape)| (name.as_str(), shape.as_slice()))
    }

    /// What `name` stands for.
    pub fn classify(&self, name: &str) -> Known<'_> {
        if let Some(shape) = self.needed.get(name) {
            return Known::Needed(shape);
        }
        let tied = match name.strip_prefix(ENCODER_TEXT) {
            Some(rest) => self.needed.get(&format!("{DECODER}{rest}")),
            None if name == HEAD => self.needed.get(EMBEDDING),
            None => None,
        };
        match tied {
            Some(shape) => Known::Duplicate(shape),
            None if is_vision(name) => Known::Vision,
            None => Known::Unknown,
        }
    }
}

/// Encoder mode's scalar of a layer; the one encoder tensor that is not tied.
pub(super) fn encoder_scalar(layer: usize) -> String {
    format!("{ENCODER_TEXT}layers.{layer}.layer_scalar")
}

/// Suffixes and shapes of one decoder layer.
fn layer(config: &Config, kind: LayerKind) -> Vec<(&'static str, Vec<usize>)> {
    let (h, f) = (config.hidden, config.intermediate);
    let attention = config.attention(kind);
    let (q, kv) = (config.heads * attention.head_dim, attention.kv_heads * attention.head_dim);
    let mut list = vec![
        ("self_attn.q_proj.weight", vec![q, h]),
        ("self_attn.k_proj.weight", vec![kv, h]),
        ("self_attn.o_proj.weight", vec![h, q]),
        ("self_attn.q_norm.weight", vec![attention.head_dim]),
        ("self_attn.k_norm.weight", vec![attention.head_dim]),
        ("input_layernorm.weight", vec![h]),
        ("post_attention_layernorm.weight", vec![h]),
        ("pre_feedforward_layernorm.weight", vec![h]),
        ("post_feedforward_layernorm.weight", vec![h]),
        ("mlp.gate_proj.weight", vec![f, h]),
        ("mlp.up_proj.weight", vec![f, h]),
        ("mlp.down_proj.weight", vec![h, f]),
        ("layer_scalar", vec![1]),
    ];
    if kind == LayerKind::Sliding {
        list.push(("self_attn.v_proj.weight", vec![kv, h]));
    }
    if let Some(experts) = &config.experts {
        let (e, k) = (experts.count, experts.intermediate);
        list.extend([
            ("post_feedforward_layernorm_1.weight", vec![h]),
            ("post_feedforward_layernorm_2.weight", vec![h]),
            ("pre_feedforward_layernorm_2.weight", vec![h]),
            ("router.proj.weight", vec![e, h]),
            ("router.scale", vec![h]),
            ("router.per_expert_scale", vec![e]),
            ("experts.gate_up_proj", vec![e, 2 * k, h]),
            ("experts.down_proj", vec![e, h, k]),
        ]);
    }
    list
}

/// Whether the name belongs to the vision tower or its projector, spelled as the hub spells them.
fn is_vision(name: &str) -> bool {
    const GLOBAL: [&str; 5] = [
        "vision_tower.patch_embedder.input_proj.weight",
        "vision_tower.patch_embedder.position_embedding_table",
        "vision_tower.std_bias",
        "vision_tower.std_scale",
        "embed_vision.embedding_projection.weight",
    ];
    const NORMS: [&str; 6] = [
        "self_attn.q_norm",
        "self_attn.k_norm",
        "input_layernorm",
        "post_attention_layernorm",
        "pre_feedforward_layernorm",
        "post_feedforward_layernorm",
    ];
    const LINEARS: [&str; 7] = [
        "self_attn.q_proj",
        "self_attn.k_proj",
        "self_attn.v_proj",
        "self_attn.o_proj",
        "mlp.gate_proj",
        "mlp.up_proj",
        "mlp.down_proj",
    ];
    // Clipped linears carry four scalars beside the matrix.
    const PARTS: [&str; 5] = [".linear.weight", ".input_min", ".input_max", ".output_min", ".output_max"];
    let Some(rest) = name.strip_prefix("model.encoder.") else { return false };
    if GLOBAL.contains(&rest) {
        return true;
    }
    let Some((index, suffix)) = rest.strip_prefix("vision_tower.encoder.layers.").and_then(|r| r.split_once('.'))
    else {
        return false;
    };
    index.parse::<u16>().is_ok()
        && (NORMS.iter().any(|n| suffix.strip_prefix(n) == Some(".weight"))
            || LINEARS.iter().any(|n| suffix.strip_prefix(n).is_some_and(|part| PARTS.contains(&part))))
}

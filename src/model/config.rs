//! `config.json`, read strictly: what the forward needs, in types that cannot be wrong.
//!
//! Both layouts of the hub are understood: `global_head_dim`/`num_global_key_value_heads`, and the newer
//! `per_layer_config`. Whatever the forward does not implement is an error that names the key, never ignored; keys
//! that change no number are. Knows no file and no tensor.

use serde_json::Value;

use super::config_section::{ConfigError, Section};

/// How far a layer's attention reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LayerKind {
    /// The last `window` positions.
    Sliding,
    /// Everything.
    Full,
}

/// Rotary embedding of one layer kind (the model's reference, section 3.1).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rope {
    /// Base θ, `> 0`.
    pub theta: f64,
    /// Pairs that rotate, at most `head_dim / 2`; the others pass through.
    pub rotating_pairs: usize,
    /// Every frequency is divided by it; 1 for plain rotary embeddings.
    pub factor: f64,
}

/// Attention of one layer kind; all layers of the kind are alike.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AttentionConfig {
    /// Width of a head, even.
    pub head_dim: usize,
    /// Key/value heads; divides the number of query heads.
    pub kv_heads: usize,
    /// Its rotary embedding.
    pub rope: Rope,
}

/// The mixture branch of every layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExpertsConfig {
    /// Experts per layer.
    pub count: usize,
    /// Experts chosen per row, `1 ..= count`.
    pub top_k: usize,
    /// Hidden width of one expert.
    pub intermediate: usize,
}

/// Token ids around images.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageTokens {
    /// Before an image.
    pub begin: u32,
    /// One per soft token.
    pub soft: u32,
    /// After an image.
    pub end: u32,
}

/// The configuration of a DiffusionGemma checkpoint's text part.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Tokens of one canvas.
    pub canvas: usize,
    /// Size of the vocabulary.
    pub vocabulary: usize,
    /// Width H of the residual stream.
    pub hidden: usize,
    /// Width of the dense MLP and of the self-conditioning MLP.
    pub intermediate: usize,
    /// Kind of each layer, first to last.
    pub layers: Vec<LayerKind>,
    /// Query heads of every layer.
    pub heads: usize,
    /// Attention of sliding layers.
    pub sliding: AttentionConfig,
    /// Attention of full layers; they have no value projection, their values are made from the raw keys.
    pub full: AttentionConfig,
    /// Sliding window W in tokens.
    pub window: usize,
    /// Most positions (`max_position_embeddings`).
    pub context: usize,
    /// ε of every RMS norm.
    pub rms_norm_eps: f32,
    /// c of the final soft cap `c·tanh(x/c)`.
    pub softcap: f32,
    /// The mixture branch; `None` for a dense checkpoint.
    pub experts: Option<ExpertsConfig>,
    /// Ids around images; `None` where the checkpoint names none inside the vocabulary.
    pub images: Option<ImageTokens>,
}

/// Upper bounds that no real checkpoint comes near; they keep every product of sizes far from overflow.
mod most {
    pub const WIDTH: usize = 1 << 17;
    pub const VOCABULARY: usize = 1 << 22;
    pub const LAYERS: usize = 1 << 10;
    pub const HEADS: usize = 1 << 10;
    pub const HEAD_DIM: usize = 1 << 12;
    pub const EXPERTS: usize = 1 << 13;
    pub const POSITIONS: usize = 1 << 24;
    pub const CANVAS: usize = 1 << 14;
    /// Logits are known to some 1e-7 of their cap: ten thousandths here, and more would show in what is drawn.
    pub const SOFTCAP: f64 = 1e3;
}

impl Config {
    /// Reads a whole `config.json`.
    ///
    /// # Errors
    /// [`ConfigError`], naming the key by its path.
    pub fn from_json(json: &Value) -> Result<Config, ConfigError> {
        let top = Section::root(json)?;
        let text = top.section("text_config")?.ok_or_else(|| top.missing("text_config"))?;
        top.only("model_type", &["diffusion_gemma"], "this server runs DiffusionGemma only")?;
        text.only("model_type", &["diffusion_gemma_text"], "this server runs DiffusionGemma only")?;
        refuse_unsupported(&top, &text)?;

        let hidden = text.size("hidden_size", Some(2304), most::WIDTH)?;
        let heads = text.size("num_attention_heads", Some(8), most::HEADS)?;
        let layers = layer_kinds(&text)?;
        let (sliding, full) = attention(&text, &layers, heads)?;
        let vocabulary = text.size("vocab_size", Some(262_144), most::VOCABULARY)?;
        let context = text.size("max_position_embeddings", Some(131_072), most::POSITIONS)?;
        let canvas = top.size("canvas_length", Some(256), most::CANVAS)?;
        if canvas > context {
            return Err(top.invalid("canvas_length", "it must not exceed text_config.max_position_embeddings"));
        }
        Ok(Config {
            canvas,
            vocabulary,
            hidden,
            intermediate: text.size("intermediate_size", Some(9216), most::WIDTH)?,
            layers,
            heads,
            sliding,
            full,
            window: text.size("sliding_window", Some(512), most::POSITIONS)?,
            context,
            rms_norm_eps: text.number("rms_norm_eps", Some(1e-6), 0.0, 1.0)? as f32,
            softcap: text.number("final_logit_softcapping", Some(30.0), 1e-3, most::SOFTCAP)? as f32,
            experts: experts(&text)?,
            images: image_tokens(&top, vocabulary)?,
        })
    }

    /// Attention of a layer kind.
    pub fn attention(&self, kind: LayerKind) -> &AttentionConfig {
        match kind {
            LayerKind::Sliding => &self.sliding,
            LayerKind::Full => &self.full,
        }
    }

    /// Number of layers of a kind.
    pub fn count(&self, kind: LayerKind) -> usize {
        self.layers.iter().filter(|&&k| k == kind).count()
    }
}

/// Everything that would change numbers and is not implemented.
fn refuse_unsupported(top: &Section, text: &Section) -> Result<(), ConfigError> {
    text.only("hidden_activation", &["gelu_pytorch_tanh"], "only gelu_pytorch_tanh is implemented")?;
    text.only(
        "use_bidirectional_attention",
        &["vision"],
        "only \"vision\" or null is implemented (the encoder is causal over text)",
    )?;
    for section in [top, text] {
        section.flag("tie_word_embeddings", true, "the output head must be the embedding")?;
        section.absent("quantization_config", "only plain f32, bf16 and f16 tensors (or a GGUF file) can be loaded")?;
    }
    text.flag("attention_bias", false, "projections with a bias are not implemented")?;
    text.flag("attention_k_eq_v", true, "full layers make their values from the keys")?;
    text.flag("use_double_wide_mlp", false, "double-wide MLPs are not implemented")?;
    for key in ["num_kv_shared_layers", "hidden_size_per_layer_input"] {
        text.zero(key, "layers that share keys and per-layer inputs are not implemented")?;
    }
    for key in ["attn_logit_softcapping", "query_pre_attn_scalar", "rope_scaling"] {
        text.absent(key, "DiffusionGemma has none")?;
    }
    refuse_older_spellings(text)?;
    if text.present("final_logit_softcapping") == Some(&Value::Null) {
        return Err(text.unsupported("final_logit_softcapping", "logits without a soft cap are not implemented"));
    }
    if text.get("final_logit_softcapping").and_then(Value::as_f64).is_some_and(|cap| cap > most::SOFTCAP) {
        let why = "under so wide a cap logits would lose their last digits; write 1000, which moves a logit of 30 by less than \
                   a hundredth";
        return Err(text.unsupported("final_logit_softcapping", why));
    }
    Ok(())
}

/// Rotation and layers as Gemma 3 spells them. Beside the newer keys, which win, most of these change no number.
fn refuse_older_spellings(text: &Section) -> Result<(), ConfigError> {
    if text.get("rope_parameters").is_none() {
        for key in ["rope_theta", "rope_local_base_freq"] {
            text.absent(key, "rotations are read from rope_parameters, for each kind of layer")?;
        }
    }
    if text.get("layer_types").is_none() {
        text.absent("sliding_window_pattern", "the kinds of layers are read from layer_types, one for each layer")?;
    }
    text.absent("partial_rotary_factor", "it is read from rope_parameters.full_attention")
}

fn layer_kinds(text: &Section) -> Result<Vec<LayerKind>, ConfigError> {
    let count = text.size("num_hidden_layers", Some(30), most::LAYERS)?;
    let mut kinds = Vec::with_capacity(count);
    match text.get("layer_types") {
        None => {
            // The reference's rule: five sliding layers, then a full one.
            kinds.extend((1..=count).map(|i| if i % 6 == 0 { LayerKind::Full } else { LayerKind::Sliding }));
        }
        Some(Value::Array(list)) => {
            if list.len() != count {
                return Err(text.invalid("layer_types", "it must have num_hidden_layers entries"));
            }
            for kind in list {
                kinds.push(match kind.as_str() {
                    Some("sliding_attention") => LayerKind::Sliding,
                    Some("full_attention") => LayerKind::Full,
                    _ => {
                        let why = "only sliding_attention and full_attention are implemented";
                        return Err(text.unsupported("layer_types", why));
                    }
                });
            }
        }
        Some(_) => return Err(text.invalid("layer_types", "it must be a list")),
    }
    // The reference forces it, whatever the list says.
    if let Some(last) = kinds.last_mut() {
        *last = LayerKind::Full;
    }
    Ok(kinds)
}

/// Head width and key/value heads of both kinds, from either layout, with their rotary embeddings.
fn attention(
    text: &Section,
    layers: &[LayerKind],
    heads: usize,
) -> Result<(AttentionConfig, AttentionConfig), ConfigError> {
    let head_dim = text.size("head_dim", Some(256), most::HEAD_DIM)?;
    let kv_heads = text.size("num_key_value_heads", Some(4), most::HEADS)?;
    let mut sliding = (head_dim, kv_heads);
    let mut full = match text.get("per_layer_config") {
        Some(_) => (head_dim, kv_heads),
        None => (
            text.size("global_head_dim", Some(512), most::HEAD_DIM)?,
            text.size("num_global_key_value_heads", Some(kv_heads), most::HEADS)?,
        ),
    };
    if let Some(overrides) = text.section("per_layer_config")? {
        let shapes = per_layer(&overrides, layers.len(), (head_dim, kv_heads))?;
        for (kind, shape) in [(LayerKind::Sliding, &mut sliding), (LayerKind::Full, &mut full)] {
            let mut of_kind = layers.iter().zip(&shapes).filter(|(k, _)| **k == kind).map(|(_, s)| *s);
            if let Some(first) = of_kind.next() {
                if of_kind.any(|s| s != first) {
                    return Err(text.unsupported("per_layer_config", "all layers of one type must be alike"));
                }
                *shape = first;
            }
        }
    }
    let make = |kind, (head_dim, kv_heads): (usize, usize)| {
        if head_dim % 2 != 0 {
            return Err(text.invalid("head_dim", "the head width of every layer must be even"));
        }
        if !heads.is_multiple_of(kv_heads) {
            return Err(
                text.invalid("num_attention_heads", "it must be a multiple of every layer's number of key/value heads")
            );
        }
        Ok(AttentionConfig { head_dim, kv_heads, rope: rope(text, kind, head_dim)? })
    };
    Ok((make(LayerKind::Sliding, sliding)?, make(LayerKind::Full, full)?))
}

/// `(head_dim, kv_heads)` of each layer under the `per_layer_config` layout.
fn per_layer(overrides: &Section, layers: usize, default: (usize, usize)) -> Result<Vec<(usize, usize)>, ConfigError> {
    let mut shapes = vec![default; layers];
    for key in overrides.keys() {
        let Some(shape) = key.parse::<usize>().ok().and_then(|i| shapes.get_mut(i)) else {
            return Err(overrides.invalid(key, "its key must be the index of a layer"));
        };
        let entry = overrides.section(key)?.ok_or_else(|| overrides.missing(key))?;
        if let Some(other) = entry.keys().find(|k| !matches!(*k, "head_dim" | "num_key_value_heads")) {
            let why = "only head_dim and num_key_value_heads may differ between layers";
            return Err(entry.unsupported(other, why));
        }
        shape.0 = entry.size("head_dim", Some(default.0), most::HEAD_DIM)?;
        shape.1 = entry.size("num_key_value_heads", Some(default.1), most::HEADS)?;
    }
    Ok(shapes)
}

fn rope(text: &Section, kind: LayerKind, head_dim: usize) -> Result<Rope, ConfigError> {
    let (name, theta, rope_type, partial) = match kind {
        LayerKind::Sliding => ("sliding_attention", 1e4, "default", 1.0),
        LayerKind::Full => ("full_attention", 1e6, "proportional", 0.25),
    };
    let all = head_dim / 2;
    let Some(parameters) = text.section("rope_parameters")? else {
        return Ok(Rope { theta, rotating_pairs: pairs(partial, head_dim), factor: 1.0 });
    };
    let section = parameters.section(name)?.ok_or_else(|| parameters.missing(name))?;
    let found = section.text("rope_type", Some(rope_type))?;
    let theta = section.number("rope_theta", None, 1e-3, 1e12)?;
    match found.as_str() {
        "default" => {
            if section.number("partial_rotary_factor", Some(1.0), 0.0, 1.0)? != 1.0 {
                let why = "a partial factor is implemented for rope_type \"proportional\" only";
                return Err(section.unsupported("partial_rotary_factor", why));
            }
            Ok(Rope { theta, rotating_pairs: all, factor: 1.0 })
        }
        "proportional" => {
            let partial = section.number("partial_rotary_factor", Some(1.0), 0.0, 1.0)?;
            let factor = section.number("factor", Some(1.0), 1e-6, 1e9)?;
            Ok(Rope { theta, rotating_pairs: pairs(partial, head_dim), factor })
        }
        _ => Err(section.unsupported("rope_type", "only \"default\" and \"proportional\" are implemented")),
    }
}

/// `int(partial · head_dim // 2)`, the reference's rounding.
fn pairs(partial: f64, head_dim: usize) -> usize {
    ((partial * head_dim as f64 / 2.0).floor() as usize).min(head_dim / 2)
}

/// The mixture is on when `num_experts` is a number; a missing `enable_moe_block` says nothing.
fn experts(text: &Section) -> Result<Option<ExpertsConfig>, ConfigError> {
    if text.get("num_experts").is_none() {
        for key in ["top_k_experts", "moe_intermediate_size"] {
            if text.get(key).is_some() {
                return Err(text.invalid(key, "there is no num_experts beside it"));
            }
        }
        if text.get("enable_moe_block") == Some(&Value::Bool(true)) {
            return Err(text.missing("num_experts"));
        }
        return Ok(None);
    }
    text.flag("enable_moe_block", true, "num_experts is set; a dense checkpoint has none")?;
    let count = text.size("num_experts", None, most::EXPERTS)?;
    let top_k = text.size("top_k_experts", None, most::EXPERTS)?;
    if top_k > count {
        return Err(text.invalid("top_k_experts", "it must not exceed num_experts"));
    }
    Ok(Some(ExpertsConfig { count, top_k, intermediate: text.size("moe_intermediate_size", None, most::WIDTH)? }))
}

/// Ids outside the vocabulary (the reference's defaults on a small text checkpoint) mean "no images".
fn image_tokens(top: &Section, vocabulary: usize) -> Result<Option<ImageTokens>, ConfigError> {
    let mut ids = [0u32; 3];
    for (id, (key, default)) in
        ids.iter_mut().zip([("boi_token_id", 255_999), ("image_token_id", 258_880), ("eoi_token_id", 258_882)])
    {
        let found = top.count(key, Some(default), u32::MAX as usize)?;
        if found >= vocabulary {
            return Ok(None);
        }
        *id = found as u32;
    }
    let [begin, soft, end] = ids;
    Ok(Some(ImageTokens { begin, soft, end }))
}

//! Writes a checkpoint as a GGUF file, tensor by tensor, in the layout of the published files.

use std::collections::HashMap;
use std::io::{self, BufWriter, Seek, Write};

use serde_json::Value as Json;

use super::super::block_types::GgufType;
use super::super::error::CheckpointError;
use super::super::new_file::NewFile;
use super::super::quantize::{Quantization, quantize};
use super::super::{Checkpoint, GenerationDefaults};
use super::config::ARCHITECTURE;
use super::names::{self, ROPE_FREQS};
use super::read_back;
use crate::kernels::ElementType;
use crate::model::{Config, LayerKind, Weights, widened};

const ALIGNMENT: u64 = 32;
const UNSIGNED: u32 = 4;
const SIGNED: u32 = 5;
const FLOAT: u32 = 6;
const BOOL: u32 = 7;
const TEXT: u32 = 8;
const ARRAY: u32 = 9;

/// What has been written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// Tensors in the file.
    pub tensors: usize,
    /// The file's bytes.
    pub bytes: u64,
    /// Tensors of the checkpoint that GGUF files of this model do not hold (the vision tower).
    pub left_out: usize,
}

/// One tensor to be written.
struct Planned {
    /// Its name in the checkpoint; `None` for the divisors of the rotation, which are made here.
    hub: Option<String>,
    gguf: String,
    shape: Vec<usize>,
    element: ElementType,
    offset: u64,
    bytes: u64,
}

/// Quantizes a checkpoint into a new file. Peak memory is one tensor in its quantized form.
///
/// # Errors
/// Where the file cannot be written, a tensor is quantized already, or GGUF cannot say what the checkpoint is.
pub(crate) fn write(
    checkpoint: &Checkpoint,
    scheme: Quantization,
    new: &NewFile,
    report: &dyn Fn(u64, u64),
) -> Result<Written, CheckpointError> {
    let refused = |source| CheckpointError::Write { path: new.path().to_owned(), source };
    let keys = keys(checkpoint, scheme)?;
    let (plan, left_out) = plan(checkpoint, scheme)?;
    read_back::check(checkpoint, &description(checkpoint, &keys, &plan).map_err(refused)?)?;
    let mut out = BufWriter::with_capacity(1 << 20, new.file());
    head(&mut out, &keys, &plan).map_err(refused)?;
    tensors(&mut out, checkpoint, &plan, &refused, report)?;
    let bytes = out.flush().and_then(|()| out.stream_position()).map_err(refused)?;
    new.finish().map_err(refused)?;
    Ok(Written { tensors: plan.len(), bytes, left_out })
}

/// The one end token that a file names.
fn end_token(checkpoint: &Checkpoint) -> Option<u32> {
    let spelled = checkpoint.eos_token.as_ref().and_then(|token| checkpoint.tokenizer.token_to_id(token));
    spelled.or_else(|| checkpoint.generation.end_tokens.first().copied())
}

/// Which tensors, of which types, and where.
fn plan(checkpoint: &Checkpoint, scheme: Quantization) -> Result<(Vec<Planned>, usize), CheckpointError> {
    let config = &checkpoint.config;
    let mut plan = vec![Planned {
        hub: None,
        gguf: ROPE_FREQS.to_owned(),
        shape: vec![config.full.head_dim / 2],
        element: ElementType::F32,
        offset: 0,
        bytes: 0,
    }];
    let mut left_out = 0;
    let mut table: Vec<_> = checkpoint.tensors.iter().collect();
    table.sort_by_key(|stored| in_order(&stored.name));
    for stored in table {
        let hub = stored.name.clone();
        // Tied copies: GGUF keeps the original alone.
        if hub == "lm_head.weight" {
            continue;
        }
        let Some(gguf) = names::to_gguf(&hub) else {
            left_out += usize::from(!hub.starts_with("model.encoder.language_model."));
            continue;
        };
        let element = stored.element.ok_or_else(|| stored.unusable(&checkpoint.id))?;
        let plain = element.block().0 == 1;
        let element = match scheme.target(&hub, &stored.shape, config.layers.len()) {
            Some(target) => target,
            // Norms, scalars and the router are F32 in every published file.
            None if plain && (stored.shape.len() < 2 || hub.ends_with("router.proj.weight")) => ElementType::F32,
            None => element,
        };
        plan.push(Planned { hub: Some(hub), gguf, shape: stored.shape.clone(), element, offset: 0, bytes: 0 });
    }
    let mut offset = 0;
    for planned in &mut plan {
        let (inner, rows) = planned.shape.split_last().map_or((1, 1), |(inner, rows)| (*inner, rows.iter().product()));
        let size = GgufType::of(planned.element).size(inner as u64, rows as u64);
        let why = || CheckpointError::damaged(&checkpoint.id, format!("tensor {} has no possible size", planned.gguf));
        planned.bytes = size.ok_or_else(why)?;
        planned.offset = offset;
        offset = (offset + planned.bytes).next_multiple_of(ALIGNMENT);
    }
    Ok((plan, left_out))
}

/// Sorts names by layer number, then by name.
fn in_order(name: &str) -> (usize, String) {
    let number = name.split('.').find_map(|part| part.parse::<usize>().ok());
    (number.map_or(0, |layer| layer + 1), name.to_owned())
}

/// Header, keys, and the tensors' records, up to where the data begins.
fn head(out: &mut (impl Write + Seek), keys: &[(String, Vec<u8>)], plan: &[Planned]) -> io::Result<()> {
    out.write_all(b"GGUF")?;
    out.write_all(&3u32.to_le_bytes())?;
    out.write_all(&(plan.len() as u64).to_le_bytes())?;
    out.write_all(&(keys.len() as u64).to_le_bytes())?;
    for (key, value) in keys {
        out.write_all(&text(key))?;
        out.write_all(value)?;
    }
    for planned in plan {
        out.write_all(&text(&planned.gguf))?;
        out.write_all(&(planned.shape.len() as u32).to_le_bytes())?;
        for &size in planned.shape.iter().rev() {
            out.write_all(&(size as u64).to_le_bytes())?;
        }
        out.write_all(&GgufType::of(planned.element).code.to_le_bytes())?;
        out.write_all(&planned.offset.to_le_bytes())?;
    }
    pad(out)
}

fn pad(out: &mut (impl Write + Seek)) -> io::Result<()> {
    let at = out.stream_position()?;
    let zeros = [0; ALIGNMENT as usize];
    out.write_all(&zeros[..(at.next_multiple_of(ALIGNMENT) - at) as usize])
}

/// The file as far as it says what the model is: without any tensor but the divisors of the rotation, which are the first.
fn description(checkpoint: &Checkpoint, keys: &[(String, Vec<u8>)], plan: &[Planned]) -> io::Result<Vec<u8>> {
    let mut out = io::Cursor::new(Vec::new());
    head(&mut out, keys, plan.get(..1).unwrap_or_default())?;
    out.write_all(&divisors(&checkpoint.config))?;
    Ok(out.into_inner())
}

fn tensors(
    out: &mut (impl Write + Seek),
    checkpoint: &Checkpoint,
    plan: &[Planned],
    refused: &dyn Fn(io::Error) -> CheckpointError,
    report: &dyn Fn(u64, u64),
) -> Result<(), CheckpointError> {
    let weights: &dyn Weights = checkpoint.weights.as_ref();
    let total = plan.iter().map(|planned| planned.bytes).sum();
    let mut done = 0;
    for planned in plan {
        match &planned.hub {
            None => out.write_all(&divisors(&checkpoint.config)).map_err(refused)?,
            Some(hub) => {
                let gone = || CheckpointError::damaged(&checkpoint.id, format!("tensor {hub} is gone"));
                let raw = weights.get(hub)?.ok_or_else(gone)?;
                if raw.element == planned.element {
                    out.write_all(&raw.bytes).map_err(refused)?;
                } else if planned.element == ElementType::F32 {
                    let values = widened(hub, raw.element, &raw.bytes)?;
                    let bytes: Vec<u8> = values.into_iter().flat_map(f32::to_le_bytes).collect();
                    out.write_all(&bytes).map_err(refused)?;
                } else {
                    out.write_all(&quantize(hub, &raw, planned.element)?.bytes).map_err(refused)?;
                }
                drop(raw);
                weights.release(hub);
            }
        }
        pad(out).map_err(refused)?;
        done += planned.bytes;
        report(done, total);
    }
    Ok(())
}

/// Divisors of the global layers' angles: 1 for the pairs that rotate, so much for the others that they stand still.
fn divisors(config: &Config) -> Vec<u8> {
    let rotating = config.full.rope.rotating_pairs;
    let divisor = |pair: usize| if pair < rotating { 1f32 } else { 1e30 };
    (0..config.full.head_dim / 2).flat_map(|pair| divisor(pair).to_le_bytes()).collect()
}

fn text(value: &str) -> Vec<u8> {
    let mut bytes = (value.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(value.as_bytes());
    bytes
}

/// Keys with their tagged values, in the order of the published files.
#[derive(Default)]
struct Keys(Vec<(String, Vec<u8>)>);

impl Keys {
    fn raw(&mut self, key: &str, tag: u32, value: &[u8]) {
        self.0.push((key.to_owned(), [&tag.to_le_bytes(), value].concat()));
    }

    fn whole(&mut self, key: &str, value: usize) {
        // Sizes of a configuration are bounded far below 2³².
        self.raw(key, UNSIGNED, &u32::try_from(value).unwrap_or(u32::MAX).to_le_bytes());
    }

    fn float(&mut self, key: &str, value: f32) {
        self.raw(key, FLOAT, &value.to_le_bytes());
    }

    fn text(&mut self, key: &str, value: &str) {
        self.raw(key, TEXT, &text(value));
    }

    fn array(&mut self, key: &str, tag: u32, elements: impl ExactSizeIterator<Item = Vec<u8>>) {
        let mut bytes = [tag.to_le_bytes().as_slice(), &(elements.len() as u64).to_le_bytes()].concat();
        elements.for_each(|element| bytes.extend(element));
        self.raw(key, ARRAY, &bytes);
    }
}

fn keys(checkpoint: &Checkpoint, scheme: Quantization) -> Result<Vec<(String, Vec<u8>)>, CheckpointError> {
    let config = &checkpoint.config;
    let mut keys = Keys::default();
    keys.text("general.architecture", ARCHITECTURE);
    keys.text("general.type", "model");
    keys.text("general.name", &checkpoint.id);
    keys.whole("general.file_type", scheme.file_type() as usize);
    keys.whole("general.quantization_version", 2);
    model_keys(&mut keys, config);
    sampling_keys(&mut keys, &checkpoint.generation);
    tokenizer_keys(&mut keys, checkpoint)?;
    Ok(keys.0)
}

fn model_keys(keys: &mut Keys, config: &Config) {
    let key = |name: &str| format!("{ARCHITECTURE}.{name}");
    let slides = |kind: &LayerKind| *kind == LayerKind::Sliding;
    keys.whole(&key("block_count"), config.layers.len());
    keys.whole(&key("context_length"), config.context);
    keys.whole(&key("embedding_length"), config.hidden);
    keys.whole(&key("feed_forward_length"), config.intermediate);
    keys.whole(&key("attention.head_count"), config.heads);
    let kv = config.layers.iter().map(|&kind| (config.attention(kind).kv_heads as i32).to_le_bytes().to_vec());
    keys.array(&key("attention.head_count_kv"), SIGNED, kv);
    for (suffix, attention) in [("", &config.full), ("_swa", &config.sliding)] {
        keys.whole(&key(&format!("attention.key_length{suffix}")), attention.head_dim);
        keys.whole(&key(&format!("attention.value_length{suffix}")), attention.head_dim);
        keys.whole(&key(&format!("rope.dimension_count{suffix}")), attention.head_dim);
        keys.float(&key(&format!("rope.freq_base{suffix}")), attention.rope.theta as f32);
    }
    keys.whole(&key("attention.sliding_window"), config.window);
    let pattern = config.layers.iter().map(|kind| vec![u8::from(slides(kind))]);
    keys.array(&key("attention.sliding_window_pattern"), BOOL, pattern);
    keys.whole(&key("attention.shared_kv_layers"), 0);
    keys.float(&key("attention.layer_norm_rms_epsilon"), config.rms_norm_eps);
    keys.raw(&key("attention.causal"), BOOL, &[0]);
    keys.whole(&key("embedding_length_per_layer_input"), 0);
    keys.float(&key("final_logit_softcapping"), config.softcap);
    if let Some(experts) = &config.experts {
        keys.whole(&key("expert_count"), experts.count);
        keys.whole(&key("expert_used_count"), experts.top_k);
        keys.whole(&key("expert_feed_forward_length"), experts.intermediate);
    }
    keys.whole("diffusion.canvas_length", config.canvas);
}

fn sampling_keys(keys: &mut Keys, generation: &GenerationDefaults) {
    keys.whole("diffusion.eb_max_steps", generation.max_denoising_steps);
    keys.whole("diffusion.eb_stability_threshold", generation.stability_threshold);
    keys.float("diffusion.eb_t_min", generation.t_min);
    keys.float("diffusion.eb_t_max", generation.t_max);
    keys.float("diffusion.eb_entropy_bound", generation.entropy_bound);
    keys.float("diffusion.eb_confidence_threshold", generation.confidence_threshold);
}

/// The vocabulary, merges and special tokens out of the tokenizer, and the chat template.
fn tokenizer_keys(keys: &mut Keys, checkpoint: &Checkpoint) -> Result<(), CheckpointError> {
    let unsupported = |why: &str| CheckpointError::unsupported("tokenizer.json", why.to_owned());
    let json = checkpoint.tokenizer.to_string(false).map_err(|error| unsupported(&error.to_string()))?;
    let json: Json = serde_json::from_str(&json).map_err(|error| unsupported(&error.to_string()))?;
    let merges = json.pointer("/model/merges").and_then(Json::as_array);
    let bytes_fall_back = json.pointer("/model/byte_fallback").and_then(Json::as_bool) == Some(true);
    let (Some(merges), true) = (merges, bytes_fall_back) else {
        return Err(unsupported("only byte-fallback BPE, the kind that this model has, can be written to GGUF"));
    };
    let merges = merges.iter().map(|merge| match merge {
        Json::String(text) => Some(text.clone()),
        Json::Array(pair) => Some(format!("{} {}", pair.first()?.as_str()?, pair.get(1)?.as_str()?)),
        _ => None,
    });
    let merges: Vec<String> = merges.collect::<Option<_>>().ok_or_else(|| unsupported("its merges cannot be read"))?;
    let added = json.get("added_tokens").and_then(Json::as_array).cloned().unwrap_or_default();
    let unknown = json.pointer("/model/unk_token").and_then(Json::as_str).map(str::to_owned);
    let special: HashMap<u64, bool> =
        added.iter().filter_map(|entry| Some((entry["id"].as_u64()?, entry["special"] == true))).collect();
    let tokenizer = &checkpoint.tokenizer;
    let mut tokens = Vec::with_capacity(checkpoint.config.vocabulary);
    let mut types = Vec::with_capacity(checkpoint.config.vocabulary);
    for id in 0..u32::try_from(checkpoint.config.vocabulary).unwrap_or(u32::MAX) {
        let token = tokenizer.id_to_token(id);
        types.push(match (&token, special.get(&u64::from(id))) {
            // 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte.
            (None, _) => 5i32,
            (Some(token), _) if Some(token) == unknown.as_ref() => 2,
            (_, Some(true)) => 3,
            (_, Some(false)) => 4,
            (Some(token), None) if is_byte(token) => 6,
            (Some(_), None) => 1,
        });
        tokens.push(token.unwrap_or_else(|| format!("<unused_{id}>")));
    }
    keys.text("tokenizer.ggml.model", "gemma4");
    keys.array("tokenizer.ggml.tokens", TEXT, tokens.iter().map(|token| text(token)));
    keys.array("tokenizer.ggml.scores", FLOAT, tokens.iter().map(|_| (-1000f32).to_le_bytes().to_vec()));
    keys.array("tokenizer.ggml.token_type", SIGNED, types.iter().map(|kind| kind.to_le_bytes().to_vec()));
    keys.array("tokenizer.ggml.merges", TEXT, merges.iter().map(|merge| text(merge)));
    let id = |spelling: &Option<String>| spelling.as_ref().and_then(|token| tokenizer.token_to_id(token));
    for (name, token) in [
        ("bos", id(&checkpoint.bos_token)),
        ("eos", end_token(checkpoint)),
        ("unknown", id(&unknown)),
        ("padding", tokenizer.token_to_id("<pad>")),
    ] {
        if let Some(token) = token {
            keys.whole(&format!("tokenizer.ggml.{name}_token_id"), token as usize);
        }
    }
    keys.raw("tokenizer.ggml.add_bos_token", BOOL, &[1]);
    keys.raw("tokenizer.ggml.add_space_prefix", BOOL, &[0]);
    if let Some(template) = &checkpoint.template {
        keys.text("tokenizer.chat_template", template);
    }
    Ok(())
}

/// `<0x0A>` and its like.
fn is_byte(token: &str) -> bool {
    token.len() == 6
        && token.starts_with("<0x")
        && token.ends_with('>')
        && token[3..5].bytes().all(|byte| byte.is_ascii_hexdigit())
}

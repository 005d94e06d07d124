//! The same weights in other files: shards, the newer layout of config.json, GGUF, fewer bits. What loses nothing gives the same
//! logits bit for bit; what rounds stays within its bound.

use std::path::Path;

use canvasd::checkpoint::{Checkpoint, NewFile, Quantization, Source, open};
use canvasd::kernels::ElementType;
use canvasd::model::{Config, KvElement, LayerKind, LoadOptions, probe};
use canvasd::pass::{Conditioning, KvView};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView, serialize};
use serde_json::{Value, json};

use super::cases::BOUND;
use super::fixture::{Fixture, committed, speak_like_the_demo};
use super::world::World;

#[path = "../support/gguf.rs"]
pub mod gguf;

/// Logits of a prompt's first canvas step.
fn logits(fixture: &Fixture, checkpoint: &Checkpoint) -> Vec<f32> {
    // What rounding keys and values costs is bounded elsewhere.
    let options = LoadOptions { kv: Some(KvElement::F32), ..Default::default() };
    let mut world = World::load(checkpoint, &options, probe::Tuning::default());
    let mut kv = KvView::default();
    let prompt = world.encode(&mut kv, &fixture.get("enc.short.input_ids").tokens(0));
    world.run(vec![prompt]);
    let canvas = fixture.get("dec.short.canvas").tokens(0);
    let step = world.denoise(&kv, 1, Conditioning::Fresh, &canvas, 0.8);
    world.run(vec![step]).1.logits.concat()
}

/// Root of the mean squared difference over that of the values.
pub fn distance(found: &[f32], wanted: &[f32]) -> f64 {
    assert_eq!(found.len(), wanted.len());
    let square = |values: &mut dyn Iterator<Item = f32>| values.map(|v| f64::from(v) * f64::from(v)).sum::<f64>();
    (square(&mut found.iter().zip(wanted).map(|(a, b)| a - b)) / square(&mut wanted.iter().copied())).sqrt()
}

/// A copy of a fixture's checkpoint without its weights.
fn copy(fixture: &Fixture) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(fixture.folder.join("checkpoint")).unwrap().flatten() {
        if entry.file_name() != "model.safetensors" {
            std::fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
        }
    }
    folder
}

fn config(folder: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(folder.join("config.json")).unwrap()).unwrap()
}

fn source(fixture: &Fixture) -> Vec<u8> {
    std::fs::read(fixture.folder.join("checkpoint/model.safetensors")).unwrap()
}

fn opened(folder: &Path) -> Checkpoint {
    open(&Source::Folder(folder.to_owned())).unwrap()
}

#[test]
fn shards_give_the_same_bits() {
    for fixture in committed() {
        let wanted = logits(&fixture, &fixture.checkpoint());
        let reference = fixture.get("dec.short.first.logits");
        let worst = wanted.iter().zip(reference.at(0)).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(worst <= BOUND, "{}: {worst}", fixture.name);
        let (folder, bytes) = (copy(&fixture), source(&fixture));
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let mut tensors: Vec<(String, TensorView<'_>)> = file.tensors();
        tensors.sort_by(|a, b| a.0.cmp(&b.0));
        let mut map = serde_json::Map::new();
        for (part, tensors) in tensors.chunks(tensors.len().div_ceil(3)).enumerate() {
            let name = format!("model-{}-of-3.safetensors", part + 1);
            map.extend(tensors.iter().map(|(tensor, _)| (tensor.clone(), json!(name))));
            std::fs::write(folder.path().join(name), serialize(tensors.iter().cloned(), None).unwrap()).unwrap();
        }
        let index = json!({"metadata": {}, "weight_map": map}).to_string();
        std::fs::write(folder.path().join("model.safetensors.index.json"), index).unwrap();
        assert_eq!(logits(&fixture, &opened(folder.path())), wanted, "{}", fixture.name);
    }
}

/// Rewrites a folder's config.json so that the global layers' shapes stand under `per_layer_config`.
pub fn newer_layout(folder: &Path) {
    let mut config = config(folder);
    let text = config["text_config"].as_object_mut().unwrap();
    let full = json!({"head_dim": text.remove("global_head_dim"), "num_key_value_heads": text.remove("num_global_key_value_heads")});
    let kinds = text["layer_types"].as_array().unwrap().clone();
    let layers = kinds.iter().enumerate().filter(|(_, kind)| *kind == "full_attention");
    text.insert(
        "per_layer_config".into(),
        layers.map(|(i, _)| (i.to_string(), full.clone())).collect::<serde_json::Map<_, _>>().into(),
    );
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
}

#[test]
fn the_newer_layout_of_the_configuration_gives_the_same_bits() {
    for fixture in committed() {
        let folder = copy(&fixture);
        std::fs::write(folder.path().join("model.safetensors"), source(&fixture)).unwrap();
        newer_layout(folder.path());
        assert_eq!(
            logits(&fixture, &opened(folder.path())),
            logits(&fixture, &fixture.checkpoint()),
            "{}",
            fixture.name
        );
    }
}

/// A fixture as GGUF, by the independent writer; the names stand here as the format's description has them.
fn as_gguf(checkpoint: &Checkpoint) -> gguf::Gguf {
    let mut file = header(&checkpoint.config);
    for name in checkpoint.weights.names() {
        let Some(gguf) = gguf_name(&name) else { continue };
        let raw = checkpoint.weights.get(&name).unwrap().unwrap();
        assert_eq!(raw.element, ElementType::F32);
        file = file.tensor(&gguf, 0, &raw.shape, raw.bytes.into_owned());
    }
    file
}

/// The keys of a configuration, and the one tensor that is part of it.
pub fn header(c: &Config) -> gguf::Gguf {
    let key = |name: &str| format!("diffusion-gemma.{name}");
    let kv: Vec<i32> = c.layers.iter().map(|&kind| c.attention(kind).kv_heads as i32).collect();
    let pattern: Vec<bool> = c.layers.iter().map(|&kind| kind == LayerKind::Sliding).collect();
    let mut file = gguf::Gguf::default()
        .text("general.architecture", "diffusion-gemma")
        .u32(&key("block_count"), c.layers.len() as u32)
        .u32(&key("context_length"), c.context as u32)
        .u32(&key("embedding_length"), c.hidden as u32)
        .u32(&key("feed_forward_length"), c.intermediate as u32)
        .u32(&key("attention.head_count"), c.heads as u32)
        .i32s(&key("attention.head_count_kv"), &kv)
        .u32(&key("attention.key_length"), c.full.head_dim as u32)
        .u32(&key("attention.key_length_swa"), c.sliding.head_dim as u32)
        .u32(&key("attention.sliding_window"), c.window as u32)
        .bools(&key("attention.sliding_window_pattern"), &pattern)
        .u32("diffusion.canvas_length", c.canvas as u32);
    if let Some(experts) = &c.experts {
        file = file
            .u32(&key("expert_count"), experts.count as u32)
            .u32(&key("expert_used_count"), experts.top_k as u32)
            .u32(&key("expert_feed_forward_length"), experts.intermediate as u32);
    }
    let half = c.full.head_dim / 2;
    let divisors = (0..half).flat_map(|i| if i < half / 4 { 1f32 } else { 1e30 }.to_le_bytes()).collect();
    file.tensor("rope_freqs.weight", 0, &[half], divisors)
}

/// GGUF's name of a tensor.
pub fn gguf_name(hub: &str) -> Option<String> {
    if let Some(rest) = hub.strip_prefix("model.encoder.language_model.layers.") {
        return Some(format!("blk.{}.enc_layer_output_scale.weight", rest.strip_suffix(".layer_scalar")?));
    }
    let rest = hub.strip_prefix("model.decoder.")?;
    if let Some(part) = rest.strip_prefix("self_conditioning.") {
        return Some(format!("self_cond_{}", part.replace("_proj", "")));
    }
    let Some((layer, part)) = rest.strip_prefix("layers.").and_then(|rest| rest.split_once('.')) else {
        return Some(match rest {
            "norm.weight" => "output_norm.weight".into(),
            _ => "token_embd.weight".into(),
        });
    };
    let part = match part {
        "input_layernorm.weight" => "attn_norm.weight",
        "self_attn.q_proj.weight" => "attn_q.weight",
        "self_attn.k_proj.weight" => "attn_k.weight",
        "self_attn.v_proj.weight" => "attn_v.weight",
        "self_attn.o_proj.weight" => "attn_output.weight",
        "self_attn.q_norm.weight" => "attn_q_norm.weight",
        "self_attn.k_norm.weight" => "attn_k_norm.weight",
        "post_attention_layernorm.weight" => "post_attention_norm.weight",
        "pre_feedforward_layernorm.weight" => "ffn_norm.weight",
        "post_feedforward_layernorm.weight" => "post_ffw_norm.weight",
        "post_feedforward_layernorm_1.weight" => "post_ffw_norm_1.weight",
        "pre_feedforward_layernorm_2.weight" => "pre_ffw_norm_2.weight",
        "post_feedforward_layernorm_2.weight" => "post_ffw_norm_2.weight",
        "mlp.gate_proj.weight" => "ffn_gate.weight",
        "mlp.up_proj.weight" => "ffn_up.weight",
        "mlp.down_proj.weight" => "ffn_down.weight",
        "router.proj.weight" => "ffn_gate_inp.weight",
        "router.scale" => "ffn_gate_inp.scale",
        "router.per_expert_scale" => "ffn_down_exps.scale",
        "experts.gate_up_proj" => "ffn_gate_up_exps.weight",
        "experts.down_proj" => "ffn_down_exps.weight",
        "layer_scalar" => "layer_output_scale.weight",
        other => panic!("{other}"),
    };
    Some(format!("blk.{layer}.{part}"))
}

#[test]
fn a_gguf_file_gives_the_same_bits() {
    for fixture in committed() {
        let folder = copy(&fixture);
        let path = folder.path().join("m.gguf");
        std::fs::write(&path, as_gguf(&fixture.checkpoint()).bytes()).unwrap();
        let file = open(&Source::Gguf(path)).unwrap();
        assert_eq!(logits(&fixture, &file), logits(&fixture, &fixture.checkpoint()), "{}", fixture.name);
    }
}

#[test]
fn quantizing_on_load_and_into_a_file_give_the_same_bits() {
    for fixture in committed() {
        let wanted = logits(&fixture, &fixture.checkpoint());
        for (scheme, bound) in [(Quantization::Q8_0, 0.02), (Quantization::Q5_0, 0.2), (Quantization::Q4_0, 0.3)] {
            let folder = copy(&fixture);
            let path = folder.path().join("m.gguf");
            // Tokenizer and end tokens beside the file win on reading.
            let mut source = fixture.checkpoint();
            speak_like_the_demo(&mut source);
            source.write_gguf(scheme, &NewFile::begin(&path).unwrap(), &|_, _| ()).unwrap();
            let on_load = logits(&fixture, &fixture.checkpoint().quantized(scheme).unwrap());
            assert_eq!(logits(&fixture, &open(&Source::Gguf(path)).unwrap()), on_load, "{} {scheme}", fixture.name);
            let off = distance(&on_load, &wanted);
            println!("{} {scheme}: relative distance {off:.4}", fixture.name);
            // Random weights have no slack, and a choice of experts that tips over counts in full on the mixture fixture: it was
            // 0.02, 0.14 and 0.26 away with none that does much. Logits that have nothing in common are √2 apart.
            let bound = if fixture.name == "dense" { bound } else { 1.0 };
            assert!(off < bound, "{} {scheme}: {off}", fixture.name);
        }
    }
}

#[test]
fn half_precision_stays_close() {
    type Narrow = fn(f32) -> [u8; 2];
    let narrow: [(Dtype, Narrow, f64); 2] = [
        (Dtype::F16, |value| half::f16::from_f32(value).to_le_bytes(), 0.002),
        (Dtype::BF16, |value| half::bf16::from_f32(value).to_le_bytes(), 0.02),
    ];
    for fixture in committed().into_iter().filter(|fixture| fixture.name == "dense") {
        let (wanted, bytes) = (logits(&fixture, &fixture.checkpoint()), source(&fixture));
        let file = SafeTensors::deserialize(&bytes).unwrap();
        for (dtype, round, bound) in narrow {
            let folder = copy(&fixture);
            let rounded: Vec<(String, Vec<usize>, Vec<u8>)> = file
                .tensors()
                .into_iter()
                .map(|(name, view)| {
                    let values = view.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
                    (name, view.shape().to_vec(), values.flat_map(round).collect())
                })
                .collect();
            let views =
                rounded.iter().map(|(name, shape, data)| (name, TensorView::new(dtype, shape.clone(), data).unwrap()));
            std::fs::write(folder.path().join("model.safetensors"), serialize(views, None).unwrap()).unwrap();
            let off = distance(&logits(&fixture, &opened(folder.path())), &wanted);
            println!("{dtype:?}: relative distance {off:.5}");
            assert!(off < bound, "{dtype:?}: {off}");
        }
    }
}

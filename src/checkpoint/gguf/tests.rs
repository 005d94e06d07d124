use super::super::{Checkpoint, CheckpointError, Source, demo, open};
use crate::checkpoint::writer::Gguf;
use crate::kernels::ElementType;
use crate::model::LayerKind;

const HIDDEN: usize = 32;
const HEAD: usize = 8;
const WORDS: [&str; 6] = ["<pad>", "<eos>", "<bos>", "<unk>", "<turn|>", "\u{2581}"];

fn floats(values: impl IntoIterator<Item = f32>) -> Vec<u8> {
    values.into_iter().flat_map(f32::to_le_bytes).collect()
}

/// Data of a tensor of this type whose bytes count up, so that no two places are alike.
fn counted(element: ElementType, shape: &[usize]) -> Vec<u8> {
    let (block, bytes) = element.block();
    (0..shape.iter().product::<usize>() / block * bytes).map(|i| (i % 251) as u8).collect()
}

/// A model of two layers, sliding and global, in the published layout.
fn model() -> Gguf {
    let key = |name: &str| format!("diffusion-gemma.{name}");
    let mut file = Gguf::default()
        .text("general.architecture", "diffusion-gemma")
        .u32(&key("block_count"), 2)
        .u32(&key("context_length"), 512)
        .u32(&key("embedding_length"), HIDDEN as u32)
        .u32(&key("feed_forward_length"), 64)
        .u32(&key("attention.head_count"), 4)
        .i32s(&key("attention.head_count_kv"), &[2, 1])
        .u32(&key("attention.key_length"), 16)
        .u32(&key("attention.value_length"), 16)
        .u32(&key("attention.key_length_swa"), HEAD as u32)
        .u32(&key("attention.value_length_swa"), HEAD as u32)
        .u32(&key("attention.sliding_window"), 8)
        .bools(&key("attention.sliding_window_pattern"), &[true, false])
        .u32(&key("attention.shared_kv_layers"), 0)
        .f32(&key("attention.layer_norm_rms_epsilon"), 1e-6)
        .bool(&key("attention.causal"), false)
        .f32(&key("rope.freq_base"), 1e6)
        .f32(&key("rope.freq_base_swa"), 1e4)
        .u32(&key("expert_count"), 2)
        .u32(&key("expert_used_count"), 1)
        .u32(&key("expert_feed_forward_length"), 32)
        .f32(&key("final_logit_softcapping"), 30.0)
        .u32("diffusion.canvas_length", 16)
        .text("tokenizer.ggml.model", "gemma4")
        .texts("tokenizer.ggml.tokens", &WORDS)
        .u32("tokenizer.ggml.bos_token_id", 2)
        .u32("tokenizer.ggml.eos_token_id", 1)
        .text("tokenizer.chat_template", "{{ messages }}")
        .tensor("rope_freqs.weight", 0, &[8], floats([1.0, 1.0, 1e30, 1e30, 1e30, 1e30, 1e30, 1e30]))
        .tensor("token_embd.weight", 8, &[6, HIDDEN], counted(ElementType::Q8_0, &[6, HIDDEN]))
        .tensor("output_norm.weight", 0, &[HIDDEN], floats([1.0; HIDDEN]));
    for layer in 0..2 {
        let name = |suffix: &str| format!("blk.{layer}.{suffix}");
        let experts = [2, 64, HIDDEN];
        file = file
            .tensor(&name("attn_norm.weight"), 0, &[HIDDEN], floats([0.5; HIDDEN]))
            .tensor(&name("layer_output_scale.weight"), 0, &[1], floats([0.25]))
            .tensor(&name("enc_layer_output_scale.weight"), 0, &[1], floats([0.75]))
            .tensor(&name("ffn_gate_inp.scale"), 0, &[HIDDEN], floats([2.0; HIDDEN]))
            .tensor(&name("ffn_gate_up_exps.weight"), 6, &experts, counted(ElementType::Q5_0, &experts));
    }
    file
}

/// Opens the file with a tokenizer beside it.
fn opened(file: &Gguf) -> Result<Checkpoint, CheckpointError> {
    let folder = tempfile::tempdir().unwrap();
    let (_, tokenizer) = demo::FILES.iter().find(|(name, _)| *name == "tokenizer.json").unwrap();
    std::fs::write(folder.path().join("tokenizer.json"), tokenizer).unwrap();
    let path = folder.path().join("tiny-Q5_0.gguf");
    std::fs::write(&path, file.bytes()).unwrap();
    open(&Source::Gguf(path))
}

#[test]
fn the_published_layout() {
    let checkpoint = opened(&model()).unwrap();
    assert_eq!(checkpoint.id, "tiny-Q5_0");
    assert_eq!(checkpoint.template.as_deref(), Some("{{ messages }}"));
    assert_eq!((checkpoint.bos_token.as_deref(), checkpoint.eos_token.as_deref()), (Some("<bos>"), Some("<eos>")));
    assert_eq!(checkpoint.generation.end_tokens, [1, 4]);
    assert_eq!(checkpoint.generation.max_denoising_steps, 48);
    let config = &checkpoint.config;
    assert_eq!((config.vocabulary, config.canvas, config.rms_norm_eps), (6, 16, 1e-6));
    assert_eq!(config.layers, [LayerKind::Sliding, LayerKind::Full]);
    assert_eq!((config.sliding.head_dim, config.sliding.kv_heads), (HEAD, 2));
    assert_eq!((config.full.head_dim, config.full.kv_heads), (16, 1));
    assert_eq!(config.full.rope.rotating_pairs, 2);
    let weights = &checkpoint.weights;
    let scalar = |name: &str| weights.get(name).unwrap().unwrap().bytes.into_owned();
    assert_eq!(scalar("model.decoder.layers.1.layer_scalar"), floats([0.25]));
    assert_eq!(scalar("model.encoder.language_model.layers.1.layer_scalar"), floats([0.75]));
    let experts = weights.get("model.decoder.layers.0.experts.gate_up_proj").unwrap().unwrap();
    assert_eq!((experts.shape.as_slice(), experts.element), ([2, 64, HIDDEN].as_slice(), ElementType::Q5_0));
    assert_eq!(&*experts.bytes, counted(ElementType::Q5_0, &[2, 64, HIDDEN]));
    assert!(!weights.names().iter().any(|name| name.contains("rope_freqs")));
}

#[test]
fn gate_and_up_may_be_apart() {
    let (gate, up) = (counted(ElementType::Q5_0, &[2, 32, HIDDEN]), vec![7u8; 2 * 32 * 22]);
    let split = model()
        .without_tensor("blk.0.ffn_gate_up_exps.weight")
        .tensor("blk.0.ffn_gate_exps.weight", 6, &[2, 32, HIDDEN], gate.clone())
        .tensor("blk.0.ffn_up_exps.weight", 6, &[2, 32, HIDDEN], up.clone());
    let checkpoint = opened(&split).unwrap();
    let joined = checkpoint.weights.get("model.decoder.layers.0.experts.gate_up_proj").unwrap().unwrap();
    assert_eq!(joined.shape, [2, 64, HIDDEN]);
    let half = gate.len() / 2;
    assert_eq!(&*joined.bytes, [&gate[..half], &up[..half], &gate[half..], &up[half..]].concat());
    checkpoint.weights.release("model.decoder.layers.0.experts.gate_up_proj");
    assert!(checkpoint.weights.names().iter().all(|name| !name.contains("exps")));
    let alone = opened(&split.clone().without_tensor("blk.0.ffn_up_exps.weight")).unwrap_err().to_string();
    assert!(alone.contains("ffn_up_exps.weight is missing"), "{alone}");
    let other =
        opened(&split.tensor("blk.0.ffn_up_exps.weight", 0, &[2, 32, HIDDEN], vec![0; 8192])).unwrap_err().to_string();
    assert!(other.contains("differ in type or shape"), "{other}");
}

#[test]
fn writers_differ_in_types() {
    let key = |name: &str| format!("diffusion-gemma.{name}");
    let same = opened(&model()).unwrap().config;
    for other in [
        model().list(&key("attention.head_count_kv"), 4, 2, &[2, 0, 0, 0, 1, 0, 0, 0]),
        model().list(&key("attention.head_count_kv"), 10, 2, &[2u64.to_le_bytes(), 1u64.to_le_bytes()].concat()),
        model().i32s(&key("attention.sliding_window_pattern"), &[1, 0]),
        model().u32(&key("attention.sliding_window_pattern"), 2),
        model().i32s(&key("attention.head_count"), &[4, 4]),
        model().i32s(&key("feed_forward_length"), &[64, 64]),
        model().raw(&key("block_count"), 10, &2u64.to_le_bytes()),
        model().raw(&key("rope.freq_base"), 12, &1e6f64.to_le_bytes()),
        model().without(&key("attention.causal")).without(&key("attention.shared_kv_layers")),
        model().without(&key("final_logit_softcapping")).without(&key("attention.value_length")),
    ] {
        assert_eq!(opened(&other).unwrap().config, same);
    }
    let all_alike = model().u32(&key("attention.head_count_kv"), 1);
    assert_eq!(opened(&all_alike).unwrap().config.sliding.kv_heads, 1);
    let sampled =
        model().u32("diffusion.eb_max_steps", 12).f32("diffusion.eb_t_max", 0.9).f32("diffusion.eb_entropy_bound", 0.2);
    let generation = opened(&sampled).unwrap().generation;
    assert_eq!((generation.max_denoising_steps, generation.t_max, generation.entropy_bound), (12, 0.9, 0.2));
}

/// As many as the file has, whatever the share that they are comes to.
#[test]
fn the_divisors_are_counted_as_they_are() {
    let key = |name: &str| format!("diffusion-gemma.attention.{name}");
    for rotating in 0..=52 {
        let divisors = (0..52).map(|pair| if pair < rotating { 1.0 } else { 1e30 });
        let file = model().u32(&key("key_length"), 104).u32(&key("value_length"), 104).tensor(
            "rope_freqs.weight",
            0,
            &[52],
            floats(divisors),
        );
        assert_eq!(opened(&file).unwrap().config.full.rope.rotating_pairs, rotating);
    }
    let all = opened(&model().without_tensor("rope_freqs.weight")).unwrap().config.full.rope;
    assert_eq!(all.rotating_pairs, 8);
}

#[test]
fn what_cannot_be_served_is_named() {
    let key = |name: &str| format!("diffusion-gemma.{name}");
    for (file, what) in [
        (model().text("general.architecture", "llama"), "architecture is llama"),
        (model().without("general.architecture"), "architecture is none"),
        (model().u32("split.count", 3), "one of 3 parts"),
        (model().without(&key("block_count")), "block_count"),
        (model().u32(&key("block_count"), 0), "block_count"),
        (model().u32(&key("block_count"), 3), "sliding_window_pattern: 2 entries for 3 layers"),
        // The count comes first: what the elements are is not looked at, however many there are.
        (model().list(&key("attention.head_count_kv"), 6, 1 << 20, &vec![0; 4 << 20]), "1048576 entries for 2 layers"),
        (model().text(&key("embedding_length"), "wide"), "embedding_length"),
        (model().u32(&key("attention.value_length"), 8), "value_length"),
        (model().u32(&key("rope.dimension_count_swa"), 4), "rope.dimension_count_swa"),
        (model().u32(&key("attention.shared_kv_layers"), 1), "shared_kv_layers"),
        (model().bool(&key("attention.causal"), true), "attention.causal"),
        (model().bools(&key("attention.sliding_window_pattern"), &[true, false, true]), "sliding_window_pattern"),
        (model().without("diffusion.canvas_length"), "diffusion.canvas_length"),
        (model().u32("diffusion.canvas_length", 0), "diffusion.canvas_length"),
        (model().f32("diffusion.eb_t_min", 0.9), "t_min"),
        (model().u32("tokenizer.ggml.eos_token_id", 6), "eos_token_id"),
        (model().texts("tokenizer.ggml.tokens", &WORDS[..5]), "5 tokens"),
        (model().tensor("rope_freqs.weight", 0, &[8], floats([2.0; 8])), "rope_freqs.weight"),
        (model().tensor("rope_freqs.weight", 0, &[7], floats([1.0; 7])), "rope_freqs.weight"),
        (
            model().tensor("blk.0.attn_k.weight", 23, &[1, 256], vec![0; 136]),
            "tensor blk.0.attn_k.weight is of type IQ4_XS",
        ),
        (
            model().tensor("blk.0.attn_k.weight", 39, &[1, 32], vec![0; 17]),
            "tensor blk.0.attn_k.weight is of type MXFP4",
        ),
        (
            model().tensor("blk.0.attn_k.weight", 40, &[1, 64], vec![0; 36]),
            "tensor blk.0.attn_k.weight is of type NVFP4",
        ),
        (
            model().tensor("model.decoder.norm.weight", 0, &[HIDDEN], floats([2.0; HIDDEN])),
            "tensor model.decoder.norm.weight has its name from another format; it is output_norm.weight",
        ),
        (
            model().tensor("model.encoder.language_model.layers.0.layer_scalar", 0, &[1], floats([2.0])),
            "it is blk.0.enc_layer_output_scale.weight",
        ),
    ] {
        let error = opened(&file).unwrap_err().to_string();
        assert!(error.contains(what), "{what}: {error}");
    }
}

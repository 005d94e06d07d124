//! What the loader and the configuration refuse, by name, and what they let pass.

use std::borrow::Cow;

use canvasd::model::{
    Config, ConfigError, DiffusionGemma, ElementType, LoadError, LoadOptions, RawTensor, WeightError, Weights,
};
use serde_json::{Value, json};

use super::fixture::{Fixture, committed};

fn moe() -> Fixture {
    committed().into_iter().next().expect("the fixture with experts")
}

/// `config.json` of the fixture with experts.
fn config() -> Value {
    let path = moe().folder.join("checkpoint/config.json");
    serde_json::from_slice(&std::fs::read(path).expect("config.json")).expect("JSON")
}

/// A checkpoint's weights with one change.
struct Changed {
    inner: Box<dyn Weights>,
    name: String,
    change: Change,
}

#[derive(Clone)]
enum Change {
    Gone,
    Is(Vec<usize>, ElementType, usize),
}

impl Weights for Changed {
    fn names(&self) -> Vec<String> {
        let mut names = self.inner.names();
        names.retain(|name| *name != self.name);
        if let Change::Is(..) = self.change {
            names.push(self.name.clone());
        }
        names
    }

    fn get(&self, name: &str) -> Result<Option<RawTensor<'_>>, WeightError> {
        match &self.change {
            _ if name != self.name => self.inner.get(name),
            Change::Gone => Ok(None),
            Change::Is(shape, element, bytes) => {
                let bytes = Cow::Owned(vec![0; *bytes]);
                Ok(Some(RawTensor { shape: shape.clone(), element: *element, bytes }))
            }
        }
    }

    fn release(&self, _name: &str) {}
}

fn load(name: &str, change: Change) -> Result<DiffusionGemma, LoadError> {
    let checkpoint = moe().checkpoint();
    let weights = Changed { inner: checkpoint.weights, name: name.into(), change };
    DiffusionGemma::load(&checkpoint.config, &weights, &LoadOptions { threads: 1, ..Default::default() })
}

#[test]
fn wrong_tensors_are_named() {
    let norm = "model.decoder.norm.weight";
    let f32s = |n: usize| Change::Is(vec![n], ElementType::F32, 4 * n);
    for (name, change, says) in [
        (norm, Change::Gone, "lacks"),
        (norm, f32s(31), "has shape [31]"),
        (norm, Change::Is(vec![32], ElementType::F32, 127), "127 bytes"),
        (norm, Change::Is(vec![], ElementType::F32, 4), "has shape []"),
        ("model.decoder.layers.5.self_attn.v_proj.weight", f32s(8), "does not have"),
        ("model.decoder.layers.6.layer_scalar", f32s(1), "does not have"),
        ("model.encoder.vision_tower.encoder.layers.0.surprise", f32s(1), "does not have"),
        ("lm_head.weight", f32s(3), "has shape [3]"),
        ("model.encoder.language_model.layers.0.layer_scalar", Change::Gone, "lacks"),
        ("model.decoder.layers.0.experts.down_proj", Change::Is(vec![4, 32, 12], ElementType::Q8_0, 99), "bytes"),
    ] {
        let error = load(name, change).err().unwrap_or_else(|| panic!("{name}: loaded all the same")).to_string();
        assert!(error.contains(name) && error.contains(says), "{name}: {error}");
    }
}

#[test]
fn duplicates_and_vision_tensors_are_let_pass() {
    let head = [420, 32];
    for (name, shape) in [
        ("lm_head.weight", head.to_vec()),
        ("model.encoder.language_model.embed_tokens.weight", head.to_vec()),
        ("model.encoder.language_model.layers.3.input_layernorm.weight", vec![32]),
        ("model.encoder.vision_tower.encoder.layers.26.mlp.up_proj.linear.weight", vec![3, 2]),
        ("model.encoder.embed_vision.embedding_projection.weight", vec![1, 1]),
    ] {
        let bytes = 4 * shape.iter().product::<usize>();
        let loaded = load(name, Change::Is(shape, ElementType::F32, bytes));
        assert!(loaded.is_ok(), "{name}: {}", loaded.err().map(|e| e.to_string()).unwrap_or_default());
    }
}

/// The configuration with one value replaced; `null` counts as missing.
fn with(path: &str, value: Value) -> Result<Config, ConfigError> {
    let mut json = config();
    let mut at = &mut json;
    for key in path.split('.') {
        at = at.as_object_mut().expect("an object").entry(key).or_insert(json!({}));
    }
    *at = value;
    Config::from_json(&json)
}

#[test]
fn unsupported_and_absurd_values_are_named() {
    for (key, value) in [
        ("model_type", json!("gemma4")),
        ("canvas_length", json!(0)),
        ("canvas_length", json!(5000)),
        ("tie_word_embeddings", json!(false)),
        ("quantization_config", json!({ "quant_method": "modelopt" })),
        ("text_config", json!(null)),
        ("text_config", json!([])),
        ("text_config.num_attention_heads", json!(0)),
        ("text_config.num_attention_heads", json!(3)),
        ("text_config.num_key_value_heads", json!(0)),
        ("text_config.hidden_size", json!(-1)),
        ("text_config.hidden_size", json!(1e30)),
        ("text_config.hidden_size", json!(u64::MAX)),
        ("text_config.vocab_size", json!("many")),
        ("text_config.num_hidden_layers", json!(7)),
        ("text_config.head_dim", json!(15)),
        ("text_config.sliding_window", json!(0)),
        ("text_config.rms_norm_eps", json!("tiny")),
        ("text_config.hidden_activation", json!("relu")),
        ("text_config.use_bidirectional_attention", json!("all")),
        ("text_config.attention_bias", json!(true)),
        ("text_config.attention_k_eq_v", json!(false)),
        ("text_config.num_kv_shared_layers", json!(2)),
        ("text_config.hidden_size_per_layer_input", json!(256)),
        ("text_config.use_double_wide_mlp", json!(true)),
        ("text_config.enable_moe_block", json!(false)),
        ("text_config.top_k_experts", json!(5)),
        ("text_config.num_experts", json!(0)),
        ("text_config.final_logit_softcapping", json!(null)),
        ("text_config.final_logit_softcapping", json!(0)),
        ("text_config.final_logit_softcapping", json!(1000.5)),
        ("text_config.final_logit_softcapping", json!(1e300)),
        ("text_config.partial_rotary_factor", json!(0.5)),
        ("text_config.layer_types", Value::from(vec!["linear_attention"; 6])),
        ("text_config.rope_parameters.sliding_attention.rope_type", json!("yarn")),
        ("text_config.rope_parameters.full_attention.partial_rotary_factor", json!(2)),
        ("text_config.rope_parameters.full_attention.rope_theta", json!(0)),
        ("text_config.per_layer_config", json!({ "9": {} })),
        ("text_config.per_layer_config", json!({ "1": { "head_dim": 8 } })),
        ("text_config.per_layer_config", json!({ "5": { "intermediate_size": 8 } })),
    ] {
        let error = with(key, value.clone()).expect_err(&format!("{key} = {value}")).to_string();
        let last = key.rsplit('.').next().unwrap_or(key);
        let named = error.contains(last) || (last == "num_hidden_layers" && error.contains("layer_types"));
        assert!(named || last == "canvas_length", "{key} = {value}: {error}");
    }
    for json in [json!(null), json!([]), json!("x"), json!({})] {
        assert!(Config::from_json(&json).is_err(), "{json}");
    }
}

/// As Gemma 3 has them: they would change numbers, unless the newer keys stand beside them.
#[test]
fn older_spellings_are_not_overlooked() {
    for (newer, older, value) in [
        ("rope_parameters", "rope_theta", json!(5e5)),
        ("rope_parameters", "rope_local_base_freq", json!(77)),
        ("layer_types", "sliding_window_pattern", json!(2)),
    ] {
        let mut json = config();
        json["text_config"][older] = value;
        let beside = Config::from_json(&json).expect("the newer key wins");
        assert_eq!(beside, Config::from_json(&config()).expect("the fixture's configuration"));
        json["text_config"].as_object_mut().expect("an object").remove(newer).expect(newer);
        let error = Config::from_json(&json).expect_err(older).to_string();
        assert!(error.contains(&format!("text_config.{older} = ")) && error.contains(newer), "{error}");
    }
}

/// What a cap does to the logits is computed to some 1e-7 of it: a wide one would leave steps between them.
#[test]
fn a_cap_too_wide_for_the_logits_is_refused_with_one_that_is_not() {
    let key = "text_config.final_logit_softcapping";
    for cap in [1001.0, 1e6] {
        let error = with(key, json!(cap)).expect_err("too wide").to_string();
        assert!(error.contains("write 1000"), "{error}");
    }
    assert_eq!(with(key, json!(1000)).expect("wide enough for any logit").softcap, 1000.0);
}

#[test]
fn both_layouts_say_the_same_and_omissions_mean_what_they_mean() {
    let old = Config::from_json(&config()).expect("the fixture's configuration");
    let mut json = config();
    let text = json["text_config"].as_object_mut().expect("an object");
    for key in ["global_head_dim", "num_global_key_value_heads"] {
        assert!(text.remove(key).is_some(), "{key} is in the older layout");
    }
    text.insert("per_layer_config".into(), json!({ "5": { "head_dim": 32, "num_key_value_heads": 1 } }));
    assert_eq!(Config::from_json(&json).expect("the newer layout"), old);
    for key in ["attention_k_eq_v", "enable_moe_block", "num_kv_shared_layers", "use_bidirectional_attention"] {
        assert_eq!(with(&format!("text_config.{key}"), json!(null)).expect(key), old, "{key} left out");
    }
    assert!(old.experts.is_some(), "experts are on because there is a number of them");
}

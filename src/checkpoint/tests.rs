use std::path::Path;

use super::*;
use crate::model::{Config, RawTensor, WeightError, widened};

fn shipped() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo")
}

/// A copy of the shipped model's small files, without its weights.
fn copied(without: &[&str]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, bytes) in demo::FILES {
        if !without.contains(name) {
            std::fs::write(folder.path().join(name), bytes).unwrap();
        }
    }
    folder
}

#[test]
fn the_demo_is_the_folder_that_ships() {
    let demo = open(&Source::parse(None).unwrap()).unwrap();
    let folder = open(&Source::parse(shipped().to_str()).unwrap()).unwrap();
    assert_eq!((demo.id.as_str(), folder.id.as_str()), ("canvasd-demo", "demo"));
    assert_eq!(demo.config, folder.config);
    assert_eq!(demo.generation, folder.generation);
    assert!(demo.template.is_some() && demo.template == folder.template);
    assert!(demo.bos_token.is_some() && !demo.generation.end_tokens.is_empty());
    let name = "model.decoder.embed_tokens.weight";
    let (ours, theirs) = (demo.weights.get(name).unwrap().unwrap(), folder.weights.get(name).unwrap().unwrap());
    assert_eq!((ours.shape, ours.element), (theirs.shape, theirs.element));
    assert!(ours.bytes == theirs.bytes);
    let mut names = (demo.weights.names(), folder.weights.names());
    names.0.sort();
    names.1.sort();
    assert_eq!(names.0, names.1);
}

#[test]
fn a_digest_tells_checkpoints_apart() {
    let digest = |path: &Path| open(&Source::parse(path.to_str()).unwrap()).unwrap().digest().unwrap();
    let (shipped, copy) = (shipped(), copied(&[]));
    assert_eq!(digest(&shipped), digest(copy.path()));
    assert_eq!(digest(&shipped), open(&Source::parse(None).unwrap()).unwrap().digest().unwrap());
    // One bit of the last norm, as another training would leave it.
    let path = copy.path().join("model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let table: serde_json::Value = serde_json::from_slice(&bytes[8..8 + header]).unwrap();
    let begin = table["model.decoder.norm.weight"]["data_offsets"][0].as_u64().unwrap() as usize;
    bytes[8 + header + begin] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    assert_ne!(digest(&shipped), digest(copy.path()));
}

/// Whatever the text of a seed depends on, not the tensors alone.
#[test]
fn a_digest_knows_the_files_beside_the_weights() {
    let digest = |change: &dyn Fn(&mut Checkpoint)| {
        let mut checkpoint = open(&Source::Demo).unwrap();
        change(&mut checkpoint);
        checkpoint.digest().unwrap()
    };
    let changes: [&dyn Fn(&mut Checkpoint); 10] = [
        &|_| (),
        &|checkpoint| checkpoint.config.canvas = 16,
        &|checkpoint| checkpoint.config.softcap = 20.0,
        &|checkpoint| checkpoint.config.full.rope.theta *= 2.0,
        &|checkpoint| checkpoint.generation.t_max = 5.0,
        &|checkpoint| checkpoint.generation.max_denoising_steps = 2,
        &|checkpoint| checkpoint.generation.end_tokens.truncate(1),
        &|checkpoint| checkpoint.template = None,
        &|checkpoint| checkpoint.eos_token = None,
        &|checkpoint| {
            checkpoint.tokenizer.add_special_tokens([tokenizers::AddedToken::from("story", true)]).unwrap();
        },
    ];
    let digests = changes.map(digest);
    assert_eq!(digests[0], digest(&|_| ()), "it is the same at every start");
    assert_eq!(digests.iter().collect::<std::collections::HashSet<_>>().len(), digests.len(), "{digests:x?}");
}

#[test]
fn missing_files_are_named() {
    for file in ["config.json", "tokenizer.json", "model.safetensors"] {
        let folder = copied(&[file]);
        let error = open(&Source::Folder(folder.path().to_owned())).unwrap_err().to_string();
        assert!(error.contains(&format!("has no {file}")), "{error}");
    }
    let folder = copied(&["generation_config.json", "tokenizer_config.json", "chat_template.jinja"]);
    let bare = open(&Source::Folder(folder.path().to_owned())).unwrap();
    assert_eq!((bare.template, bare.bos_token, bare.eos_token), (None, None, None));
}

#[test]
fn broken_files_are_named() {
    for file in
        ["config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja"]
    {
        let folder = copied(&[]);
        std::fs::write(folder.path().join(file), b"{\"a\": \xff").unwrap();
        let error = open(&Source::Folder(folder.path().to_owned())).unwrap_err().to_string();
        assert!(error.starts_with(&format!("{file} is damaged")), "{error}");
    }
}

#[test]
fn the_older_places_of_a_template() {
    for (config, wanted) in [
        (r#"{"chat_template": "T", "bos_token": {"content": "<b>"}, "eos_token": null}"#, Some("T")),
        (
            r#"{"chat_template": [{"name": "tool", "template": "X"}, {"name": "default", "template": "T"}], "bos_token": "<b>"}"#,
            Some("T"),
        ),
        (r#"{"bos_token": "<b>"}"#, None),
    ] {
        let folder = copied(&["chat_template.jinja"]);
        std::fs::write(folder.path().join("tokenizer_config.json"), config).unwrap();
        let opened = open(&Source::Folder(folder.path().to_owned())).unwrap();
        assert_eq!(opened.template.as_deref(), wanted);
        assert_eq!((opened.bos_token.as_deref(), opened.eos_token), (Some("<b>"), None));
    }
    for config in
        [r#"{"chat_template": 1}"#, r#"{"chat_template": [{"name": "tool", "template": "X"}]}"#, r#"{"bos_token": 2}"#]
    {
        let folder = copied(&["chat_template.jinja"]);
        std::fs::write(folder.path().join("tokenizer_config.json"), config).unwrap();
        let error = open(&Source::Folder(folder.path().to_owned())).unwrap_err().to_string();
        assert!(error.starts_with("tokenizer_config.json: "), "{error}");
    }
}

/// The demo as a GGUF file of this type.
fn written(scheme: Quantization) -> (tempfile::TempDir, std::path::PathBuf, Written) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("demo.gguf");
    let (last, all) = (std::cell::Cell::new(0), std::cell::Cell::new(0));
    let report = |done, total| {
        assert!(done >= last.replace(done));
        all.set(total);
    };
    let written = open(&Source::Demo).unwrap().write_gguf(scheme, &NewFile::begin(&path).unwrap(), &report).unwrap();
    assert_eq!(last.get(), all.get());
    assert_eq!(written.bytes, std::fs::metadata(&path).unwrap().len());
    (folder, path, written)
}

#[test]
fn a_written_gguf_is_the_same_model() {
    let demo = open(&Source::Demo).unwrap();
    for scheme in [Quantization::Q8_0, Quantization::Q4KM] {
        let (_folder, path, written) = written(scheme);
        let file = open(&Source::Gguf(path.clone())).unwrap();
        assert_eq!(file.config, Config { images: None, ..demo.config.clone() }, "all but the images");
        assert_eq!(file.generation, demo.generation);
        assert_eq!(file.template, demo.template);
        for text in ["What is the capital of France?", "a  b\n\nc", "zwölf Äpfel ✓", " x"] {
            let ids = |checkpoint: &Checkpoint| checkpoint.tokenizer.encode(text, false).unwrap().get_ids().to_vec();
            assert_eq!(ids(&file), ids(&demo), "{text:?}");
        }
        assert_eq!((&file.bos_token, &file.eos_token), (&demo.bos_token, &demo.eos_token));
        let vision = demo.tensors.iter().filter(|stored| stored.name.contains("vision")).count();
        assert!(written.left_out >= vision && written.tensors > 50);

        // Quantized on load and quantized in a file are the same bits; what stays plain is exact.
        let on_load = open(&Source::Demo).unwrap().quantized(scheme).unwrap();
        for name in file.weights.names() {
            let ours = file.weights.get(&name).unwrap().unwrap();
            let theirs = on_load.weights.get(&name).unwrap().unwrap();
            assert_eq!(ours.shape, theirs.shape, "{name}");
            if ours.element == theirs.element {
                assert!(ours.bytes == theirs.bytes, "{name}");
            } else {
                let wide = |raw: &RawTensor<'_>| widened(&name, raw.element, &raw.bytes).unwrap();
                assert_eq!(wide(&ours), wide(&theirs), "{name}");
            }
        }
        let again = NewFile::begin(&path).unwrap_err().to_string();
        assert!(again.contains("exists already"), "{again}");
        let twice = file.quantized(Quantization::Q4_0).map(|_| ()).unwrap_err().to_string();
        assert!(twice.contains("already; quantize the bfloat16"), "{twice}");
    }
}

/// Weights of which one tensor cannot be read.
struct Torn(Box<dyn Weights>);

impl Weights for Torn {
    fn names(&self) -> Vec<String> {
        self.0.names()
    }

    fn get(&self, name: &str) -> Result<Option<RawTensor<'_>>, WeightError> {
        match name {
            "model.decoder.norm.weight" => {
                Err(WeightError::Unreadable { name: name.to_owned(), why: "torn".to_owned() })
            }
            _ => self.0.get(name),
        }
    }

    fn release(&self, name: &str) {
        self.0.release(name);
    }
}

#[test]
fn a_file_that_cannot_be_written_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.gguf");
    let write = |checkpoint: &Checkpoint, report: &dyn Fn(u64, u64)| {
        let new = NewFile::begin(&path).unwrap();
        assert!(std::fs::read_dir(folder.path()).unwrap().count() > 0, "it is begun");
        checkpoint.write_gguf(Quantization::Q8_0, &new, report).unwrap_err().to_string()
    };
    let mut torn = open(&Source::Demo).unwrap();
    torn.weights = Box::new(Torn(torn.weights));
    let error = write(&torn, &|_, _| ());
    assert!(error.contains("torn"), "{error}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    // Another program is faster.
    let error = write(&open(&Source::Demo).unwrap(), &|_, _| std::fs::write(&path, "theirs").unwrap());
    assert!(error.contains("exists already"), "{error}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    assert_eq!(std::fs::read(&path).unwrap(), b"theirs");
}

/// Why no GGUF file is made of a checkpoint; nothing where one is.
fn refusal(checkpoint: &Checkpoint) -> String {
    let folder = tempfile::tempdir().unwrap();
    let new = NewFile::begin(&folder.path().join("x.gguf")).unwrap();
    let written = checkpoint.write_gguf(Quantization::Q8_0, &new, &|_, _| ());
    let Err(error) = written else { return String::new() };
    assert!(matches!(error, CheckpointError::Unsupported { .. }), "{error}");
    error.to_string()
}

/// What the format has no place for is refused, and not left out: the file would be another model.
#[test]
fn what_a_gguf_file_cannot_say_is_not_written() {
    type Change = fn(&mut Checkpoint);
    let changes: [(Change, &str); 9] = [
        (
            |checkpoint| checkpoint.config.full.rope.factor = 2.0,
            "config.json: full.rope.factor = 2.0 (it would be read as 1.0)",
        ),
        (|checkpoint| checkpoint.config.sliding.rope.factor = 2.0, "config.json: sliding.rope.factor = 2.0"),
        (
            |checkpoint| checkpoint.config.sliding.rope.rotating_pairs /= 2,
            "config.json: sliding.rope.rotating_pairs = 8",
        ),
        (|checkpoint| checkpoint.config.full.rope.theta = 123_456_789.5, "config.json: full.rope.theta = 123456789.5"),
        (
            |checkpoint| checkpoint.generation.end_tokens.push(20),
            "generation_config.json: eos_token_id ([1, 6, 14, 20], it would be read as [1, 6, 14]",
        ),
        (
            |checkpoint| checkpoint.generation.end_tokens.truncate(1),
            "generation_config.json: eos_token_id ([1], it would be read as [1, 6, 14]",
        ),
        (|checkpoint| checkpoint.bos_token = Some("<s>".to_owned()), "tokenizer_config.json: bos_token = <s>"),
        (
            |checkpoint| checkpoint.config.vocabulary -= 1,
            "canvasd-demo: what it says (canvasd-demo: tokenizer.ggml.tokens: merge ",
        ),
        (|checkpoint| checkpoint.config.images = None, ""),
    ];
    for (change, what) in changes {
        let mut checkpoint = open(&Source::Demo).unwrap();
        change(&mut checkpoint);
        let refused = refusal(&checkpoint);
        assert!(refused.starts_with(what) && refused.is_empty() == what.is_empty(), "{what}: {refused}");
    }
}

/// Tokenizers that the format has no place for.
#[test]
fn a_tokenizer_that_a_gguf_file_cannot_say_is_not_written() {
    use serde_json::json;
    let space = json!({"type": "Replace", "pattern": {"String": " "}, "content": "\u{2581}"});
    let digits = json!({"type": "Digits", "individual_digits": true});
    let whitespace =
        json!({"type": "Split", "pattern": {"String": "\u{2581}"}, "behavior": "Removed", "invert": false});
    let strip = json!({"type": "Strip", "content": "a", "start": 1, "stop": 0});
    let bare = json!({"type": "TemplateProcessing", "single": [{"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}], "special_tokens": {}});
    for (at, value, what) in [
        ("/normalizer", json!({"type": "Sequence", "normalizers": [{"type": "Lowercase"}, space]}), "its normalizer"),
        ("/normalizer", json!(null), "its normalizer"),
        ("/pre_tokenizer", digits, "how it cuts"),
        ("/pre_tokenizer", whitespace, "how it cuts"),
        ("/decoder", strip, "how it cuts"),
        ("/post_processor", bare, "how it cuts"),
        ("/model/fuse_unk", json!(false), ""),
        ("/model/byte_fallback", json!(false), "only byte-fallback BPE"),
        ("/model/ignore_merges", json!(true), "how it cuts"),
        ("/added_tokens/6/lstrip", json!(true), "how it cuts out the added token <turn|>"),
        ("/added_tokens/6/rstrip", json!(true), "how it cuts out the added token <turn|>"),
        ("/added_tokens/6/single_word", json!(true), "how it cuts out the added token <turn|>"),
        ("/added_tokens/0/special", json!(false), "the added token <pad> with special = false"),
        ("/added_tokens/6/special", json!(false), ""),
        ("/truncation", json!({"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}), ""),
    ] {
        let bytes = demo::FILES.iter().find(|(name, _)| *name == "tokenizer.json").unwrap().1;
        let mut json: serde_json::Value = serde_json::from_slice(bytes).unwrap();
        *json.pointer_mut(at).unwrap() = value;
        let mut checkpoint = open(&Source::Demo).unwrap();
        checkpoint.tokenizer = json.to_string().parse().unwrap();
        let refused = refusal(&checkpoint);
        assert!(refused.contains(what) && refused.is_empty() == what.is_empty(), "{at}: {refused}");
    }
}

#[test]
fn foreign_quantizations_are_named() {
    let config: serde_json::Value = serde_json::from_slice(demo::FILES[0].1).unwrap();
    for (key, scheme, named) in [
        (
            "quantization_config",
            r#"{"quant_method": "compressed-tensors", "format": "float-quantized"}"#,
            "compressed-tensors, float-quantized",
        ),
        ("quantization_config", r#"{"quant_method": "modelopt", "quant_algo": "NVFP4"}"#, "modelopt, NVFP4"),
        ("quantization", r#"{"group_size": 64, "bits": 4}"#, "4 bits"),
        ("quantization_config", "{}", "an unnamed scheme"),
    ] {
        let folder = copied(&["config.json"]);
        let mut config = config.clone();
        config[key] = serde_json::from_str(scheme).unwrap();
        std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
        let error = open(&Source::Folder(folder.path().to_owned())).unwrap_err().to_string();
        assert!(error.contains(&format!("({named})")) && error.contains("bfloat16"), "{error}");
    }
    let folder = copied(&[]);
    std::fs::write(folder.path().join("hf_quant_config.json"), r#"{"quantization": {"quant_algo": "FP8"}}"#).unwrap();
    let error = open(&Source::Folder(folder.path().to_owned())).unwrap_err().to_string();
    assert!(error.starts_with("hf_quant_config.json: ") && error.contains("(FP8)"), "{error}");
}

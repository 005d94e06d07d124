use std::path::Path;

use super::*;

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

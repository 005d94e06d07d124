//! The small checkpoint that is part of the program, so that the first run needs no file and no network.

/// The name clients see.
pub(crate) const ID: &str = "canvasd-demo";

macro_rules! files {
    ($($name:literal),* $(,)?) => {
        &[$(($name, include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/models/demo/", $name)))),*]
    };
}

/// Its files, by name.
pub(crate) const FILES: &[(&str, &[u8])] = files![
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "model.safetensors",
];

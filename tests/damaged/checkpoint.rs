//! A small checkpoint with one of its files replaced, and what comes of opening it.

use std::path::{Path, PathBuf};

use canvasd::checkpoint::{Inspection, Source, open};
use canvasd::model::{DiffusionGemma, LoadOptions};

/// Which file of a checkpoint some bytes stand for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    Gguf,
    Safetensors,
    Index,
    Config,
    Generation,
    Tokenizer,
    TokenizerConfig,
}

pub const PARTS: [Part; 7] = [
    Part::Gguf,
    Part::Safetensors,
    Part::Index,
    Part::Config,
    Part::Generation,
    Part::Tokenizer,
    Part::TokenizerConfig,
];

impl Part {
    /// The folder of the corpus.
    pub fn folder(self) -> &'static str {
        match self {
            Part::Gguf => "gguf",
            Part::Safetensors => "safetensors",
            Part::Index => "index",
            Part::Config => "config",
            Part::Generation => "generation",
            Part::Tokenizer => "tokenizer",
            Part::TokenizerConfig => "tokenizer_config",
        }
    }

    fn file(self) -> &'static str {
        match self {
            Part::Gguf => "m.gguf",
            Part::Safetensors => "model.safetensors",
            Part::Index => "model.safetensors.index.json",
            Part::Config => "config.json",
            Part::Generation => "generation_config.json",
            Part::Tokenizer => "tokenizer.json",
            Part::TokenizerConfig => "tokenizer_config.json",
        }
    }
}

/// Where the sound files are.
pub fn fixture() -> PathBuf {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    // The fuzzer's package lies inside this one.
    let root = if own.ends_with("fuzz") { own.parent().unwrap_or(own) } else { own };
    root.join("tests/fixtures/moe/checkpoint")
}

/// A folder in which one file can be replaced again and again.
pub struct Bench(tempfile::TempDir);

impl Bench {
    pub fn new() -> Bench {
        Bench(tempfile::tempdir().expect("a temporary folder"))
    }

    /// Opens, describes and loads a checkpoint with these bytes as one of its files; the error, or what it is.
    pub fn attempt(&self, part: Part, bytes: &[u8]) -> Result<String, String> {
        let folder = self.0.path().join(part.folder());
        if !folder.exists() {
            std::fs::create_dir(&folder).expect("a folder");
            // A GGUF file stands alone: what lies beside it would win over what it holds.
            if part != Part::Gguf {
                for entry in std::fs::read_dir(fixture()).expect("the fixture").flatten() {
                    // A template in its own file would win over the one in tokenizer_config.json.
                    if part == Part::TokenizerConfig && entry.file_name() == "chat_template.jinja" {
                        continue;
                    }
                    std::fs::copy(entry.path(), folder.join(entry.file_name())).expect("a copy");
                }
            }
        }
        let path = folder.join(part.file());
        let _ = std::fs::remove_file(&path);
        std::fs::write(&path, bytes).expect("a file");
        let source = if part == Part::Gguf { Source::Gguf(path) } else { Source::Folder(folder) };
        let checkpoint = open(&source).map_err(|error| error.to_string())?;
        let text = Inspection::of(&checkpoint, Some(1 << 30)).to_string();
        // What does not fit is not loaded, as in the program.
        let options = LoadOptions { threads: 1, ..Default::default() };
        let needs = checkpoint.needs(&options);
        needs.check(1 << 30, 64.min(needs.context), 1).map_err(|error| error.to_string())?;
        DiffusionGemma::load(&checkpoint.config, checkpoint.weights.as_ref(), &options)
            .map_err(|error| error.to_string())?;
        Ok(text)
    }
}

//! Where weights come from: the shipped demo, a local folder, the hub, a GGUF file.
//!
//! Opens what the user named and hands on plain data: configuration, sampling defaults, tokenizer, chat template, and the
//! tensors as they are stored. May use `model` and the element types of `kernels`; must not know requests, nor what its
//! sampling defaults do. Nothing in a file is trusted: a damaged one is an error that names the tensor or key.

mod available;
mod block_types;
mod demo;
mod error;
mod folder;
mod generation;
mod gguf;
mod gguf_tokenizer;
mod hub;
mod inspect;
mod map;
mod memory;
mod new_file;
mod quantize;
mod safetensors;
mod source;
mod text;

pub use available::available;
pub use error::CheckpointError;
pub use generation::GenerationDefaults;
pub use gguf::Written;
pub use hub::{Hub, Phase, Progress};
pub use inspect::Inspection;
pub use memory::{Needs, Stored, gib};
pub use new_file::NewFile;
pub use quantize::Quantization;
pub use source::{HubName, Source};

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::Path;

use tokenizers::Tokenizer;

use crate::model::{Config, LoadOptions, Weights};
use folder::Folder;
use gguf::{Described, Gguf, GgufWeights};

/// An opened checkpoint: everything a server needs to know of a model, its tensors not yet read.
pub struct Checkpoint {
    /// The model's name as clients see it.
    pub id: String,
    /// What the model is, from config.json or the keys of a GGUF file.
    pub config: Config,
    /// How the checkpoint wants to be sampled.
    pub generation: GenerationDefaults,
    /// Text to token ids and back.
    pub tokenizer: Tokenizer,
    /// The chat template's Jinja source; `None` where the checkpoint knows no chat.
    pub template: Option<String>,
    /// Spelling of the token that begins a text (`bos_token` in templates).
    pub bos_token: Option<String>,
    /// Spelling of the token that ends a text (`eos_token` in templates).
    pub eos_token: Option<String>,
    /// What the tensors are, in no order; those of `weights`, by their types in the file.
    pub tensors: Vec<Stored>,
    /// The tensors under the hub's names.
    pub weights: Box<dyn Weights>,
}

impl Checkpoint {
    /// The same checkpoint, its matrices put into blocks as they are read.
    ///
    /// # Errors
    /// [`CheckpointError::Unsupported`] where they are in other blocks already: quantizing twice loses twice.
    pub fn quantized(self, scheme: Quantization) -> Result<Self, CheckpointError> {
        let layers = self.config.layers.len();
        let mut tensors = self.tensors;
        for stored in &mut tensors {
            stored.quantize(&self.id, scheme, layers)?;
        }
        let weights = Box::new(quantize::Quantized { inner: self.weights, scheme, layers });
        Ok(Self { tensors, weights, ..self })
    }

    /// Quantizes the checkpoint into a new GGUF file; `report` is told the bytes written and those of all tensors.
    ///
    /// # Errors
    /// Where the file cannot be written, its name has been taken meanwhile, the weights are in other blocks already, or a GGUF
    /// file cannot say what the checkpoint is.
    pub fn write_gguf(
        &self,
        scheme: Quantization,
        new: &NewFile,
        report: &dyn Fn(u64, u64),
    ) -> Result<Written, CheckpointError> {
        gguf::write(self, scheme, new, report)
    }

    /// A number that tells checkpoints apart: made of the configuration, the sampling defaults, tokenizer and chat template,
    /// of the names, shapes and types of all tensors, and of the values of the vectors (norms and scales), which are soon
    /// read. Two that differ in nothing but values of matrices share it.
    ///
    /// # Errors
    /// Where one of the vectors cannot be read.
    pub fn digest(&self) -> Result<u64, CheckpointError> {
        // Without a seed: the same on every machine and at every start.
        let mut hasher = DefaultHasher::new();
        // Written out, floats have a form of their own for every value.
        format!("{:?} {:?}", self.config, self.generation).hash(&mut hasher);
        (&self.template, &self.bos_token, &self.eos_token).hash(&mut hasher);
        let tokenizer = self.tokenizer.to_string(false);
        tokenizer.map_err(|error| CheckpointError::unsupported("tokenizer.json", error.to_string()))?.hash(&mut hasher);
        let mut tensors: Vec<&Stored> = self.tensors.iter().collect();
        tensors.sort_by(|a, b| a.name.cmp(&b.name));
        for stored in tensors {
            (&stored.name, &stored.shape, &stored.kind).hash(&mut hasher);
            if stored.shape.len() < 2 {
                self.weights.get(&stored.name)?.map(|raw| raw.bytes).hash(&mut hasher);
            }
        }
        Ok(hasher.finish())
    }

    /// What it takes to serve it, loaded with these options.
    pub fn needs(&self, options: &LoadOptions) -> Needs {
        Needs::of(&self.config, &self.tensors, options)
    }
}

impl std::fmt::Debug for Checkpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Checkpoint").field("id", &self.id).finish_non_exhaustive()
    }
}

/// Opens a checkpoint: maps its weights and checks every header, reading no tensor.
///
/// # Errors
/// See [`CheckpointError`]; nothing in a damaged file makes this panic, hang or allocate beyond the file's own size.
pub fn open(source: &Source) -> Result<Checkpoint, CheckpointError> {
    match source {
        Source::Demo => open_folder(demo::ID.to_owned(), &Folder::Embedded(demo::FILES)),
        Source::Folder(path) => {
            let full = path.canonicalize().map_err(|source| CheckpointError::Read { path: path.clone(), source })?;
            let id = full.file_name().map_or_else(|| "model".to_owned(), |name| name.to_string_lossy().into_owned());
            open_folder(id, &Folder::Disk(path.clone()))
        }
        Source::Gguf(path) => open_gguf(path),
        Source::Hub(name) => {
            // In silence: whoever wants to show it calls `locate` first.
            let found = Hub::from_env().locate(name, &|_| {})?;
            Ok(Checkpoint { id: name.repo.clone(), ..open(&found)? })
        }
    }
}

fn open_folder(id: String, folder: &Folder) -> Result<Checkpoint, CheckpointError> {
    let (config, generation) = described(folder)?;
    let weights = safetensors::Safetensors::open(folder)?;
    let tokenizer = text::tokenizer(folder)?;
    let text::Chat { template, bos_token, eos_token } = text::chat(folder)?;
    let (tensors, weights) = (weights.table(), Box::new(weights));
    Ok(Checkpoint { id, config, generation, tokenizer, template, bos_token, eos_token, tensors, weights })
}

/// What a folder's small files say of the model, weights or none: refused where such a model cannot be served.
fn described(folder: &Folder) -> Result<(Config, GenerationDefaults), CheckpointError> {
    let json = folder.json("config.json")?.ok_or_else(|| CheckpointError::Missing {
        folder: folder.to_string(),
        file: "config.json".to_owned(),
        hint: "name a checkpoint folder in Hugging Face layout, or a .gguf file".to_owned(),
    })?;
    refuse_foreign_blocks(folder, &json)?;
    let config = Config::from_json(&json)?;
    let generation = folder.json("generation_config.json")?;
    let generation =
        GenerationDefaults::from_json("generation_config.json", generation.as_ref(), &json, config.vocabulary)?;
    Ok((config, generation))
}

/// Refuses weights that another program has quantized, by the name of the scheme.
fn refuse_foreign_blocks(folder: &Folder, config: &serde_json::Value) -> Result<(), CheckpointError> {
    let own = ["/quantization_config", "/text_config/quantization_config", "/quantization"];
    let own = own.into_iter().find_map(|at| config.pointer(at).filter(|found| !found.is_null()).cloned());
    let (file, scheme) = match own {
        Some(own) => ("config.json", own),
        None => match folder.json("hf_quant_config.json")? {
            Some(beside) => ("hf_quant_config.json", beside.get("quantization").cloned().unwrap_or(beside)),
            None => return Ok(()),
        },
    };
    let words =
        ["quant_method", "quant_algo", "format", "bits"].into_iter().filter_map(|key| match scheme.get(key)? {
            serde_json::Value::String(text) => Some(error::shown(text)),
            serde_json::Value::Number(bits) => Some(format!("{bits} bits")),
            _ => None,
        });
    let words: Vec<String> = words.collect();
    let name = if words.is_empty() { "an unnamed scheme".to_owned() } else { words.join(", ") };
    let instead =
        "use the bfloat16 checkpoint (--quantize q8_0 or q4_k_m makes it smaller while loading) or a GGUF file";
    Err(CheckpointError::unsupported(file, format!("the weights are quantized ({name}), which is not read; {instead}")))
}

/// Opens a GGUF file. Tokenizer, template and sampling files that lie beside it win over what it holds itself.
fn open_gguf(path: &Path) -> Result<Checkpoint, CheckpointError> {
    let gguf = Gguf::open(path)?;
    let beside = Folder::Disk(path.parent().map(Path::to_owned).unwrap_or_default());
    let Described { config, generation, tokenizer, chat } = Described::of(&gguf.keys(), &beside)?;
    let text::Chat { template, bos_token, eos_token } = chat;
    let id = path.file_stem().map_or_else(|| "model".to_owned(), |stem| stem.to_string_lossy().into_owned());
    let Gguf { container, bytes } = gguf;
    let weights = GgufWeights::new(&container, bytes)?;
    let (tensors, weights) = (weights.table(), Box::new(weights));
    Ok(Checkpoint { id, config, generation, tokenizer, template, bos_token, eos_token, tensors, weights })
}

#[cfg(test)]
mod tests;
#[cfg(test)]
#[path = "../../tests/support/gguf.rs"]
mod writer;

//! What a GGUF file's keys say of the model: configuration, sampling, tokenizer and chat, in the forms that a folder gives.

use tokenizers::Tokenizer;

use super::super::error::CheckpointError;
use super::super::folder::Folder;
use super::super::generation::GenerationDefaults;
use super::super::text::{self, Chat};
use super::config::Keys;
use crate::model::{Config, LayerKind};

/// Everything but the weights.
pub(crate) struct Described {
    pub(crate) config: Config,
    pub(crate) generation: GenerationDefaults,
    pub(crate) tokenizer: Tokenizer,
    pub(crate) chat: Chat,
}

impl Described {
    /// Reads a file's keys; tokenizer, template and sampling files `beside` it win over what it holds itself.
    ///
    /// # Errors
    /// Where the keys describe another architecture, or no model that can be served.
    pub(crate) fn of(keys: &Keys<'_>, beside: &Folder) -> Result<Self, CheckpointError> {
        keys.check_architecture()?;
        let json = keys.config()?;
        let tokens = keys.texts("tokenizer.ggml.tokens")?.unwrap_or_default();
        let vocabulary = keys.vocabulary()?;
        let generation = match beside.json("generation_config.json")? {
            Some(file) => GenerationDefaults::from_json("generation_config.json", Some(&file), &json, vocabulary)?,
            None => {
                let own = keys.generation(&tokens)?;
                GenerationDefaults::from_json(&keys.container.file, Some(&own), &json, vocabulary)?
            }
        };
        let mut chat = text::chat(beside)?;
        if chat.template.is_none() {
            chat.template = keys.text("tokenizer.chat_template")?.map(str::to_owned);
        }
        for (spelling, key) in [(&mut chat.bos_token, "bos"), (&mut chat.eos_token, "eos")] {
            if spelling.is_none() {
                let id = keys.whole(&format!("tokenizer.ggml.{key}_token_id"))?;
                *spelling = id.and_then(|id| tokens.get(usize::try_from(id).ok()?)).cloned();
            }
        }
        let tokenizer = if beside.has("tokenizer.json")? { text::tokenizer(beside)? } else { keys.tokenizer(tokens)? };
        let config = settled(keys, Config::from_json(&json)?)?;
        Ok(Self { config, generation, tokenizer, chat })
    }
}

/// Corrects what config.json, in whose form the keys are read, cannot say.
fn settled(keys: &Keys<'_>, mut config: Config) -> Result<Config, CheckpointError> {
    let layers = config.layers.len();
    // Its reader follows the reference, which makes the last layer global whatever is written; a GGUF file means what it says.
    if let (Some(kind), Some(true)) = (config.layers.last_mut(), keys.layer_kinds(layers)?.last()) {
        *kind = LayerKind::Sliding;
    }
    // It names a share of the head, from which the reference's rounding may make one pair fewer than the file has.
    config.full.rope.rotating_pairs = keys.rotating_pairs(config.full.head_dim)?;
    Ok(config)
}

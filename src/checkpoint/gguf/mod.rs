//! GGUF files of the model: container, names, configuration, tokenizer parts, tensors.

mod config;
mod container;
mod described;
mod names;
mod read_back;
mod weights;
mod write;

use std::path::Path;

pub(crate) use config::Keys;
pub(crate) use container::Container;
pub(crate) use described::Described;
pub(crate) use weights::GgufWeights;
pub use write::Written;
pub(crate) use write::write;

use super::error::CheckpointError;
use super::map::Bytes;

/// A mapped file whose table of contents has been read and checked.
#[derive(Debug)]
pub(crate) struct Gguf {
    pub(crate) container: Container,
    pub(crate) bytes: Bytes,
}

impl Gguf {
    /// Maps a file and reads its table of contents; no tensor is touched.
    ///
    /// # Errors
    /// Where the file cannot be read or is damaged.
    pub(crate) fn open(path: &Path) -> Result<Self, CheckpointError> {
        let bytes = Bytes::map(path)?;
        let container = Container::read(&path.display().to_string(), &bytes)?;
        Ok(Self { container, bytes })
    }

    pub(crate) fn keys(&self) -> Keys<'_> {
        Keys { container: &self.container, bytes: &self.bytes }
    }
}

#[cfg(test)]
mod tests;

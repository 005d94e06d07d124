//! What can go wrong between a model's name and its tensors; every message says what to do next.

use std::path::PathBuf;

/// Why a checkpoint cannot be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// The name given for the model means nothing here.
    #[error("model {name:?}: {why}")]
    Name {
        /// What was asked for.
        name: String,
        /// What is wrong with it, and what would be right.
        why: String,
    },
    /// A repository on the hub cannot be had.
    #[error("{name}: {why}")]
    Hub {
        /// The repository, as it was asked for.
        name: String,
        /// What happened, and what to do.
        why: String,
    },
    /// The hub does not answer, or not now.
    #[error("{name}: {why}")]
    Unreachable {
        /// The repository, as it was asked for.
        name: String,
        /// What happened, and what to do.
        why: String,
    },
    /// A file that a checkpoint must have is missing.
    #[error("{folder} has no {file}: {hint}")]
    Missing {
        /// Where it was looked for.
        folder: String,
        /// The file's name.
        file: String,
        /// What to do about it.
        hint: String,
    },
    /// The operating system refused a file.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file cannot be written.
    #[error("cannot write {path}: {source}")]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A tensor cannot be read or quantized.
    #[error(transparent)]
    Weight(#[from] crate::model::WeightError),
    /// The model does not fit into memory.
    #[error("{0}")]
    Memory(String),
    /// A file is not what its name promises: cut short, overlapping, absurd.
    #[error("{file} is damaged: {why}; download or export it again")]
    Damaged {
        /// The file.
        file: String,
        /// What is wrong, naming the tensor or key.
        why: String,
    },
    /// A tensor's record is wrong.
    #[error("{file} is damaged: tensor {tensor}: {why}; download or export it again")]
    DamagedTensor {
        /// The file.
        file: String,
        /// The tensor's name.
        tensor: String,
        /// What is wrong.
        why: String,
    },
    /// The configuration describes nothing that can be served.
    #[error(transparent)]
    Config(#[from] crate::model::ConfigError),
    /// The file is sound, and this program does not know how to use it.
    #[error("{file}: {why}")]
    Unsupported {
        /// The file.
        file: String,
        /// What is not supported, and what to use instead.
        why: String,
    },
    /// A value in a JSON file is missing, of the wrong type or out of range.
    #[error("{file}: {key}: {why}")]
    Value {
        /// The file.
        file: String,
        /// The key, with dots.
        key: String,
        /// What is wrong and what is allowed.
        why: String,
    },
}

impl CheckpointError {
    pub(crate) fn damaged(file: &str, why: impl Into<String>) -> Self {
        Self::Damaged { file: file.to_owned(), why: why.into() }
    }

    pub(crate) fn tensor(file: &str, tensor: &str, why: impl Into<String>) -> Self {
        Self::DamagedTensor { file: file.to_owned(), tensor: shown(tensor), why: why.into() }
    }

    pub(crate) fn unsupported(file: &str, why: impl Into<String>) -> Self {
        Self::Unsupported { file: file.to_owned(), why: why.into() }
    }
}

/// A name out of a file as it may be shown: a damaged file can hold a "name" of megabytes or control characters.
pub(crate) fn shown(name: &str) -> String {
    const LONGEST: usize = 200;
    let mut text: String = name.chars().take(LONGEST).flat_map(char::escape_debug).collect();
    if name.chars().nth(LONGEST).is_some() {
        text.push('…');
    }
    text
}

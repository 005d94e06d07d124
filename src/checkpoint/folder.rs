//! A folder in Hugging Face layout, on disk or compiled into the program.

use std::borrow::Cow;
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::error::CheckpointError;
use super::map::Bytes;

/// The name of a checkpoint's one weight file.
pub(crate) const SINGLE: &str = "model.safetensors";
/// The name of the list of weight files, where there are several.
pub(crate) const INDEX: &str = "model.safetensors.index.json";

/// The largest text file that is read whole (the published tokenizer.json has 33 MB).
const LONGEST_TEXT: u64 = 256 << 20;

/// Where a checkpoint's files are.
#[derive(Debug, Clone)]
pub(crate) enum Folder {
    /// A folder on disk.
    Disk(PathBuf),
    /// Files that are part of this program, by name.
    Embedded(&'static [(&'static str, &'static [u8])]),
}

impl fmt::Display for Folder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Disk(path) => write!(f, "{}", path.display()),
            Self::Embedded(_) => f.write_str("the shipped demo"),
        }
    }
}

impl Folder {
    /// The whole of a small file, or `None` if it is not there.
    ///
    /// # Errors
    /// Where the system refuses, and for files too large to be what their name says.
    pub(crate) fn read(&self, name: &str) -> Result<Option<Cow<'static, [u8]>>, CheckpointError> {
        match self {
            Self::Embedded(files) => Ok(embedded(files, name).map(Cow::Borrowed)),
            Self::Disk(folder) => read_small(&folder.join(name)).map(|bytes| bytes.map(Cow::Owned)),
        }
    }

    /// Whether there is a file of this name.
    ///
    /// # Errors
    /// Where the system refuses to tell.
    pub(crate) fn has(&self, name: &str) -> Result<bool, CheckpointError> {
        match self {
            Self::Embedded(files) => Ok(embedded(files, name).is_some()),
            Self::Disk(folder) => exists(&folder.join(name)),
        }
    }

    /// A JSON file, or `None` if it is not there.
    ///
    /// # Errors
    /// As [`Folder::read`], and where it is not JSON.
    pub(crate) fn json(&self, name: &str) -> Result<Option<Value>, CheckpointError> {
        let Some(bytes) = self.read(name)? else { return Ok(None) };
        serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|error| CheckpointError::damaged(name, format!("it is not JSON: {error}")))
    }

    /// A text file, or `None` if it is not there.
    ///
    /// # Errors
    /// As [`Folder::read`], and where it is not UTF-8.
    pub(crate) fn text(&self, name: &str) -> Result<Option<String>, CheckpointError> {
        let Some(bytes) = self.read(name)? else { return Ok(None) };
        String::from_utf8(bytes.into_owned())
            .map(Some)
            .map_err(|error| CheckpointError::damaged(name, format!("it is not UTF-8 text: {error}")))
    }

    /// A weight file, mapped, or `None` if it is not there.
    ///
    /// # Errors
    /// Where the system refuses.
    pub(crate) fn map(&self, name: &str) -> Result<Option<Bytes>, CheckpointError> {
        match self {
            Self::Embedded(files) => Ok(embedded(files, name).map(Bytes::Embedded)),
            Self::Disk(folder) => {
                let path = folder.join(name);
                if exists(&path)? { Bytes::map(&path).map(Some) } else { Ok(None) }
            }
        }
    }

    /// The error for a folder that has no weights, with the best hint its files allow.
    pub(crate) fn without_weights(&self) -> CheckpointError {
        let others = match self {
            Self::Disk(folder) => listing(folder),
            Self::Embedded(_) => Vec::new(),
        };
        let with = |ending: &str| others.iter().find(|name| name.ends_with(ending));
        let hint = if let Some(gguf) = with(".gguf") {
            format!("name the GGUF file itself, for instance {gguf}")
        } else if let Some(partial) = with(".safetensors") {
            format!("it has {partial} but no model.safetensors.index.json; download that too")
        } else if with(".bin").or(with(".pth")).is_some() {
            "pickled PyTorch weights are not read; save the model as safetensors".to_owned()
        } else {
            "a checkpoint folder holds model.safetensors, or shards with model.safetensors.index.json".to_owned()
        };
        CheckpointError::Missing { folder: self.to_string(), file: SINGLE.to_owned(), hint }
    }
}

fn embedded(files: &[(&str, &'static [u8])], name: &str) -> Option<&'static [u8]> {
    files.iter().find(|(file, _)| *file == name).map(|(_, bytes)| *bytes)
}

fn exists(path: &Path) -> Result<bool, CheckpointError> {
    path.try_exists().map_err(|source| CheckpointError::Read { path: path.to_owned(), source })
}

fn read_small(path: &Path) -> Result<Option<Vec<u8>>, CheckpointError> {
    if !exists(path)? {
        return Ok(None);
    }
    let refused = |source| CheckpointError::Read { path: path.to_owned(), source };
    let file = File::open(path).map_err(refused)?;
    let mut bytes = Vec::new();
    // A device or pipe has no honest length, so the bound is on what is read.
    file.take(LONGEST_TEXT + 1).read_to_end(&mut bytes).map_err(refused)?;
    if bytes.len() as u64 > LONGEST_TEXT {
        return Err(CheckpointError::damaged(&path.display().to_string(), "it is far too large for what it is"));
    }
    Ok(Some(bytes))
}

fn listing(folder: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    entries.flatten().take(10_000).filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

//! safetensors files, single or sharded, mapped into memory and checked once when opened.
//!
//! The header is read here and not by the `safetensors` crate, so that an error can name the tensor it is about; the rules are
//! the same: data offsets cover the file without gap or overlap, and each agrees with its shape and type.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::ops::Range;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};

use super::error::{CheckpointError, shown};
use super::folder::{Folder, INDEX, SINGLE};
use super::map::Bytes;
use super::memory::Stored;
use crate::kernels::ElementType;
use crate::model::{RawTensor, WeightError, Weights};

/// Headers of real checkpoints stay below 2 MiB; a longer one is a damaged length.
const LONGEST_HEADER: u64 = 16 << 20;
/// Most dimensions a tensor may have.
const MOST_DIMENSIONS: usize = 8;

/// The tensors of a checkpoint folder.
#[derive(Debug)]
pub(crate) struct Safetensors {
    files: Vec<Shard>,
    tensors: HashMap<String, (usize, Entry)>,
}

#[derive(Debug)]
struct Shard {
    name: String,
    bytes: Bytes,
}

/// Where one tensor lies; `range` is inside its file.
#[derive(Debug, Clone, PartialEq)]
struct Entry {
    dtype: String,
    shape: Vec<usize>,
    range: Range<usize>,
}

impl Safetensors {
    /// Opens `model.safetensors`, or the shards that its index lists.
    ///
    /// # Errors
    /// Where neither is there, or any file is damaged.
    pub(crate) fn open(folder: &Folder) -> Result<Self, CheckpointError> {
        let mut weights = Self { files: Vec::new(), tensors: HashMap::new() };
        let Some(index) = folder.json(INDEX)? else {
            let bytes = folder.map(SINGLE)?.ok_or_else(|| folder.without_weights())?;
            weights.add(SINGLE.to_owned(), bytes)?;
            return Ok(weights);
        };
        let index: Index = serde_path_to_error::deserialize(index)
            .map_err(|error| CheckpointError::damaged(INDEX, format!("{}: {}", error.path(), error.inner())))?;
        let shards: std::collections::BTreeSet<&String> = index.weight_map.values().collect();
        for shard in shards {
            if !is_plain(shard) {
                let why = format!("weight_map names the file {:?}, which is no plain file name", shown(shard));
                return Err(CheckpointError::damaged(INDEX, why));
            }
            let bytes = folder.map(shard)?.ok_or_else(|| CheckpointError::Missing {
                folder: folder.to_string(),
                file: shard.clone(),
                hint: format!("{INDEX} names it; download the checkpoint again, all shards of it"),
            })?;
            weights.add(shard.clone(), bytes)?;
        }
        for (tensor, shard) in &index.weight_map {
            let found = weights.tensors.get(tensor).map(|(file, _)| &weights.files[*file].name);
            if found != Some(shard) {
                let why = format!("{INDEX} says it is in this file, and it is not");
                return Err(CheckpointError::tensor(shard, tensor, why));
            }
        }
        Ok(weights)
    }

    fn add(&mut self, name: String, bytes: Bytes) -> Result<(), CheckpointError> {
        let file = self.files.len();
        for (tensor, entry) in read_header(&name, &bytes)? {
            if let Some((other, _)) = self.tensors.insert(tensor.clone(), (file, entry)) {
                let why = format!("it is in {} as well", self.files[other].name);
                return Err(CheckpointError::tensor(&name, &tensor, why));
            }
        }
        self.files.push(Shard { name, bytes });
        Ok(())
    }
}

impl Safetensors {
    /// What is stored, without touching it.
    pub(crate) fn table(&self) -> Vec<Stored> {
        let stored = |(name, (_, entry)): (&String, &(usize, Entry))| Stored {
            name: name.clone(),
            shape: entry.shape.clone(),
            kind: entry.dtype.clone(),
            element: element(&entry.dtype),
            bytes: entry.range.len() as u64,
            made: 0,
        };
        self.tensors.iter().map(stored).collect()
    }
}

impl Weights for Safetensors {
    fn names(&self) -> Vec<String> {
        self.tensors.keys().cloned().collect()
    }

    fn get(&self, name: &str) -> Result<Option<RawTensor<'_>>, WeightError> {
        let Some((file, entry)) = self.tensors.get(name) else { return Ok(None) };
        let shard = &self.files[*file];
        let Some(element) = element(&entry.dtype) else {
            return Err(WeightError::Unreadable {
                name: name.to_owned(),
                why: format!(
                    "{} stores it as {}; F32, F16 and BF16 can be read: use the bfloat16 checkpoint or a GGUF file of the model",
                    shard.name,
                    shown(&entry.dtype)
                ),
            });
        };
        shard.bytes.prefetch(entry.range.clone());
        let bytes = Cow::Borrowed(&shard.bytes[entry.range.clone()]);
        Ok(Some(RawTensor { shape: entry.shape.clone(), element, bytes }))
    }

    fn release(&self, name: &str) {
        if let Some((file, entry)) = self.tensors.get(name) {
            self.files[*file].bytes.release(entry.range.clone());
        }
    }
}

/// The list of shards.
#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

fn is_plain(name: &str) -> bool {
    !name.is_empty() && !name.starts_with('.') && !name.contains(['/', '\\', ':', '\0'])
}

fn element(dtype: &str) -> Option<ElementType> {
    match dtype {
        "F32" => Some(ElementType::F32),
        "F16" => Some(ElementType::F16),
        "BF16" => Some(ElementType::Bf16),
        _ => None,
    }
}

/// Bits of one element of any type the format knows; `None` for an unknown type.
fn bits(dtype: &str) -> Option<u64> {
    Some(match dtype {
        "F4" => 4,
        "F6_E2M3" | "F6_E3M2" => 6,
        "BOOL" | "U8" | "I8" | "F8_E5M2" | "F8_E4M3" | "F8_E8M0" | "F8_E4M3FNUZ" | "F8_E5M2FNUZ" => 8,
        "I16" | "U16" | "F16" | "BF16" => 16,
        "I32" | "U32" | "F32" => 32,
        "C64" | "F64" | "I64" | "U64" => 64,
        _ => return None,
    })
}

/// A tensor as the header writes it.
#[derive(Deserialize)]
struct Record {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

/// The header: tensors by name, the free-form `__metadata__` skipped.
struct Header(BTreeMap<String, Record>);

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Tensors;
        impl<'de> Visitor<'de> for Tensors {
            type Value = Header;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
                use serde::de::Error;
                let mut tensors = BTreeMap::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        map.next_value::<IgnoredAny>()?;
                        continue;
                    }
                    let record = map
                        .next_value::<Record>()
                        .map_err(|error| A::Error::custom(format!("tensor {}: {error}", shown(&name))))?;
                    if tensors.contains_key(&name) {
                        return Err(A::Error::custom(format!("tensor {} is listed twice", shown(&name))));
                    }
                    tensors.insert(name, record);
                }
                Ok(Header(tensors))
            }
        }
        deserializer.deserialize_map(Tensors)
    }
}

/// Reads and checks a file's header; every range returned lies inside `bytes` and has the length its shape and type ask for.
fn read_header(file: &str, bytes: &[u8]) -> Result<Vec<(String, Entry)>, CheckpointError> {
    let damaged = |why: String| CheckpointError::damaged(file, why);
    let Some((length, rest)) = bytes.split_first_chunk::<8>() else {
        return Err(damaged(format!("it has {} bytes, fewer than the header's length takes", bytes.len())));
    };
    let length = u64::from_le_bytes(*length);
    if length > LONGEST_HEADER || length > rest.len() as u64 {
        let why = format!("a header of {length} bytes is announced in a file of {} bytes", bytes.len());
        return Err(damaged(why));
    }
    let (header, data) = rest.split_at(length as usize);
    let Header(records) =
        serde_json::from_slice(header).map_err(|error| damaged(format!("the header cannot be read: {error}")))?;

    let first = bytes.len() - data.len();
    let mut entries = Vec::with_capacity(records.len());
    for (name, record) in records {
        let entry =
            check(&record, first, data.len() as u64).map_err(|why| CheckpointError::tensor(file, &name, why))?;
        entries.push((name, entry));
    }
    entries.sort_by_key(|(_, entry)| (entry.range.start, entry.range.end));
    let mut end = first;
    for (name, entry) in &entries {
        if entry.range.start != end {
            let what = if entry.range.start < end { "overlaps another tensor" } else { "leaves a gap before it" };
            return Err(CheckpointError::tensor(file, name, format!("its data {what}")));
        }
        end = entry.range.end;
    }
    if end != bytes.len() {
        return Err(damaged(format!("{} bytes follow the last tensor", bytes.len() - end)));
    }
    Ok(entries)
}

/// Checks one record against the `available` bytes of data, which begin at `first` in the file.
fn check(record: &Record, first: usize, available: u64) -> Result<Entry, String> {
    let (start, end) = record.data_offsets;
    if start > end || end > available {
        return Err(format!(
            "its data is said to lie at {start}..{end}, and the file has {available} bytes of data (it may be cut short)"
        ));
    }
    if record.shape.len() > MOST_DIMENSIONS {
        return Err(format!("it has {} dimensions", record.shape.len()));
    }
    let bits = bits(&record.dtype).ok_or_else(|| format!("its type {:?} is unknown", shown(&record.dtype)))?;
    let wanted = record.shape.iter().try_fold(bits, |bits, &size| bits.checked_mul(size)).map(|bits| bits.div_ceil(8));
    if wanted != Some(end - start) {
        return Err(format!("shape {:?} of {} does not fit its {} bytes", record.shape, record.dtype, end - start));
    }
    // Both fit: they are at most the length of a slice in memory. A dimension may be anything beside a zero dimension.
    let shape =
        record.shape.iter().map(|&size| usize::try_from(size).map_err(|_| "a dimension is too large".to_owned()));
    Ok(Entry {
        dtype: record.dtype.clone(),
        shape: shape.collect::<Result<_, _>>()?,
        range: first + start as usize..first + end as usize,
    })
}

#[cfg(test)]
mod tests;

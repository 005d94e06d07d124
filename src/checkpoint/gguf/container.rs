//! The GGUF container: header, keys, and where each tensor lies. Knows nothing of models.
//!
//! Reads versions 2 and 3, little-endian. Every count is checked against the file's size before anything is allocated for it.

use std::collections::HashMap;
use std::ops::Range;

use super::super::block_types::GgufType;
use super::super::error::{CheckpointError, shown};

/// More keys or tensors than any file has; a larger count is damage.
const MOST_KEYS: u64 = 1 << 16;
const MOST_TENSORS: u64 = 1 << 20;
/// The longest key or tensor name, and the longest text value (chat templates have some 20 kB).
const LONGEST_NAME: u64 = 1 << 10;
const LONGEST_TEXT: u64 = 16 << 20;
/// Most elements of an array; vocabularies have 262,144 tokens and twice as many merges.
const MOST_ELEMENTS: u64 = 1 << 24;
/// Dimensions a tensor may have.
const MOST_DIMENSIONS: u32 = 4;

/// A key's value.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value {
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Bool(bool),
    Text(String),
    Array(Array),
}

/// An array, still in the file.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Array {
    kind: Kind,
    /// Elements.
    pub(crate) count: usize,
    range: Range<usize>,
}

/// One tensor's record; `range` lies inside the file.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Record {
    pub(crate) kind: GgufType,
    /// Dimensions, outermost first (the file has them innermost first).
    pub(crate) shape: Vec<usize>,
    pub(crate) range: Range<usize>,
}

/// A file's table of contents.
#[derive(Debug)]
pub(crate) struct Container {
    /// The file's name, for errors.
    pub(crate) file: String,
    pub(crate) keys: HashMap<String, Value>,
    pub(crate) tensors: HashMap<String, Record>,
}

/// The types of values, by number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    Text,
    Array,
    U64,
    I64,
    F64,
}

impl Kind {
    fn from_code(code: u32) -> Option<Self> {
        const KINDS: [Kind; 13] = [
            Kind::U8,
            Kind::I8,
            Kind::U16,
            Kind::I16,
            Kind::U32,
            Kind::I32,
            Kind::F32,
            Kind::Bool,
            Kind::Text,
            Kind::Array,
            Kind::U64,
            Kind::I64,
            Kind::F64,
        ];
        KINDS.get(code as usize).copied()
    }

    /// Bytes of a number; `None` for texts and arrays.
    fn width(self) -> Option<usize> {
        match self {
            Self::U8 | Self::I8 | Self::Bool => Some(1),
            Self::U16 | Self::I16 => Some(2),
            Self::U32 | Self::I32 | Self::F32 => Some(4),
            Self::U64 | Self::I64 | Self::F64 => Some(8),
            Self::Text | Self::Array => None,
        }
    }
}

/// A place in the file, moving forward. Errors are the reason alone; the caller knows what it was reading.
struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

const CUT: &str = "the file ends in the middle of it";

impl<'a> Cursor<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], String> {
        let end = self.at.checked_add(count).filter(|&end| end <= self.bytes.len()).ok_or(CUT)?;
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        self.take(N)?.try_into().map_err(|_| CUT.to_owned())
    }

    fn u32(&mut self) -> Result<u32, String> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, String> {
        self.array().map(u64::from_le_bytes)
    }

    fn raw_text(&mut self, longest: u64) -> Result<&'a [u8], String> {
        let length = self.u64()?;
        if length > longest {
            return Err(format!("a text of {length} bytes is announced"));
        }
        self.take(length as usize)
    }

    fn text(&mut self, longest: u64) -> Result<String, String> {
        let bytes = self.raw_text(longest)?;
        String::from_utf8(bytes.to_vec()).map_err(|_| "it is not UTF-8 text".to_owned())
    }

    fn kind(&mut self) -> Result<Kind, String> {
        let code = self.u32()?;
        Kind::from_code(code).ok_or_else(|| format!("value type {code} is unknown"))
    }

    fn number(&mut self, kind: Kind) -> Result<Value, String> {
        Ok(match kind {
            Kind::U8 => Value::Unsigned(u8::from_le_bytes(self.array()?).into()),
            Kind::I8 => Value::Signed(i8::from_le_bytes(self.array()?).into()),
            Kind::U16 => Value::Unsigned(u16::from_le_bytes(self.array()?).into()),
            Kind::I16 => Value::Signed(i16::from_le_bytes(self.array()?).into()),
            Kind::U32 => Value::Unsigned(self.u32()?.into()),
            Kind::I32 => Value::Signed(i32::from_le_bytes(self.array()?).into()),
            Kind::F32 => Value::Float(f32::from_le_bytes(self.array()?).into()),
            Kind::Bool => Value::Bool(self.array::<1>()? != [0]),
            Kind::U64 => Value::Unsigned(self.u64()?),
            Kind::I64 => Value::Signed(i64::from_le_bytes(self.array()?)),
            Kind::F64 => Value::Float(f64::from_le_bytes(self.array()?)),
            Kind::Text | Kind::Array => return Err("not a number".to_owned()),
        })
    }

    fn value(&mut self, kind: Kind) -> Result<Value, String> {
        match kind {
            Kind::Text => self.text(LONGEST_TEXT).map(Value::Text),
            Kind::Array => self.list().map(Value::Array),
            number => self.number(number),
        }
    }

    /// Steps over an array's elements, so that what follows can be read.
    fn list(&mut self) -> Result<Array, String> {
        let kind = self.kind()?;
        let count = self.u64()?;
        if count > MOST_ELEMENTS {
            return Err(format!("an array of {count} elements is announced"));
        }
        let (start, count) = (self.at, count as usize);
        match (kind, kind.width()) {
            (_, Some(width)) => {
                self.take(count * width)?;
            }
            (Kind::Text, None) => {
                for _ in 0..count {
                    self.raw_text(LONGEST_TEXT)?;
                }
            }
            (_, None) => return Err("arrays of arrays are not read".to_owned()),
        }
        Ok(Array { kind, count, range: start..self.at })
    }
}

impl Container {
    /// Reads everything before the tensors' data.
    ///
    /// # Errors
    /// [`CheckpointError`] naming the key or tensor that is damaged, or saying that this is another kind of file.
    pub(crate) fn read(file: &str, bytes: &[u8]) -> Result<Self, CheckpointError> {
        let damaged = |what: String, why: String| CheckpointError::damaged(file, format!("{what}: {why}"));
        let mut cursor = Cursor { bytes, at: 0 };
        if cursor.take(4).ok() != Some(b"GGUF") {
            return Err(CheckpointError::unsupported(file, "not a GGUF file (it does not begin with GGUF)"));
        }
        let header = |why| damaged("header".to_owned(), why);
        let version = cursor.u32().map_err(header)?;
        if !(2..=3).contains(&version) {
            let why = if (2..=3).contains(&version.swap_bytes()) {
                "it is big-endian; only little-endian GGUF files are read".to_owned()
            } else {
                format!("GGUF version {version} is not read, only 2 and 3; convert the model again")
            };
            return Err(CheckpointError::unsupported(file, why));
        }
        let tensors = cursor.u64().map_err(header)?;
        let count = cursor.u64().map_err(header)?;
        if count > MOST_KEYS || tensors > MOST_TENSORS {
            return Err(header(format!("{count} keys and {tensors} tensors are announced")));
        }
        let mut keys = HashMap::new();
        for index in 0..count {
            let place = |why| damaged(format!("key {index} of {count}"), why);
            let key = cursor.text(LONGEST_NAME).map_err(place)?;
            let named = |why| damaged(format!("key {}", shown(&key)), why);
            let kind = cursor.kind().map_err(named)?;
            let value = cursor.value(kind).map_err(named)?;
            if keys.insert(key.clone(), value).is_some() {
                return Err(named("it occurs twice".to_owned()));
            }
        }
        let alignment = match keys.get("general.alignment") {
            None => 32,
            Some(Value::Unsigned(size)) if size.is_power_of_two() && *size <= 1 << 20 => *size as usize,
            Some(_) => return Err(damaged("key general.alignment".to_owned(), "no power of two".to_owned())),
        };
        let mut records = Vec::new();
        for index in 0..tensors {
            let place = |why| damaged(format!("tensor {index} of {tensors}"), why);
            let name = cursor.text(LONGEST_NAME).map_err(place)?;
            let record = Announced::read(&mut cursor).map_err(|why| CheckpointError::tensor(file, &name, why))?;
            records.push((name, record));
        }
        let data = cursor.at.checked_next_multiple_of(alignment).ok_or_else(|| header(CUT.to_owned()))?;
        let tensors = place(file, records, data, bytes.len(), alignment)?;
        Ok(Self { file: file.to_owned(), keys, tensors })
    }

    /// An error about one of the file's keys.
    pub(crate) fn wrong(&self, key: &str, why: impl Into<String>) -> CheckpointError {
        CheckpointError::Value { file: self.file.clone(), key: key.to_owned(), why: why.into() }
    }
}

/// A tensor's record as the file has it.
struct Announced {
    kind: GgufType,
    shape: Vec<usize>,
    bytes: usize,
    offset: u64,
}

impl Announced {
    fn read(cursor: &mut Cursor<'_>) -> Result<Self, String> {
        let count = cursor.u32()?;
        if !(1..=MOST_DIMENSIONS).contains(&count) {
            return Err(format!("it has {count} dimensions"));
        }
        let mut dims = Vec::new();
        for _ in 0..count {
            dims.push(cursor.u64()?);
        }
        let code = cursor.u32()?;
        let offset = cursor.u64()?;
        let kind = GgufType::from_code(code).ok_or_else(|| format!("its type {code} is unknown"))?;
        let rows = dims[1..].iter().try_fold(1u64, |product, &size| product.checked_mul(size));
        let bytes = rows.and_then(|rows| kind.size(dims[0], rows)).and_then(|bytes| usize::try_from(bytes).ok());
        let bytes =
            bytes.ok_or_else(|| format!("{dims:?} (innermost first) is no possible size for type {}", kind.name))?;
        let shape =
            dims.iter().rev().map(|&size| usize::try_from(size).map_err(|_| "a dimension is too large".to_owned()));
        Ok(Self { kind, shape: shape.collect::<Result<_, _>>()?, bytes, offset })
    }
}

/// Turns offsets into ranges of the file and sees that they do not overlap.
fn place(
    file: &str,
    records: Vec<(String, Announced)>,
    data: usize,
    length: usize,
    alignment: usize,
) -> Result<HashMap<String, Record>, CheckpointError> {
    let mut tensors = HashMap::new();
    let mut spans = Vec::new();
    for (name, record) in records {
        let wrong = |why: String| CheckpointError::tensor(file, &name, why);
        let start = usize::try_from(record.offset).ok().filter(|offset| offset.is_multiple_of(alignment));
        let start =
            start.ok_or_else(|| wrong(format!("its offset {} is not aligned to {alignment}", record.offset)))?;
        let range = data.checked_add(start).and_then(|start| Some(start..start.checked_add(record.bytes)?));
        let range = range.filter(|range| range.end <= length).ok_or_else(|| {
            let why = "it ends behind the end of the file, which has";
            wrong(format!("{why} {length} bytes (it may be cut short)"))
        })?;
        spans.push((range.start, range.end, name.clone()));
        let record = Record { kind: record.kind, shape: record.shape, range };
        if tensors.insert(name.clone(), record).is_some() {
            return Err(wrong("it occurs twice".to_owned()));
        }
    }
    spans.sort();
    for pair in spans.windows(2) {
        if pair[1].0 < pair[0].1 {
            return Err(CheckpointError::tensor(file, &pair[1].2, format!("it overlaps tensor {}", shown(&pair[0].2))));
        }
    }
    Ok(tensors)
}

impl Array {
    /// The elements as texts; `bytes` is the file.
    pub(crate) fn texts(&self, bytes: &[u8]) -> Result<Vec<String>, String> {
        if self.kind != Kind::Text {
            return Err("an array of texts was expected".to_owned());
        }
        let mut cursor = Cursor { bytes, at: self.range.start };
        (0..self.count)
            .map(|index| cursor.text(LONGEST_TEXT).map_err(|why| format!("element {index}: {why}")))
            .collect()
    }

    /// The elements as numbers; `bytes` is the file.
    pub(crate) fn numbers(&self, bytes: &[u8]) -> Result<Vec<Value>, String> {
        if self.kind.width().is_none() {
            return Err("an array of numbers was expected".to_owned());
        }
        let mut cursor = Cursor { bytes, at: self.range.start };
        (0..self.count).map(|_| cursor.number(self.kind)).collect()
    }
}

impl Value {
    /// A whole number that is not negative, however the writer stored it.
    pub(crate) fn whole(&self) -> Option<u64> {
        match self {
            Self::Unsigned(value) => Some(*value),
            Self::Signed(value) => u64::try_from(*value).ok(),
            Self::Bool(value) => Some(u64::from(*value)),
            _ => None,
        }
    }

    /// A number.
    pub(crate) fn float(&self) -> Option<f64> {
        match self {
            Self::Float(value) => Some(*value),
            other => other.whole().map(|value| value as f64),
        }
    }
}

#[cfg(test)]
mod tests;

//! A small GGUF writer for tests, written from the format's description and sharing no code with the program's reader.

#![allow(dead_code)] // Each test uses its own part.

/// A file being put together.
#[derive(Clone, Default)]
pub struct Gguf {
    /// Version in the header; 0 stands for 3.
    pub version: u32,
    /// Alignment of tensor data; 0 stands for 32 without a key.
    pub alignment: u64,
    keys: Vec<(String, Vec<u8>)>,
    tensors: Vec<Tensor>,
}

#[derive(Clone)]
struct Tensor {
    name: String,
    /// Innermost first.
    dims: Vec<u64>,
    kind: u32,
    data: Vec<u8>,
}

fn text(value: &str) -> Vec<u8> {
    let mut bytes = (value.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(value.as_bytes());
    bytes
}

fn tagged(tag: u32, value: &[u8]) -> Vec<u8> {
    [&tag.to_le_bytes(), value].concat()
}

impl Gguf {
    /// Any value by its type number and bytes.
    pub fn raw(mut self, key: &str, tag: u32, value: &[u8]) -> Self {
        self.keys.retain(|(name, _)| name != key);
        self.keys.push((key.to_owned(), tagged(tag, value)));
        self
    }

    /// Leaves a key out.
    pub fn without(mut self, key: &str) -> Self {
        self.keys.retain(|(name, _)| name != key);
        self
    }

    pub fn u32(self, key: &str, value: u32) -> Self {
        self.raw(key, 4, &value.to_le_bytes())
    }

    pub fn f32(self, key: &str, value: f32) -> Self {
        self.raw(key, 6, &value.to_le_bytes())
    }

    pub fn bool(self, key: &str, value: bool) -> Self {
        self.raw(key, 7, &[u8::from(value)])
    }

    pub fn text(self, key: &str, value: &str) -> Self {
        self.raw(key, 8, &text(value))
    }

    pub fn list(self, key: &str, tag: u32, count: usize, elements: &[u8]) -> Self {
        self.raw(key, 9, &[&tag.to_le_bytes()[..], &(count as u64).to_le_bytes(), elements].concat())
    }

    pub fn texts<S: AsRef<str>>(self, key: &str, values: &[S]) -> Self {
        let elements: Vec<u8> = values.iter().flat_map(|value| text(value.as_ref())).collect();
        self.list(key, 8, values.len(), &elements)
    }

    pub fn i32s(self, key: &str, values: &[i32]) -> Self {
        let elements: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.list(key, 5, values.len(), &elements)
    }

    pub fn bools(self, key: &str, values: &[bool]) -> Self {
        let elements: Vec<u8> = values.iter().map(|&value| u8::from(value)).collect();
        self.list(key, 7, values.len(), &elements)
    }

    /// A tensor; `shape` is outermost first, as the hub has it.
    pub fn tensor(mut self, name: &str, kind: u32, shape: &[usize], data: Vec<u8>) -> Self {
        self.tensors.retain(|tensor| tensor.name != name);
        let dims = shape.iter().rev().map(|&size| size as u64).collect();
        self.tensors.push(Tensor { name: name.to_owned(), dims, kind, data });
        self
    }

    pub fn without_tensor(mut self, name: &str) -> Self {
        self.tensors.retain(|tensor| tensor.name != name);
        self
    }

    /// The whole file.
    pub fn bytes(&self) -> Vec<u8> {
        let mut file = b"GGUF".to_vec();
        let version = if self.version == 0 { 3 } else { self.version };
        file.extend(version.to_le_bytes());
        let alignment = if self.alignment == 0 { 32 } else { self.alignment };
        let mut keys = self.keys.clone();
        if self.alignment != 0 {
            keys.push(("general.alignment".to_owned(), tagged(4, &(alignment as u32).to_le_bytes())));
        }
        file.extend((self.tensors.len() as u64).to_le_bytes());
        file.extend((keys.len() as u64).to_le_bytes());
        for (key, value) in &keys {
            file.extend(text(key));
            file.extend(value);
        }
        let mut offset = 0u64;
        for tensor in &self.tensors {
            file.extend(text(&tensor.name));
            file.extend((tensor.dims.len() as u32).to_le_bytes());
            for dim in &tensor.dims {
                file.extend(dim.to_le_bytes());
            }
            file.extend(tensor.kind.to_le_bytes());
            file.extend(offset.to_le_bytes());
            offset += (tensor.data.len() as u64).next_multiple_of(alignment);
        }
        for tensor in &self.tensors {
            file.resize(file.len().next_multiple_of(alignment as usize), 0);
            file.extend(&tensor.data);
        }
        file
    }
}

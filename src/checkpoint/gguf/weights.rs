//! A mapped GGUF file's tensors under the hub's names, block for block as the file holds them.

use std::borrow::Cow;
use std::collections::HashMap;

use super::super::error::{CheckpointError, shown};
use super::super::map::Bytes;
use super::super::memory::Stored;
use super::container::{Container, Record};
use super::names;
use crate::model::{RawTensor, WeightError, Weights};

/// Endings of the pair that some writers keep apart, and of the tensor it is half of.
const GATE: &str = "ffn_gate_exps.weight";
const UP: &str = "ffn_up_exps.weight";
const FUSED: &str = "ffn_gate_up_exps.weight";

/// Where a tensor's bytes are.
#[derive(Debug)]
enum Place {
    /// In one piece.
    Whole(Record),
    /// Gate and up apart, to be joined expert by expert.
    Halves(Record, Record),
}

/// The tensors of one file.
#[derive(Debug)]
pub(crate) struct GgufWeights {
    file: String,
    bytes: Bytes,
    tensors: HashMap<String, Place>,
}

impl GgufWeights {
    /// Gives every tensor its hub name; tensors that the model does not have keep their own.
    ///
    /// # Errors
    /// Where a tensor of the model has a type that cannot be computed with or the hub's name, or halves do not fit each other.
    pub(crate) fn new(container: &Container, bytes: Bytes) -> Result<Self, CheckpointError> {
        let mut tensors = HashMap::new();
        for (name, record) in &container.tensors {
            if name == names::ROPE_FREQS
                || name.ends_with(UP) && container.tensors.contains_key(&sibling(name, UP, GATE))
            {
                continue;
            }
            usable(container, name, record)?;
            // Beside the tensor that is meant by it, either could be taken.
            if let Some(own) = names::to_gguf(name) {
                let why = format!("tensor {} has its name from another format; it is {own} in GGUF files", shown(name));
                return Err(CheckpointError::unsupported(&container.file, format!("{why}: convert the model again")));
            }
            let fused = sibling(name, GATE, FUSED);
            let place = if name.ends_with(GATE) && !container.tensors.contains_key(&fused) {
                let other = sibling(name, GATE, UP);
                let up = container.tensors.get(&other).ok_or_else(|| {
                    CheckpointError::tensor(&container.file, name, format!("tensor {} is missing", shown(&other)))
                })?;
                if up.kind != record.kind || up.shape != record.shape || record.shape.len() != 3 {
                    let why = format!("it and {} differ in type or shape", shown(&other));
                    return Err(CheckpointError::unsupported(
                        &container.file,
                        format!("tensor {}: {why}", shown(name)),
                    ));
                }
                (names::to_hub(&fused), Place::Halves(record.clone(), up.clone()))
            } else {
                (names::to_hub(name), Place::Whole(record.clone()))
            };
            tensors.insert(place.0.unwrap_or_else(|| name.clone()), place.1);
        }
        Ok(Self { file: container.file.clone(), bytes, tensors })
    }
}

fn sibling(name: &str, from: &str, to: &str) -> String {
    name.strip_suffix(from).map_or_else(String::new, |stem| format!("{stem}{to}"))
}

fn usable(container: &Container, name: &str, record: &Record) -> Result<(), CheckpointError> {
    if record.kind.element.is_some() {
        return Ok(());
    }
    let why = format!(
        "tensor {} is of type {}, which cannot be computed with; use a Q4_K_M, Q5_K_M, Q6_K, Q8_0 or BF16 file of the model",
        shown(name),
        record.kind.name
    );
    Err(CheckpointError::unsupported(&container.file, why))
}

impl GgufWeights {
    /// What is stored, without touching it.
    pub(crate) fn table(&self) -> Vec<Stored> {
        let stored = |(name, place): (&String, &Place)| {
            let (Place::Whole(record) | Place::Halves(record, _)) = place;
            let mut stored = Stored {
                name: name.clone(),
                shape: record.shape.clone(),
                kind: record.kind.name.to_owned(),
                element: record.kind.element,
                bytes: record.range.len() as u64,
                made: 0,
            };
            if let (Place::Halves(..), [_, rows, _]) = (place, stored.shape.as_mut_slice()) {
                *rows *= 2;
                stored.bytes *= 2;
                stored.made = stored.bytes;
            }
            stored
        };
        self.tensors.iter().map(stored).collect()
    }
}

impl Weights for GgufWeights {
    fn names(&self) -> Vec<String> {
        self.tensors.keys().cloned().collect()
    }

    fn get(&self, name: &str) -> Result<Option<RawTensor<'_>>, WeightError> {
        let Some(place) = self.tensors.get(name) else { return Ok(None) };
        let raw = |record: &Record, shape: Vec<usize>, bytes| match record.kind.element {
            Some(element) => Ok(Some(RawTensor { shape, element, bytes })),
            None => Err(WeightError::Unreadable {
                name: name.to_owned(),
                why: format!("{} holds it as {}", self.file, record.kind.name),
            }),
        };
        match place {
            Place::Whole(record) => {
                self.bytes.prefetch(record.range.clone());
                raw(record, record.shape.clone(), Cow::Borrowed(&self.bytes[record.range.clone()]))
            }
            Place::Halves(gate, up) => {
                self.bytes.prefetch(gate.range.clone());
                self.bytes.prefetch(up.range.clone());
                let (experts, rows, inner) = (gate.shape[0], gate.shape[1], gate.shape[2]);
                let bytes = join(&self.bytes[gate.range.clone()], &self.bytes[up.range.clone()], experts);
                raw(gate, vec![experts, 2 * rows, inner], Cow::Owned(bytes))
            }
        }
    }

    fn release(&self, name: &str) {
        match self.tensors.get(name) {
            Some(Place::Whole(record)) => self.bytes.release(record.range.clone()),
            Some(Place::Halves(gate, up)) => {
                self.bytes.release(gate.range.clone());
                self.bytes.release(up.range.clone());
            }
            None => {}
        }
    }
}

/// Expert by expert, the gate's rows and then the up projection's: the layout of the fused tensor.
fn join(gate: &[u8], up: &[u8], experts: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(gate.len() + up.len());
    let each = (gate.len() / experts.max(1)).max(1);
    for (gate, up) in gate.chunks_exact(each).zip(up.chunks_exact(each)) {
        bytes.extend_from_slice(gate);
        bytes.extend_from_slice(up);
    }
    bytes
}

//! A fixture folder: a checkpoint in the hub's layout, and what the reference computed on it.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use canvasd::checkpoint::{Checkpoint, Source};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

/// An opened folder.
pub struct Fixture {
    pub name: String,
    pub folder: PathBuf,
    /// `reference.json`.
    pub info: Value,
    tensors: HashMap<String, Numbers>,
    /// Where the reference computed in bf16: its own numbers of the tensors whose unrounded ones are in `tensors`.
    rounded: HashMap<String, Numbers>,
}

fn is_rounded(info: &Value) -> bool {
    info["arguments"]["dtype"] == "bfloat16"
}

/// A tensor of the reference, widened.
pub struct Numbers {
    pub shape: Vec<usize>,
    pub values: Vec<f32>,
}

impl Fixture {
    pub fn open(folder: &Path) -> Fixture {
        let read = |name: &str| {
            let path = folder.join(name);
            std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
        };
        let mut tensors = HashMap::new();
        // Large references are cut into several files.
        for name in ["reference.safetensors", "reference-2.safetensors", "reference-3.safetensors"] {
            if folder.join(name).exists() {
                let bytes = read(name);
                let file = SafeTensors::deserialize(&bytes).expect("a safetensors file");
                tensors.extend(file.iter().map(|(name, view)| (name.to_owned(), Numbers::of(name, &view))));
            }
        }
        assert!(!tensors.is_empty(), "{} holds no reference.safetensors", folder.display());
        let info: Value = serde_json::from_slice(&read("reference.json")).expect("reference.json is JSON");
        // A reference computed in bf16 rounds after every operation and so tips choices of experts; what it comes to
        // without rounding stands beside it, and is what we must equal.
        let rounded = is_rounded(&info).then(|| {
            let path = folder.join("widened.safetensors");
            assert!(path.exists(), "{}: run tests/fixtures/tool/widened.py on it", folder.display());
            let bytes = read("widened.safetensors");
            let file = SafeTensors::deserialize(&bytes).expect("a safetensors file");
            let widened = file.iter().map(|(name, view)| (name.to_owned(), Numbers::of(name, &view)));
            widened
                .filter_map(|(name, wide)| tensors.insert(name.clone(), wide).map(|rounded| (name, rounded)))
                .collect()
        });
        Fixture {
            name: folder.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default(),
            folder: folder.to_owned(),
            info,
            tensors,
            rounded: rounded.unwrap_or_default(),
        }
    }

    pub fn checkpoint(&self) -> Checkpoint {
        let source = Source::Folder(self.folder.join("checkpoint"));
        canvasd::checkpoint::open(&source).unwrap_or_else(|error| panic!("{}: {error}", self.name))
    }

    /// Whether the reference itself computed in bf16, rounding after every operation.
    pub fn is_rounded(&self) -> bool {
        is_rounded(&self.info)
    }

    /// What the reference itself got in bf16, where it did.
    pub fn rounded(&self, name: &str) -> Option<&Numbers> {
        self.rounded.get(name)
    }

    pub fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    pub fn get(&self, name: &str) -> &Numbers {
        self.tensors.get(name).unwrap_or_else(|| panic!("{}: no tensor {name}", self.name))
    }

    /// Names of an object in `reference.json`, in a fixed order.
    pub fn names(&self, group: &str) -> Vec<String> {
        let mut names: Vec<String> =
            self.info[group].as_object().map(|o| o.keys().cloned().collect()).unwrap_or_default();
        names.sort();
        names
    }
}

impl Numbers {
    fn of(name: &str, view: &TensorView<'_>) -> Numbers {
        let data = view.data();
        let values = match view.dtype() {
            Dtype::F32 => data.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
            Dtype::BF16 => data.chunks_exact(2).map(|b| half::bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
            // Every integer of a fixture is far below 2^24.
            Dtype::I32 => data.chunks_exact(4).map(|b| i32::from_le_bytes([b[0], b[1], b[2], b[3]]) as f32).collect(),
            Dtype::U8 => data.iter().map(|&b| f32::from(b)).collect(),
            other => panic!("{name} is {other:?}"),
        };
        Numbers { shape: view.shape().to_vec(), values }
    }

    /// The part that belongs to one index of the first dimension.
    pub fn at(&self, index: usize) -> &[f32] {
        let each = self.values.len() / self.shape[0];
        &self.values[index * each..(index + 1) * each]
    }

    pub fn tokens(&self, index: usize) -> Vec<u32> {
        self.at(index).iter().map(|&t| t as u32).collect()
    }
}

/// Gives a checkpoint whose own tokenizer has no place in a GGUF file one that has: the demo's, cut to its vocabulary.
pub fn speak_like_the_demo(checkpoint: &mut Checkpoint) {
    let bytes = std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo/tokenizer.json"));
    let mut json: Value = serde_json::from_slice(&bytes.expect("the demo's tokenizer")).expect("JSON");
    let model = json["model"].as_object_mut().expect("a model");
    let vocabulary = model["vocab"].as_object_mut().expect("a vocabulary");
    vocabulary.retain(|_, id| id.as_u64().expect("an id") < checkpoint.config.vocabulary as u64);
    let vocabulary = vocabulary.clone();
    model["merges"].as_array_mut().expect("merges").retain(|pair| {
        let part = |at: usize| pair[at].as_str().expect("a part");
        [part(0), part(1), &[part(0), part(1)].concat()].into_iter().all(|token| vocabulary.contains_key(token))
    });
    checkpoint.tokenizer = json.to_string().parse().expect("a tokenizer");
    checkpoint.generation.end_tokens =
        canvasd::checkpoint::open(&Source::Demo).expect("the demo").generation.end_tokens;
}

/// The fixtures that every run compares.
pub fn committed() -> Vec<Fixture> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    ["moe", "dense"].iter().map(|name| Fixture::open(&root.join(name))).collect()
}

/// A fixture whose weights are bf16, and whose reference computed both in bf16 and, widened, in f32.
pub fn halves() -> Fixture {
    Fixture::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/bf16"))
}

/// The committed fixtures and those of the environment.
pub fn all() -> Vec<Fixture> {
    let mut all = committed();
    all.push(halves());
    if let Ok(more) = std::env::var("CANVASD_PARITY_FIXTURES") {
        all.extend(more.split(':').filter(|f| !f.is_empty()).map(|f| Fixture::open(Path::new(f))));
    }
    all
}

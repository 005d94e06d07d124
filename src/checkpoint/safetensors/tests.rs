use std::path::Path;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

/// A file with this header and so many bytes of data.
fn file(header: &Value, data: usize) -> Vec<u8> {
    let header = header.to_string();
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.extend((0..data).map(|i| i as u8));
    bytes
}

fn two() -> Value {
    json!({
        "__metadata__": {"format": "pt"},
        "b": {"dtype": "BF16", "shape": [3], "data_offsets": [8, 14]},
        "a": {"dtype": "F32", "shape": [2, 1], "data_offsets": [0, 8]},
    })
}

fn open(files: &[(&str, Vec<u8>)]) -> Result<Safetensors, CheckpointError> {
    let folder = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        std::fs::write(folder.path().join(name), bytes).unwrap();
    }
    Safetensors::open(&Folder::Disk(folder.path().to_owned()))
}

#[test]
fn a_single_file() {
    let weights = open(&[(SINGLE, file(&two(), 14))]).unwrap();
    let mut names = weights.names();
    names.sort();
    assert_eq!(names, ["a", "b"]);
    let b = weights.get("b").unwrap().unwrap();
    assert_eq!((b.shape.as_slice(), b.element), ([3].as_slice(), ElementType::Bf16));
    assert_eq!(&*b.bytes, [8, 9, 10, 11, 12, 13]);
    weights.release("b");
    assert_eq!(&*weights.get("b").unwrap().unwrap().bytes, [8, 9, 10, 11, 12, 13]);
    assert!(weights.get("c").unwrap().is_none());
}

#[test]
fn large_tensors_survive_release() {
    let size = 3 * 4096 + 100;
    let header = json!({"w": {"dtype": "F16", "shape": [size / 2], "data_offsets": [0, size]}});
    let weights = open(&[(SINGLE, file(&header, size))]).unwrap();
    let before = weights.get("w").unwrap().unwrap().bytes.into_owned();
    weights.release("w");
    assert_eq!(weights.get("w").unwrap().unwrap().bytes, before);
}

#[test]
fn shards_with_an_index() {
    let one = json!({"a": {"dtype": "F32", "shape": [], "data_offsets": [0, 4]}});
    let other = json!({"b": {"dtype": "F16", "shape": [1], "data_offsets": [0, 2]}});
    let shards = |index: Value| {
        open(&[
            ("m-1.safetensors", file(&one, 4)),
            ("m-2.safetensors", file(&other, 2)),
            (INDEX, index.to_string().into_bytes()),
        ])
    };
    let weights =
        shards(json!({"metadata": {}, "weight_map": {"a": "m-1.safetensors", "b": "m-2.safetensors"}})).unwrap();
    assert_eq!(weights.get("a").unwrap().unwrap().shape, Vec::<usize>::new());
    assert_eq!(&*weights.get("b").unwrap().unwrap().bytes, [0, 1]);
    for (index, what) in [
        (json!({"weight_map": {"a": "m-2.safetensors", "b": "m-2.safetensors"}}), "tensor a"),
        (json!({"weight_map": {"a": "m-3.safetensors"}}), "m-3.safetensors"),
        (json!({"weight_map": {"a": "../m-1.safetensors"}}), "no plain file name"),
        (json!({"weight_map": {"a": 7}}), "weight_map.a"),
        (json!({"weight_map": ["a"]}), "weight_map"),
        (json!({}), "weight_map"),
        (json!(null), "index.json"),
    ] {
        let error = shards(index.clone()).unwrap_err().to_string();
        assert!(error.contains(what), "{index}: {error}");
    }
    let broken = open(&[(INDEX, b"{\"weight_map\": {".to_vec())]).unwrap_err().to_string();
    assert!(broken.contains("not JSON"), "{broken}");
    let index = json!({"weight_map": {"a": "m-1.safetensors", "b": "m-2.safetensors"}});
    let twice = open(&[
        ("m-1.safetensors", file(&one, 4)),
        ("m-2.safetensors", file(&one, 4)),
        (INDEX, index.to_string().into_bytes()),
    ]);
    assert!(twice.unwrap_err().to_string().contains("in m-1.safetensors as well"));
}

#[test]
fn damaged_headers_name_the_tensor() {
    let tensor = |dtype: &str, shape: Value, offsets: Value| json!({"w": {"dtype": dtype, "shape": shape, "data_offsets": offsets}});
    let huge = 1u64 << 63;
    for (header, data, what) in [
        (two(), 13, "tensor b"),
        (two(), 15, "1 bytes follow"),
        (tensor("F32", json!([2]), json!([0, 4])), 4, "tensor w"),
        (tensor("F32", json!([huge, 2]), json!([0, 0])), 0, "tensor w"),
        (tensor("F32", json!([1]), json!([huge, huge + 4])), 4, "tensor w"),
        (tensor("F32", json!([1]), json!([4, 0])), 4, "tensor w"),
        (tensor("F32", json!([1]), json!([4, 8])), 8, "gap"),
        (tensor("F99", json!([1]), json!([0, 4])), 4, "F99"),
        (tensor("F32", json!([-1]), json!([0, 4])), 4, "tensor w"),
        (tensor("F32", json!(vec![1; 9]), json!([0, 4])), 4, "9 dimensions"),
        (json!({"w": 3}), 0, "tensor w"),
        (json!([1]), 0, "header"),
        (
            json!({
                "u": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
                "v": {"dtype": "F32", "shape": [1], "data_offsets": [2, 6]},
            }),
            6,
            "overlaps",
        ),
    ] {
        let error = open(&[(SINGLE, file(&header, data))]).unwrap_err().to_string();
        assert!(error.contains(what), "{header}: {error}");
    }
    let twice = br#"{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#;
    let mut bytes = (twice.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(twice);
    bytes.extend([0; 4]);
    assert!(open(&[(SINGLE, bytes)]).unwrap_err().to_string().contains("listed twice"));
    for bytes in [Vec::new(), vec![1; 7], u64::MAX.to_le_bytes().to_vec(), 9u64.to_le_bytes().to_vec()] {
        assert!(open(&[(SINGLE, bytes)]).unwrap_err().to_string().starts_with(SINGLE));
    }
}

#[test]
fn types_that_cannot_be_used_are_named_when_asked_for() {
    let header = json!({"w": {"dtype": "F8_E4M3", "shape": [4], "data_offsets": [0, 4]}});
    let weights = open(&[(SINGLE, file(&header, 4))]).unwrap();
    let error = weights.get("w").unwrap_err().to_string();
    assert!(error.contains("F8_E4M3") && error.contains("tensor w"), "{error}");
}

#[test]
fn a_folder_without_weights_gives_a_hint() {
    for (other, hint) in [("x.gguf", "GGUF"), ("a-1.safetensors", "index"), ("m.bin", "pickled"), ("x", "holds")] {
        let error = open(&[(other, Vec::new())]).unwrap_err().to_string();
        assert!(error.contains(hint), "{other}: {error}");
    }
    let nowhere = Safetensors::open(&Folder::Disk(Path::new("/nowhere").to_owned()));
    assert!(nowhere.is_err());
}

/// Any range that comes out of a header lies inside the file and fits its shape.
fn sound(bytes: &[u8]) {
    if let Ok(entries) = read_header("f", bytes) {
        for (_, entry) in entries {
            let data = &bytes[entry.range.clone()];
            if let Some(element) = element(&entry.dtype) {
                assert_eq!(entry.shape.iter().product::<usize>() * element.block().1, data.len());
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        sound(&bytes);
    }

    #[test]
    fn any_header_text(text in "[\\{\\}\\[\\]\":,a-z0-9_\\- ]{0,120}", data in 0usize..16) {
        let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(text.as_bytes());
        bytes.extend(vec![0; data]);
        sound(&bytes);
    }

    #[test]
    fn any_numbers(shape in prop::collection::vec(any::<u64>(), 0..4), offsets in any::<(u64, u64)>(), data in 0usize..64) {
        sound(&file(&json!({"w": {"dtype": "F32", "shape": shape, "data_offsets": offsets}}), data));
    }

    #[test]
    fn a_flipped_byte(at in 0usize..200, value in any::<u8>(), cut in 0usize..220) {
        let mut bytes = file(&two(), 14);
        let last = bytes.len() - 1;
        bytes[at.min(last)] = value;
        bytes.truncate(cut.max(1));
        sound(&bytes);
    }
}

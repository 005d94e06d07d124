//! The same model in every type of number that a file may hold: matrices whose stored bytes are a formula, decoded by the
//! format's own Python package for the reference (tests/fixtures/tool/blocks.py) and by the program for itself.
//!
//! Decoding loses nothing, so every type must meet the bound of plain f32. All rows are multiples of 256 long, so that the K
//! types can hold them.

use std::path::Path;

use canvasd::checkpoint::{Checkpoint, NewFile, Quantization, Source, open};
use canvasd::model::{KvElement, LoadOptions, probe};
use canvasd::pass::{Conditioning, KvView};
use safetensors::tensor::{Dtype, TensorView, serialize_to_file};
use serde_json::{Value, json};

use super::cases::BOUND;
use super::fixture::{Fixture, speak_like_the_demo};
use super::formats::{distance, gguf, gguf_name, header, newer_layout};
use super::world::World;

/// Name, number in a file, weights of a block and its bytes, as the format's description has them.
const BLOCKS: [(&str, u32, usize, usize); 10] = [
    ("Q4_0", 2, 32, 18),
    ("Q4_1", 3, 32, 20),
    ("Q5_0", 6, 32, 22),
    ("Q5_1", 7, 32, 24),
    ("Q8_0", 8, 32, 34),
    ("Q2_K", 10, 256, 84),
    ("Q3_K", 11, 256, 110),
    ("Q4_K", 12, 256, 144),
    ("Q5_K", 13, 256, 176),
    ("Q6_K", 14, 256, 210),
];

fn fixture() -> Fixture {
    Fixture::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/blocks"))
}

/// Names and shapes, in the tool's order.
fn shapes(fixture: &Fixture) -> Vec<(String, Vec<usize>)> {
    let shapes = fixture.info["shapes"].as_object().expect("shapes");
    let read =
        |(name, shape): (&String, &Value)| (name.clone(), serde_json::from_value(shape.clone()).expect("a shape"));
    let mut shapes: Vec<_> = shapes.iter().map(read).collect();
    shapes.sort();
    shapes
}

fn is_matrix(fixture: &Fixture, name: &str) -> bool {
    let endings = fixture.info["matrices"].as_array().expect("endings");
    !name.contains("router") && endings.iter().any(|end| name.ends_with(end.as_str().expect("an ending")))
}

/// The tool's stream of bytes.
fn random_bytes(name: &str, count: usize) -> Vec<u8> {
    let seed =
        name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |h, byte| (h ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
    (0..count as u64)
        .map(|i| {
            let mut z = seed.wrapping_add(i.wrapping_mul(0x9e37_79b9_7f4a_7c15));
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            ((z ^ (z >> 31)) >> 56) as u8
        })
        .collect()
}

/// Numbers that are exact in f32, f16 and bf16.
fn values(fixture: &Fixture, name: &str, count: usize) -> Vec<f32> {
    let rules = fixture.info["rules"].as_array().expect("rules");
    let rule = rules.iter().find(|rule| name.ends_with(rule[0].as_str().expect("an ending"))).expect("a rule");
    let (center, spread) = (rule[1].as_f64().expect("a number") as f32, rule[2].as_f64().expect("a number") as f32);
    let keep = if center == 0.0 { 0xff } else { 0xfc };
    let value = |byte: u8| center + (f32::from(byte & keep) - 128.0) / 128.0 * spread;
    random_bytes(name, count).into_iter().map(value).collect()
}

/// The stored bytes of a matrix in blocks of `size` bytes.
fn blocks(fixture: &Fixture, name: &str, kind: &str, count: usize, size: usize) -> Vec<u8> {
    let mut bytes = random_bytes(name, count * size);
    for block in bytes.chunks_exact_mut(size) {
        for field in fixture.info["fields"][kind].as_array().expect("fields") {
            let at = field[0].as_u64().expect("a place") as usize;
            let scale = field[1].as_f64().expect("a scale") as f32 * (8 + (block[at] & 7)) as f32 / 8.0;
            block[at..at + 2].copy_from_slice(&half::f16::from_f32(scale).to_le_bytes());
        }
    }
    bytes
}

/// A plain type: its number in GGUF, its type in safetensors, its bytes.
type Plain = (u32, Dtype, fn(f32) -> Vec<u8>);

fn plain() -> [Plain; 3] {
    [
        (0, Dtype::F32, |value| value.to_le_bytes().to_vec()),
        (1, Dtype::F16, |value| half::f16::from_f32(value).to_le_bytes().to_vec()),
        (30, Dtype::BF16, |value| half::bf16::from_f32(value).to_le_bytes().to_vec()),
    ]
}

/// A folder with everything but weights.
fn folder(fixture: &Fixture) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let tokenizer = fixture.folder.join("../moe/checkpoint/tokenizer.json");
    std::fs::copy(tokenizer, folder.path().join("tokenizer.json")).expect("a tokenizer");
    std::fs::write(folder.path().join("config.json"), fixture.info["config"].to_string()).expect("config.json");
    folder
}

/// Weights of one plain type in so many files.
fn write_folder(fixture: &Fixture, at: &Path, (_, dtype, bytes): Plain, files: usize) {
    let made: Vec<(String, Vec<usize>, Vec<u8>)> = shapes(fixture)
        .into_iter()
        .map(|(name, shape)| {
            let values = values(fixture, &name, shape.iter().product());
            (name, shape, values.into_iter().flat_map(bytes).collect())
        })
        .collect();
    let mut map = serde_json::Map::new();
    for (i, part) in made.chunks(made.len().div_ceil(files)).enumerate() {
        let file = if files == 1 { "model.safetensors".to_owned() } else { format!("model-{}.safetensors", i + 1) };
        let view = |data, shape: &Vec<usize>| TensorView::new(dtype, shape.clone(), data).expect("a tensor");
        let views = part.iter().map(|(name, shape, data)| (name.as_str(), view(data, shape)));
        serialize_to_file(views, None, &at.join(&file)).expect("weights");
        map.extend(part.iter().map(|(name, ..)| (name.clone(), Value::from(file.clone()))));
    }
    if files > 1 {
        let index = json!({"metadata": {}, "weight_map": map}).to_string();
        std::fs::write(at.join("model.safetensors.index.json"), index).expect("an index");
    }
}

fn opened(folder: &Path) -> Checkpoint {
    open(&Source::Folder(folder.to_owned())).expect("the written checkpoint opens")
}

/// Opens a GGUF file of the independent writer, a tokenizer beside it.
fn opened_gguf(fixture: &Fixture, file: &gguf::Gguf) -> Checkpoint {
    let folder = folder(fixture);
    let path = folder.path().join("m.gguf");
    std::fs::write(&path, file.bytes()).expect("a file");
    // The mapping outlives the folder's name.
    open(&Source::Gguf(path)).expect("the written file opens")
}

/// Every column that the reference has of the two first steps after the prompt.
fn logits(fixture: &Fixture, checkpoint: &Checkpoint) -> Vec<f32> {
    let tokens = |key: &str| -> Vec<u32> { serde_json::from_value(fixture.info[key].clone()).expect("token ids") };
    let columns = fixture.info["columns"].as_u64().expect("a stride") as usize;
    let temperature = fixture.info["temperature"].as_f64().expect("a temperature") as f32;
    // Keys and values as the reference here has them.
    let options = LoadOptions { kv: Some(KvElement::F32), ..Default::default() };
    let mut world = World::load(checkpoint, &options, probe::Tuning::default());
    let mut kv = KvView::default();
    let mut segments = vec![world.encode(&mut kv, &tokens("prompt"))];
    let mut found = Vec::new();
    for conditioning in [Conditioning::Fresh, Conditioning::Carried] {
        segments.push(world.denoise(&kv, 0, conditioning, &tokens("canvas"), temperature));
        let (_, seen) = world.run(std::mem::take(&mut segments));
        found.extend(seen.logits.iter().flat_map(|row| row.iter().step_by(columns).copied()));
    }
    found
}

fn reference(fixture: &Fixture, kind: &str) -> Vec<f32> {
    let of = |tag: &str| fixture.get(&format!("{kind}.{tag}.logits")).values.clone();
    [of("first"), of("second")].concat()
}

/// Compares with the reference by the bound of plain f32, which is for logits up to 10: larger ones are rounded more coarsely.
fn compare(what: &str, found: &[f32], wanted: &[f32]) {
    assert_eq!(found.len(), wanted.len(), "{what}");
    let worst = found.iter().zip(wanted).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    let largest = wanted.iter().fold(0.0, |largest: f32, value| largest.max(value.abs()));
    println!("{what}: {} logits up to {largest:.1}, at most {worst:.1e} off", found.len());
    assert!(worst <= BOUND * (largest / 10.0).max(1.0), "{what}: {worst}");
}

#[test]
fn blocks_of_every_type_give_the_reference_logits() {
    let fixture = fixture();
    let config = {
        let folder = folder(&fixture);
        write_folder(&fixture, folder.path(), plain()[0], 1);
        opened(folder.path()).config
    };
    for (kind, code, per, size) in BLOCKS {
        let mut file = header(&config);
        for (name, shape) in shapes(&fixture) {
            let count: usize = shape.iter().product();
            let (code, bytes) = match is_matrix(&fixture, &name) {
                true => (code, blocks(&fixture, &name, kind, count / per, size)),
                false => (0, values(&fixture, &name, count).into_iter().flat_map(f32::to_le_bytes).collect()),
            };
            file = file.tensor(&gguf_name(&name).expect("a tensor of the text model"), code, &shape, bytes);
        }
        let checkpoint = opened_gguf(&fixture, &file);
        assert!(checkpoint.tensors.iter().any(|stored| stored.kind == kind), "{kind}");
        compare(kind, &logits(&fixture, &checkpoint), &reference(&fixture, kind));
    }
}

#[test]
fn plain_numbers_of_every_type_and_layout_give_the_reference_logits() {
    let fixture = fixture();
    let wanted = reference(&fixture, "plain");
    let sums: Vec<f32> = shapes(&fixture)
        .iter()
        .map(|(name, shape)| values(&fixture, name, shape.iter().product()).iter().map(|&x| f64::from(x)).sum::<f64>())
        .map(|sum| sum as f32)
        .collect();
    assert_eq!(sums, fixture.get("plain.weights").values, "the formula gives the tool's weights");
    for kind in plain() {
        for files in [1, 3] {
            let folder = folder(&fixture);
            write_folder(&fixture, folder.path(), kind, files);
            let checkpoint = opened(folder.path());
            compare(&format!("{:?}, {files} file(s)", kind.1), &logits(&fixture, &checkpoint), &wanted);
            if files == 1 {
                newer_layout(folder.path());
                let what = format!("{:?}, per_layer_config", kind.1);
                compare(&what, &logits(&fixture, &opened(folder.path())), &wanted);
                let mut file = header(&checkpoint.config);
                for (name, shape) in shapes(&fixture) {
                    let values = values(&fixture, &name, shape.iter().product());
                    // Vectors and the router are F32 in every published file.
                    let (code, bytes): (u32, Vec<u8>) = match is_matrix(&fixture, &name) {
                        true => (kind.0, values.into_iter().flat_map(kind.2).collect()),
                        false => (0, values.into_iter().flat_map(f32::to_le_bytes).collect()),
                    };
                    file = file.tensor(&gguf_name(&name).expect("a tensor of the text model"), code, &shape, bytes);
                }
                let what = format!("{:?}, GGUF", kind.1);
                compare(&what, &logits(&fixture, &opened_gguf(&fixture, &file)), &wanted);
            }
        }
    }
}

#[test]
fn quantizing_stays_within_each_types_bound() {
    let fixture = fixture();
    let folder = folder(&fixture);
    write_folder(&fixture, folder.path(), plain()[2], 1);
    let wanted = reference(&fixture, "plain");
    // Random weights spread over their whole range are the hardest to quantize; a choice of experts that tips over counts in
    // full.
    let mut wrong = Vec::new();
    for (scheme, bound) in [
        (Quantization::Q8_0, 0.04),
        (Quantization::Q6K, 0.15),
        (Quantization::Q5KM, 0.3),
        (Quantization::Q5K, 0.3),
        (Quantization::Q5_0, 0.3),
        (Quantization::Q4KM, 0.6),
        (Quantization::Q4K, 0.6),
        (Quantization::Q4_0, 0.6),
    ] {
        let quantized = opened(folder.path()).quantized(scheme).expect("it can be quantized");
        let found = logits(&fixture, &quantized);
        let off = distance(&found, &wanted);
        println!("{scheme} on load: relative distance {off:.4}");
        if off >= bound {
            wrong.push(format!("{scheme}: {off}"));
        }
        // Into a file and back: the same bits.
        let mut source = opened(folder.path());
        speak_like_the_demo(&mut source);
        let path = folder.path().join(format!("{scheme}.gguf"));
        let new = NewFile::begin(&path).expect("a new file");
        source.write_gguf(scheme, &new, &|_, _| ()).expect("it can be written");
        assert_eq!(logits(&fixture, &open(&Source::Gguf(path)).expect("it opens")), found, "{scheme}");
    }
    assert!(wrong.is_empty(), "{wrong:?}");
}

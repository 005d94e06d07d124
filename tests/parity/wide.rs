//! Shapes of the real kind (expert width 704, hidden 576, a vocabulary of 8,229) without stored weights: the fixture
//! tool's formula is repeated here, and the checkpoint it gives goes through the real loader.
//!
//! Every weight is exact in bf16, so bf16 storage must meet the same bound as f32: activations stay f32, and widening a
//! weight loses nothing. Only the *sum order* differs from the reference.

use std::path::Path;

use canvasd::checkpoint::{Source, open};
use canvasd::model::{KvElement, LayerKind, LoadOptions, WeightType, probe};
use canvasd::pass::{Conditioning, KvView};
use safetensors::tensor::{Dtype, TensorView, serialize_to_file};
use serde_json::Value;

use super::cases::BOUND;
use super::fixture::Fixture;
use super::world::{World, Worst, close, rows};

#[test]
fn wide_shapes_equal_the_reference_in_both_types() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let fixture = Fixture::open(&root.join("wide"));
    let folder = tempfile::tempdir().expect("a temporary folder");
    write_checkpoint(&fixture, folder.path(), &root.join("moe/checkpoint/tokenizer.json"));
    for operations in [probe::Operations::ByDevice, probe::Operations::Twins] {
        for dtype in [None, Some(WeightType::F32)] {
            // bf16 twins on the CPU widen whole tensors in each product: right, and too slow to repeat here.
            if (operations, dtype) != (probe::Operations::Twins, None) {
                compare(&fixture, folder.path(), operations, dtype);
            }
        }
    }
}

fn compare(fixture: &Fixture, folder: &Path, operations: probe::Operations, dtype: Option<WeightType>) {
    let checkpoint = open(&Source::Folder(folder.to_owned())).expect("the written checkpoint opens");
    // Keys and values unrounded: the reference computed in f32.
    let options = LoadOptions { dtype, kv: Some(KvElement::F32), ..Default::default() };
    let mut world = World::load(&checkpoint, &options, probe::Tuning { operations, ..Default::default() });
    let tokens = |key: &str| -> Vec<u32> { serde_json::from_value(fixture.info[key].clone()).expect("token ids") };
    let (prompt, canvas) = (tokens("prompt"), tokens("canvas"));
    let temperature = fixture.info["temperature"].as_f64().expect("a temperature") as f32;
    let columns = fixture.info["columns"].as_u64().expect("a stride") as usize;
    let mut worst = Worst::default();
    let mut kv = KvView::default();
    let mut segments = vec![world.encode(&mut kv, &prompt)];
    for (tag, conditioning) in [("first", Conditioning::Fresh), ("second", Conditioning::Carried)] {
        segments.push(world.denoise(&kv, 0, conditioning, &canvas, temperature));
        let (outputs, seen) = world.run(std::mem::take(&mut segments));
        let found: Vec<f32> = seen.logits.iter().flat_map(|row| row.iter().step_by(columns).copied()).collect();
        let wanted = fixture.get(&format!("{tag}.logits"));
        close(tag, &found, &wanted.values, BOUND, &mut worst.logits, &mut worst.compared);
        let rows = rows(outputs.last().expect("an output"));
        let entropies: Vec<f32> = rows.iter().map(|r| r.entropy).collect();
        let wanted = fixture.get(&format!("{tag}.entropy"));
        close(tag, &entropies, &wanted.values, 10.0 * BOUND, &mut worst.entropy, &mut worst.compared);
        let argmax: Vec<u32> = rows.iter().map(|r| r.argmax).collect();
        assert_eq!(argmax, fixture.get(&format!("{tag}.argmax")).tokens(0), "{tag}: argmax");
    }
    cache(fixture, &world, &kv, &mut worst);
    println!("wide {operations:?} {dtype:?}: {worst:?}");
}

fn cache(fixture: &Fixture, world: &World, kv: &KvView, worst: &mut Worst) {
    for (layer, kind) in world.layers.iter().enumerate() {
        let (keys, values) = (fixture.get(&format!("cache.{layer}.k")), fixture.get(&format!("cache.{layer}.v")));
        let [_, heads, kept, dim] = keys.shape[..] else { panic!("shape of the cache") };
        let all = if *kind == LayerKind::Full { kv.len } else { world.limits.window - 1 };
        assert_eq!(kept, all, "positions kept on layer {layer}");
        for slot in 0..kept {
            let (key, value) = world.keys_values(layer, kv, kv.len - kept + slot);
            for head in 0..heads {
                let at = (head * kept + slot) * dim;
                let part = head * dim..(head + 1) * dim;
                let (k, v) = (&keys.values[at..at + dim], &values.values[at..at + dim]);
                close("key", &key[part.clone()], k, BOUND, &mut worst.keys, &mut worst.compared);
                close("value", &value[part], v, BOUND, &mut worst.values, &mut worst.compared);
            }
        }
    }
}

/// `config.json`, a tokenizer (no text is touched here) and two shards of bf16 weights with their index.
fn write_checkpoint(fixture: &Fixture, folder: &Path, tokenizer: &Path) {
    std::fs::copy(tokenizer, folder.join("tokenizer.json")).expect("a tokenizer");
    std::fs::write(folder.join("config.json"), fixture.info["config"].to_string()).expect("config.json");
    let shapes = fixture.info["shapes"].as_object().expect("shapes");
    let mut names: Vec<&String> = shapes.keys().collect();
    names.sort();
    let mut sums = Vec::new();
    let mut made: Vec<(String, Vec<usize>, Vec<u8>)> = Vec::new();
    for name in names {
        let shape: Vec<usize> = serde_json::from_value(shapes[name].clone()).expect("a shape");
        let values = values(name, shape.iter().product(), &fixture.info["rules"]);
        sums.push(values.iter().map(|&x| f64::from(x)).sum::<f64>() as f32);
        let bytes = values.iter().flat_map(|&x| half::bf16::from_f32(x).to_le_bytes()).collect();
        made.push((name.clone(), shape, bytes));
    }
    assert_eq!(sums, fixture.get("weights").values, "the formula gives the tool's weights");
    let mut index = serde_json::Map::new();
    for (i, shard) in made.chunks(made.len().div_ceil(2)).enumerate() {
        let file = format!("model-{:05}-of-00002.safetensors", i + 1);
        let views = shard.iter().map(|(name, shape, bytes)| {
            let view = TensorView::new(Dtype::BF16, shape.clone(), bytes).expect("a tensor");
            (name.as_str(), view)
        });
        serialize_to_file(views, None, &folder.join(&file)).expect("a shard");
        index.extend(shard.iter().map(|(name, ..)| (name.clone(), Value::from(file.clone()))));
    }
    let index = serde_json::json!({ "metadata": {}, "weight_map": index });
    std::fs::write(folder.join("model.safetensors.index.json"), index.to_string()).expect("an index");
}

/// The tool's formula: `tests/fixtures/tool/wide.py`.
fn values(name: &str, count: usize, rules: &Value) -> Vec<f32> {
    let seed =
        name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |h, byte| (h ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
    let rule = rules.as_array().expect("rules").iter().find(|r| name.ends_with(r[0].as_str().expect("an ending")));
    let rule = rule.expect("the last rule fits every name");
    let (center, spread) = (rule[1].as_f64().expect("a number") as f32, rule[2].as_f64().expect("a number") as f32);
    let keep = if center == 0.0 { 0xff } else { 0xfc };
    (0..count as u64)
        .map(|i| {
            let mut z = seed.wrapping_add(i.wrapping_mul(0x9e37_79b9_7f4a_7c15));
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            let byte = ((z ^ (z >> 31)) >> 56) & keep;
            center + (byte as f32 - 128.0) / 128.0 * spread
        })
        .collect()
}

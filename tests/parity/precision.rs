//! What is lost where speed or memory is bought with rounding: keys and values in bf16, weights in blocks, activations in
//! bytes. Each is compared with the same model unrounded, by a bound that its arithmetic explains.

use std::path::Path;

use canvasd::checkpoint::{Checkpoint, NewFile, Quantization, Source, open};
use canvasd::model::{KvElement, LoadOptions, Precision, probe};
use canvasd::pass::{Conditioning, KvView};

use super::company::tokens;
use super::fixture::{committed, halves};
use super::world::World;

/// Logits of two steps after a prompt, the second self-conditioned by the first's.
fn logits(checkpoint: &Checkpoint, options: &LoadOptions, prompt: usize) -> Vec<Vec<f32>> {
    let mut world = World::load(checkpoint, options, probe::Tuning::default());
    let (canvas, vocabulary) = (world.limits.canvas, world.limits.vocabulary);
    let mut kv = KvView::default();
    let prompt = world.encode(&mut kv, &tokens(3, prompt, vocabulary));
    world.run(vec![prompt]);
    let seen = tokens(4, canvas, vocabulary);
    let mut all = Vec::new();
    for conditioning in [Conditioning::Fresh, Conditioning::Carried] {
        let segment = world.denoise(&kv, 1, conditioning, &seen, 0.8);
        all.extend(world.run(vec![segment]).1.logits);
    }
    all
}

/// The distance of each row from what is wanted, relative to its size: ascending.
fn distances(found: &[Vec<f32>], wanted: &[Vec<f32>]) -> Vec<f64> {
    assert_eq!(found.len(), wanted.len());
    let size = |values: &mut dyn Iterator<Item = f32>| values.map(|v| f64::from(v).powi(2)).sum::<f64>().sqrt();
    let row = |(a, b): (&Vec<f32>, &Vec<f32>)| {
        size(&mut a.iter().zip(b).map(|(a, b)| a - b)) / size(&mut b.iter().copied()).max(f64::MIN_POSITIVE)
    };
    let mut all: Vec<f64> = found.iter().zip(wanted).map(row).collect();
    all.sort_by(f64::total_cmp);
    all
}

fn median(ascending: &[f64]) -> f64 {
    ascending[ascending.len() / 2]
}

fn demo() -> Checkpoint {
    open(&Source::Demo).expect("the demo")
}

/// How many of a checkpoint's rows may be off because the rounding tips the choice between two experts that are almost alike
/// for them. On the random weights of `moe` that happens where other rows see it.
fn tips(name: &str, rows: usize) -> usize {
    match name {
        "moe" => rows,
        _ => 0,
    }
}

#[test]
fn keys_and_values_in_bf16_stay_close() {
    let exact = LoadOptions { kv: Some(KvElement::F32), ..Default::default() };
    let rounded = LoadOptions { kv: Some(KvElement::Bf16), ..exact };
    let fixtures = committed().into_iter().chain([halves()]);
    let mut checkpoints: Vec<_> = fixtures.map(|fixture| (fixture.name.clone(), fixture.checkpoint())).collect();
    checkpoints.push(("demo".to_owned(), demo()));
    for (name, checkpoint) in checkpoints {
        let apart = distances(&logits(&checkpoint, &rounded, 40), &logits(&checkpoint, &exact, 40));
        let (median, worst) = (median(&apart), apart[apart.len() - 1]);
        println!("{name}: median {median:.5}, worst {worst:.5}");
        assert!(worst > 0.0, "nothing was rounded");
        // 8 significant bits are off by 2^-9 at most, and attention averages over them: well under a thousandth of a row's
        // size. A row whose choice of experts tips, and those that see it, are off by what the experts differ in.
        let tipped = apart.iter().filter(|&&distance| distance > 0.01).count();
        assert!(tipped <= tips(&name, apart.len()), "{name}: choices tipped: {apart:?}");
        let bound = if tipped > 1 { 0.1 } else { 0.002 };
        assert!(median < bound, "{name}: {apart:?}");
    }
}

/// A reference in bf16 rounds after every operation, keys and values among all else: we, who round these alone, must come nearer
/// to it unrounded than it does itself. (Where we round nothing, `cases` shows that we equal it unrounded.)
#[test]
fn keys_and_values_in_bf16_lose_less_than_a_reference_in_bf16() {
    let fixture = halves();
    let rounded = LoadOptions { kv: Some(KvElement::Bf16), ..Default::default() };
    for case in ["short", "long"] {
        let mut world = World::load(&fixture.checkpoint(), &rounded, probe::Tuning::default());
        let mut kv = KvView::default();
        let prompt = world.encode(&mut kv, &fixture.get(&format!("enc.{case}.input_ids")).tokens(0));
        world.run(vec![prompt]);
        let canvas = fixture.get(&format!("dec.{case}.canvas")).tokens(0);
        let segment = world.denoise(&kv, 1, Conditioning::Fresh, &canvas, 0.8);
        let found = world.run(vec![segment]).1.logits.concat();

        let name = format!("dec.{case}.first.logits");
        let theirs = fixture.rounded(&name).expect("what the reference got in bf16");
        let apart = |logits: &[f32]| distances(&[logits.to_vec()], &[fixture.get(&name).values.clone()])[0];
        let (ours, theirs) = (apart(&found), apart(&theirs.values));
        println!("{case}: {ours:.5} from the unrounded reference, which is {theirs:.4} from itself in bf16");
        assert!(ours > 0.0, "{case}: nothing was rounded");
        assert!((1e-3..0.2).contains(&theirs), "{case}: {theirs}");
        assert!(ours < theirs / 4.0, "{case}: {ours} against {theirs}");
    }
}

/// Blocks are the weights of another model; against those same weights unpacked to f32 the kernels must be exact, and
/// bytes must lose no more than rounding activations to 8 bits explains.
#[test]
fn bytes_stay_close_to_the_same_blocks_unpacked() {
    let plain = demo();
    for scheme in [Quantization::Q8_0, Quantization::Q4K, Quantization::Q6K] {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("demo.gguf");
        plain.write_gguf(scheme, &NewFile::begin(&path).expect("a new file"), &|_, _| {}).expect("the demo in blocks");
        let checkpoint = || opened(&path);
        let exact = LoadOptions { kv: Some(KvElement::F32), ..Default::default() };
        let unpacked = LoadOptions { dtype: Some(canvasd::model::WeightType::F32), ..exact };
        let wanted = logits(&checkpoint(), &unpacked, 30);
        let kernels = distances(&logits(&checkpoint(), &exact, 30), &wanted);
        let bytes = LoadOptions { precision: Precision::Bytes, ..exact };
        let apart = distances(&logits(&checkpoint(), &bytes, 30), &wanted);
        let (worst, most) = (kernels[kernels.len() - 1], apart[apart.len() - 1]);
        println!("{scheme:?}: exact {worst:.2e}, bytes median {:.4}, worst {most:.4}", median(&apart));
        assert!(worst < 1e-4, "{scheme:?}: the blocks' own products are off by {worst}");
        // Each product is off by about half a percent of its size, and norms keep that from growing: less than a reference in
        // bf16 is away from itself. A choice between two experts that are almost alike may tip for a row.
        assert!(median(&apart) < 0.02, "{scheme:?}: {apart:?}");
    }
}

fn opened(path: &Path) -> Checkpoint {
    open(&Source::Gguf(path.to_owned())).expect("the file opens")
}

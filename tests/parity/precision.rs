//! What is lost where speed or memory is bought with rounding: keys and values in bf16, weights in blocks, activations in
//! bytes. Each is compared with the same model unrounded, by a bound that its arithmetic explains.

use std::path::Path;

use canvasd::checkpoint::{Checkpoint, Quantization, Source, open};
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

/// A reference in bf16 holds keys and values in bf16 too, among much else; ours must lose less than it does.
#[test]
fn keys_and_values_in_bf16_stay_close() {
    let exact = LoadOptions { kv: Some(KvElement::F32), ..Default::default() };
    let rounded = LoadOptions { kv: Some(KvElement::Bf16), ..exact };
    let mut checkpoints: Vec<Checkpoint> = committed().iter().map(|fixture| fixture.checkpoint()).collect();
    checkpoints.extend([halves().checkpoint(), demo()]);
    let mut tipped = 0;
    for checkpoint in checkpoints {
        let apart = distances(&logits(&checkpoint, &rounded, 40), &logits(&checkpoint, &exact, 40));
        let (median, worst) = (median(&apart), apart[apart.len() - 1]);
        println!("{}: median {median:.5}, worst {worst:.5}", checkpoint.id);
        assert!(worst > 0.0, "nothing was rounded");
        // 8 significant bits are off by 2^-9 at most, and attention averages over them: well under a thousandth of a row's
        // size. Where that tips a choice between two experts that are almost alike, the row and those that see it are off
        // by what the experts differ in, which on the random weights of one fixture happens.
        let bound = if worst > 0.01 { 0.1 } else { 0.002 };
        tipped += usize::from(worst > 0.01);
        assert!(median < bound, "{}: {apart:?}", checkpoint.id);
    }
    assert!(tipped <= 1, "choices tipped on {tipped} checkpoints");
}

/// Our own distance from a reference in bf16 is that reference's distance from itself in f32, which `cases` shows by
/// equality with the latter; here it is looked at, so that a fixture that rounds nothing is noticed.
#[test]
fn a_reference_in_bf16_is_away_from_itself() {
    let fixture = halves();
    let mut worst = 0f64;
    for case in fixture.names("cases") {
        let name = format!("dec.{case}.first.logits");
        let (Some(rounded), wide) = (fixture.rounded(&name), fixture.get(&name)) else { continue };
        let size: f64 = wide.values.iter().map(|&v| f64::from(v).powi(2)).sum();
        let apart: f64 = wide.values.iter().zip(&rounded.values).map(|(&a, &b)| f64::from(a - b).powi(2)).sum();
        worst = worst.max((apart / size).sqrt());
    }
    println!("bf16 against f32, the reference itself: {worst:.4}");
    assert!((1e-3..0.2).contains(&worst), "{worst}");
}

/// Blocks are the weights of another model; against those same weights unpacked to f32 the kernels must be exact, and
/// bytes must lose no more than rounding activations to 8 bits explains.
#[test]
fn bytes_stay_close_to_the_same_blocks_unpacked() {
    let plain = demo();
    for scheme in [Quantization::Q8_0, Quantization::Q4K, Quantization::Q6K] {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("demo.gguf");
        plain.write_gguf(scheme, &path, &|_, _| {}).expect("the demo in blocks");
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

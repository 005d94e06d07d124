//! A row's result must not depend on its company: bit for bit, on our kernels, in every precision.

use canvasd::model::{LoadOptions, probe};
use canvasd::pass::{Conditioning, KvView, Output, Segment};

use super::fixture::committed;
use super::world::{World, rows};

#[path = "../support/served.rs"]
mod served;

/// Tokens that look arbitrary and are the same in every run.
pub fn tokens(seed: u32, count: usize, vocabulary: usize) -> Vec<u32> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(1);
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) % vocabulary as u32
    };
    (0..count).map(|_| next()).collect()
}

/// A model of these tests: what it is called, and how it is loaded for a number of threads.
type Subject = (String, Box<dyn Fn(usize) -> World>);

/// The fixtures as they are, and the demo as it is served.
fn subjects() -> Vec<Subject> {
    let fixtures = committed().into_iter().map(|fixture| -> Subject {
        let name = fixture.name.clone();
        let world = move |threads| {
            let options = LoadOptions { threads, ..Default::default() };
            World::load(&fixture.checkpoint(), &options, probe::Tuning::default())
        };
        (name, Box::new(world))
    });
    let demos = served::SERVED.into_iter().map(|served| -> Subject {
        let world =
            move |threads| World::load(&served.checkpoint(), &served.options(threads), probe::Tuning::default());
        (format!("{served:?}"), Box::new(world))
    });
    fixtures.chain(demos).collect()
}

/// A prompt's length and how it is cut into chunks.
const PROMPTS: [(usize, &[usize]); 3] = [(5, &[1, 4]), (23, &[16, 1, 6]), (70, &[3, 60, 7])];

/// Everything a request left behind: rows of two steps, its soft embedding, all its keys and values. As bits.
#[derive(PartialEq, Debug)]
struct Trail {
    rows: Vec<u32>,
    soft: Vec<u32>,
    cache: Vec<u32>,
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

fn row_bits(output: &Output) -> Vec<u32> {
    let mut all = Vec::new();
    for row in rows(output) {
        all.extend([row.argmax, row.sampled, row.max.to_bits(), row.lse.to_bits(), row.entropy.to_bits()]);
        all.extend(row.top.iter().flat_map(|c| [c.token, c.logit.to_bits()]));
    }
    all
}

fn trail(world: &World, kv: &KvView, slot: u32, outputs: &[&Output]) -> Trail {
    let mut cache = Vec::new();
    for layer in 0..world.layers.len() {
        for position in 0..kv.len {
            let (k, v) = world.keys_values(layer, kv, position);
            cache.extend(bits(&k));
            cache.extend(bits(&v));
        }
    }
    Trail {
        rows: outputs.iter().flat_map(|o| row_bits(o)).collect(),
        soft: bits(&probe::soft(&world.model, slot).expect("a slot")),
        cache,
    }
}

/// The three requests one after the other: each prompt in one pass, then two steps in passes of their own.
fn alone(mut world: World) -> Vec<Trail> {
    let (canvas, vocabulary) = (world.limits.canvas, world.limits.vocabulary);
    let mut trails = Vec::new();
    for (i, (length, _)) in PROMPTS.iter().enumerate() {
        let slot = i as u32;
        let mut kv = KvView::default();
        let prompt = world.encode(&mut kv, &tokens(slot, *length, vocabulary));
        world.run(vec![prompt]);
        let mut outputs = Vec::new();
        for (step, conditioning) in [Conditioning::Fresh, Conditioning::Carried].into_iter().enumerate() {
            let seen = tokens(100 + 10 * slot + step as u32, canvas, vocabulary);
            let segment = world.denoise(&kv, slot, conditioning, &seen, 0.8 - 0.1 * step as f32);
            outputs.extend(world.run(vec![segment]).0);
        }
        trails.push(trail(&world, &kv, slot, &outputs.iter().collect::<Vec<_>>()));
    }
    trails
}

#[test]
fn threads_do_not_matter() {
    for (name, world) in subjects() {
        let one = alone(world(1));
        for threads in [2, 3] {
            assert!(one == alone(world(threads)), "{name}: {threads} threads");
        }
    }
}

/// All three requests side by side, in chunks: while the longest prompt is still being encoded, the others already take
/// steps, and each one's last chunk brings its first step in the same pass.
#[test]
fn company_chunks_and_joined_passes_do_not_matter() {
    for (name, world) in subjects() {
        let wanted = alone(world(2));
        let mut world = world(2);
        let (canvas, vocabulary) = (world.limits.canvas, world.limits.vocabulary);
        let mut kvs = vec![KvView::default(); PROMPTS.len()];
        let mut outputs: Vec<Vec<Output>> = vec![Vec::new(); PROMPTS.len()];
        for pass in 0..6 {
            let mut segments: Vec<Segment> = Vec::new();
            let mut owners = Vec::new();
            // Requests start one pass apart, the last one first.
            for (i, (length, chunks)) in PROMPTS.iter().enumerate().rev() {
                let Some(turn) = (pass as usize).checked_sub(PROMPTS.len() - 1 - i) else { continue };
                let slot = i as u32;
                if let Some(chunk) = chunks.get(turn) {
                    let prompt = tokens(slot, *length, vocabulary);
                    let from = kvs[i].len;
                    segments.push(world.encode(&mut kvs[i], &prompt[from..from + chunk]));
                    owners.push(None);
                }
                if let Some(step) = (turn + 1).checked_sub(chunks.len())
                    && step < 2
                {
                    let conditioning = [Conditioning::Fresh, Conditioning::Carried][step];
                    let seen = tokens(100 + 10 * slot + step as u32, canvas, vocabulary);
                    // A denoise segment before the encode it needs would be fine too: order within a pass is free.
                    let segment = world.denoise(&kvs[i], slot, conditioning, &seen, 0.8 - 0.1 * step as f32);
                    segments.insert(0, segment);
                    owners.insert(0, Some(i));
                }
            }
            let (found, _) = world.run(segments);
            for (owner, output) in owners.into_iter().zip(found) {
                if let Some(i) = owner {
                    outputs[i].push(output);
                }
            }
        }
        for (i, wanted) in wanted.iter().enumerate() {
            assert_eq!(outputs[i].len(), 2, "both steps of request {i} ran");
            let found = trail(&world, &kvs[i], i as u32, &outputs[i].iter().collect::<Vec<_>>());
            assert!(found == *wanted, "{name}: request {i} differs in company");
        }
    }
}

//! Segments that contradict the limits are refused, each with a reason, and the pass's other segments are good.

use std::sync::Arc;

use canvasd::model::{LoadOptions, probe};
use canvasd::pass::{
    Capacity, Conditioning, Denoiser, Draw, EngineError, KvView, Output, PageId, Pass, Segment, SegmentError, SlotId,
};

use super::company::tokens;
use super::fixture::committed;
use super::world::{SLOTS, World};

fn world() -> World {
    World::load(&committed()[0].checkpoint(), &LoadOptions::default(), probe::Tuning::default())
}

/// A prompt of `length` tokens, encoded.
fn encoded(world: &mut World, length: usize) -> KvView {
    let mut kv = KvView::default();
    let prompt = world.encode(&mut kv, &tokens(1, length, 400));
    world.run(vec![prompt]);
    kv
}

fn refused(world: &mut World, why: &str, segment: Segment) {
    let mut kv = KvView::default();
    let good = world.encode(&mut kv, &[2, 3]);
    let answers = world.try_run(vec![segment, good]);
    match &answers[0] {
        Err(SegmentError::Refused(reason)) => assert!(reason.contains(why), "{reason:?} does not say {why:?}"),
        other => panic!("{why}: {other:?}"),
    }
    assert_eq!(answers[1], Ok(Output::Encoded), "{why}: the other segment is good");
}

#[test]
fn wrong_segments_are_refused_alone() {
    let mut world = world();
    let kv = encoded(&mut world, 70);
    let canvas = tokens(2, world.limits.canvas, 400);
    let good = world.denoise(&kv, 0, Conditioning::Fresh, &canvas, 0.8);
    type Change = fn(&mut Segment);
    let denoises: [(&str, Change); 15] = [
        ("outside the vocabulary", |s| edit(s).tokens[3] = u32::MAX),
        ("uniform numbers", |s| edit(s).uniforms.truncate(1)),
        ("a canvas of", |s| edit(s).tokens.truncate(1)),
        ("uniform number", |s| edit(s).uniforms[0] = 1.0),
        ("uniform number", |s| edit(s).uniforms[0] = f32::NAN),
        ("slot", |s| edit(s).slot.0 = SLOTS as u32),
        ("holds no soft embedding", |s| *edit(s).conditioning = Conditioning::Carried),
        ("temperature", |s| edit(s).head.temperature = 0.0),
        ("temperature", |s| edit(s).head.temperature = f32::NAN),
        ("top_p", |s| edit(s).head.draw = Draw::Scaled { temperature: 1.0, top_p: 0.0 }),
        ("top_k", |s| edit(s).head.top_k = 65),
        ("ascending", |s| edit(s).head.bias = Arc::from([(5, 1.0), (5, 1.0)])),
        ("finite", |s| edit(s).head.bias = Arc::from([(5, f32::NAN)])),
        ("full pages", |s| edit(s).kv.full.truncate(1)),
        ("exceed the context", |s| edit(s).kv.len = usize::MAX),
    ];
    for (why, change) in denoises {
        let mut segment = good.clone();
        change(&mut segment);
        refused(&mut world, why, segment);
    }
    type Look = fn(&mut KvView);
    let views: [(&str, Look); 5] = [
        ("full page", |kv| kv.full[0] = PageId(u32::MAX)),
        ("sliding page", |kv| kv.sliding[0] = PageId(48)),
        ("no multiple", |kv| kv.sliding_from = 3),
        ("at or below", |kv| kv.sliding_from = 64),
        ("exceed the context", |kv| kv.len = 1 << 40),
    ];
    for (why, change) in views {
        let mut changed = kv.clone();
        change(&mut changed);
        refused(&mut world, why, Segment::Encode { kv: changed, tokens: vec![5, 6] });
    }
    refused(&mut world, "without tokens", Segment::Encode { kv: kv.clone(), tokens: vec![] });
    assert!(matches!(&world.try_run(vec![good])[0], Ok(Output::Denoised(_))), "the segment itself is good");
}

#[test]
fn segments_must_not_share() {
    let mut world = world();
    let kv = encoded(&mut world, 5);
    let canvas = tokens(2, world.limits.canvas, 400);
    let step = world.denoise(&kv, 1, Conditioning::Fresh, &canvas, 0.8);
    let answers = world.try_run(vec![step.clone(), step]);
    assert!(matches!(&answers[0], Ok(Output::Denoised(_))));
    assert!(matches!(&answers[1], Err(SegmentError::Refused(why)) if why.contains("slot")));
    let write = Segment::Encode { kv, tokens: vec![4] };
    let answers = world.try_run(vec![write.clone(), write]);
    assert_eq!(answers[0], Ok(Output::Encoded));
    assert!(matches!(&answers[1], Err(SegmentError::Refused(why)) if why.contains("same positions")));
}

#[test]
fn more_than_was_reserved_fails_the_pass() {
    let mut world = world();
    let kv = encoded(&mut world, 5);
    let capacity = Capacity { full_pages: 1, sliding_pages: 1, slots: 1, rows: 3 };
    world.model.reserve(capacity).expect("room");
    let pass = Pass { segments: vec![Segment::Encode { kv, tokens: vec![1; 4] }] };
    assert!(matches!(world.model.run(&pass), Err(EngineError::Capacity(_))));
    let huge = Capacity { full_pages: usize::MAX, ..capacity };
    assert!(matches!(world.model.reserve(huge), Err(EngineError::Capacity(_))));
    assert_eq!(world.model.run(&Pass::default()), Ok(vec![]), "an empty pass is no error");
}

#[test]
fn damaged_logits_are_reported_by_row() {
    let mut world = world();
    let kv = encoded(&mut world, 5);
    let canvas = tokens(2, world.limits.canvas, 400);
    let nothing = vec![f32::NAN; canvas.len() * world.limits.vocabulary];
    probe::inject_logits(&mut world.model, 4, &nothing).expect("a slot");
    let bad = world.denoise(&kv, 4, Conditioning::Carried, &canvas, 0.8);
    let good = world.denoise(&kv, 5, Conditioning::Fresh, &canvas, 0.8);
    let answers = world.try_run(vec![bad.clone(), good]);
    assert_eq!(answers[0], Err(SegmentError::NotFinite { row: 0 }));
    assert!(matches!(&answers[1], Ok(Output::Denoised(_))), "the other canvas is good");
    assert!(matches!(&world.try_run(vec![bad])[0], Err(SegmentError::Refused(_))), "nothing damaged is carried on");
}

/// The fields of a denoise segment.
struct Fields<'a> {
    kv: &'a mut KvView,
    slot: &'a mut SlotId,
    conditioning: &'a mut Conditioning,
    tokens: &'a mut Vec<u32>,
    uniforms: &'a mut Vec<f32>,
    head: &'a mut canvasd::pass::Head,
}

fn edit(segment: &mut Segment) -> Fields<'_> {
    match segment {
        Segment::Denoise { kv, slot, conditioning, tokens, uniforms, head } => {
            Fields { kv, slot, conditioning, tokens, uniforms, head }
        }
        Segment::Encode { .. } => panic!("not a denoise segment"),
    }
}

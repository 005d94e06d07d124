//! The memory plan, part by part, against what is really allocated.
//!
//! Pages that are mapped from a file are not counted on either side: the system takes them back when it needs them.

use canvasd::checkpoint::{Checkpoint, Quantization, Source, open};
use canvasd::model::{DiffusionGemma, LayerKind, LoadOptions, WeightType};
use canvasd::pass::{Capacity, Conditioning, Denoiser, Draw, Head, KvView, PageId, Pass, Segment, SlotId};

use super::heap;

/// Names, tables and scratch, whatever the model's size.
const SLACK: u64 = 3 << 20;
const REQUESTS: usize = 2;
const POSITIONS: usize = 512;
const PAGE: usize = 64;

fn demo() -> Checkpoint {
    open(&Source::Demo).expect("the demo opens")
}

#[test]
fn loading_takes_what_the_plan_says() {
    let _alone = heap::alone();
    let quantized = |scheme| demo().quantized(scheme).expect("it can be quantized");
    for (what, checkpoint, dtype) in [
        ("as stored", demo(), None),
        ("to f32", demo(), Some(WeightType::F32)),
        ("to q8_0", quantized(Quantization::Q8_0), None),
        ("to q4_k_m", quantized(Quantization::Q4KM), None),
        ("to q4_0 and then bf16", quantized(Quantization::Q4_0), Some(WeightType::Bf16)),
    ] {
        let options = LoadOptions { dtype, threads: 2, ..Default::default() };
        let needs = checkpoint.needs(&options);
        let before = heap::live();
        let (model, peak) =
            heap::peak(|| DiffusionGemma::load(&checkpoint.config, checkpoint.weights.as_ref(), &options));
        let model = model.expect("it loads");
        let kept = (heap::live() - before) as u64;
        let peak = peak as u64;
        println!(
            "{what}: weights {} KiB planned, {} KiB kept; {} KiB more planned while loading, {} KiB taken",
            needs.weights >> 10,
            kept >> 10,
            needs.loading >> 10,
            peak.saturating_sub(kept) >> 10
        );
        assert!(kept <= needs.weights + needs.weights / 20 + SLACK, "{what}: more is kept than planned");
        assert!(kept + SLACK >= needs.weights, "{what}: the plan is far above what is kept");
        assert!(
            peak <= needs.weights + needs.weights / 20 + needs.loading + SLACK,
            "{what}: loading takes more than planned"
        );
        drop(model);
    }
}

#[test]
fn serving_takes_no_more_than_the_plan_says() {
    let _alone = heap::alone();
    let checkpoint = demo();
    let options = LoadOptions { threads: 2, ..Default::default() };
    let needs = checkpoint.needs(&options);
    let mut model = DiffusionGemma::load(&checkpoint.config, checkpoint.weights.as_ref(), &options).expect("it loads");
    let limits = model.limits().clone();
    assert!(checkpoint.config.count(LayerKind::Sliding) > 0);
    let pages = POSITIONS / PAGE;
    let capacity =
        Capacity { full_pages: REQUESTS * pages, sliding_pages: REQUESTS * pages, slots: REQUESTS, rows: 1024 };
    let before = heap::live();
    model.reserve(capacity).expect("room");
    let kept = (heap::live() - before) as u64;
    let planned = needs.request(POSITIONS) * REQUESTS as u64;
    println!(
        "{REQUESTS} requests of {POSITIONS} positions: {} KiB planned, {} KiB reserved",
        planned >> 10,
        kept >> 10
    );
    assert!(kept <= planned + SLACK && kept + SLACK >= planned, "{kept} bytes reserved, {planned} planned");

    let view = |request: usize, len: usize| {
        let pages: Vec<_> = (request * pages..(request + 1) * pages).map(|page| PageId(page as u32)).collect();
        KvView { full: pages.clone(), sliding: pages, sliding_from: 0, len }
    };
    let prefix = POSITIONS - limits.canvas;
    let encode = |request| Segment::Encode { kv: view(request, 0), tokens: vec![5; prefix] };
    let denoise = |request: usize, conditioning| Segment::Denoise {
        kv: view(request, prefix),
        slot: SlotId(request as u32),
        conditioning,
        tokens: vec![7; limits.canvas],
        uniforms: vec![0.5; limits.canvas],
        head: Head { temperature: 0.8, draw: Draw::Argmax, bias: [].into(), top_k: 64 },
    };
    for (what, segments, rows) in [
        ("one prompt", vec![encode(0)], prefix),
        ("a prompt and a canvas", vec![encode(1), denoise(0, Conditioning::Fresh)], POSITIONS),
        ("two canvases", vec![denoise(0, Conditioning::Carried), denoise(1, Conditioning::Fresh)], 2 * limits.canvas),
    ] {
        let pass = Pass { segments };
        let (outputs, peak) = heap::peak(|| model.run(&pass));
        assert!(outputs.expect("the pass runs").iter().all(Result::is_ok), "{what}");
        let planned = needs.rows(rows);
        println!("{what}, {rows} rows: {} KiB planned, {} KiB taken", planned >> 10, peak >> 10);
        assert!(peak as u64 <= planned + SLACK, "{what}: {peak} bytes, {planned} planned");
    }
}

//! A loaded model with a simple page allocator, and passes of one or several segments.

use canvasd::checkpoint::Checkpoint;
use canvasd::model::{DiffusionGemma, LayerKind, LoadOptions, probe};
use canvasd::pass::{
    Capacity, Conditioning, Denoiser, Draw, Head, KvView, Limits, Output, PageId, Pass, Row, Segment, SegmentError,
    SlotId,
};

/// Pages per pool and slots.
const PAGES: u32 = 48;
pub const SLOTS: usize = 6;

pub struct World {
    pub model: DiffusionGemma,
    pub layers: Vec<LayerKind>,
    pub limits: Limits,
    full: u32,
    sliding: u32,
}

/// What flowed through a pass.
#[derive(Default)]
pub struct Seen {
    /// The stream entering each layer, `[rows, hidden]`.
    pub hidden: Vec<Vec<f32>>,
    /// Softcapped logits per denoise row.
    pub logits: Vec<Vec<f32>>,
}

impl probe::Observer for Seen {
    fn wants_hidden(&self) -> bool {
        true
    }

    fn hidden(&mut self, layer: usize, _width: usize, values: &[f32]) {
        assert_eq!(layer, self.hidden.len());
        self.hidden.push(values.to_vec());
    }

    fn wants_logits(&self) -> bool {
        true
    }

    fn logits(&mut self, row: usize, first_column: usize, values: &[f32]) {
        if self.logits.len() <= row {
            self.logits.resize(row + 1, Vec::new());
        }
        assert_eq!(self.logits[row].len(), first_column, "tiles come in order");
        self.logits[row].extend_from_slice(values);
    }
}

impl World {
    pub fn load(checkpoint: &Checkpoint, options: &LoadOptions, tuning: probe::Tuning) -> World {
        let mut model = probe::load(&checkpoint.config, &*checkpoint.weights, options, tuning)
            .unwrap_or_else(|error| panic!("{}: {error}", checkpoint.id));
        let limits = model.limits().clone();
        let pages = PAGES as usize;
        model.reserve(Capacity { full_pages: pages, sliding_pages: pages, slots: SLOTS, rows: 4096 }).expect("room");
        World { model, layers: checkpoint.config.layers.clone(), limits, full: PAGES, sliding: 0 }
    }

    /// Grows a view until it covers positions below `end`. Pages come from opposite ends of the pools, so that no test
    /// passes because a page's number equals its place.
    fn grow(&mut self, kv: &mut KvView, end: usize) {
        while kv.full.len() * self.limits.page_tokens < end {
            self.full = self.full.checked_sub(1).expect("enough full pages");
            kv.full.push(PageId(self.full));
            assert!(self.sliding < PAGES, "enough sliding pages");
            kv.sliding.push(PageId(self.sliding));
            self.sliding += 1;
        }
    }

    /// A segment that encodes `tokens` after `kv`, and the view afterwards.
    pub fn encode(&mut self, kv: &mut KvView, tokens: &[u32]) -> Segment {
        self.grow(kv, kv.len + tokens.len());
        let segment = Segment::Encode { kv: kv.clone(), tokens: tokens.to_vec() };
        kv.len += tokens.len();
        segment
    }

    /// One step of a canvas, drawn from the step's own distribution.
    pub fn denoise(
        &self,
        kv: &KvView,
        slot: u32,
        conditioning: Conditioning,
        tokens: &[u32],
        temperature: f32,
    ) -> Segment {
        let draw = Draw::Scaled { temperature: 1.0, top_p: 1.0 };
        Segment::Denoise {
            kv: kv.clone(),
            slot: SlotId(slot),
            conditioning,
            tokens: tokens.to_vec(),
            uniforms: (0..tokens.len()).map(|i| (i as f32 * 0.618).fract()).collect(),
            head: Head { temperature, draw, bias: [].into(), top_k: 4 },
        }
    }

    /// Runs a pass of which every segment must succeed.
    pub fn run(&mut self, segments: Vec<Segment>) -> (Vec<Output>, Seen) {
        let mut seen = Seen::default();
        let outputs = probe::run(&mut self.model, &Pass { segments }, &mut seen).expect("the pass runs");
        (outputs.into_iter().map(|o| o.expect("the segment is good")).collect(), seen)
    }

    /// Runs a pass and hands back what each segment said.
    pub fn try_run(&mut self, segments: Vec<Segment>) -> Vec<Result<Output, SegmentError>> {
        self.model.run(&Pass { segments }).expect("the pass runs")
    }

    /// Key and value of a position on a layer, each `[kv_heads, head_dim]`.
    pub fn keys_values(&self, layer: usize, kv: &KvView, position: usize) -> (Vec<f32>, Vec<f32>) {
        probe::keys_values(&self.model, layer, self.layers[layer], kv, position).expect("the position is encoded")
    }
}

/// The rows of a denoise output.
pub fn rows(output: &Output) -> &[Row] {
    match output {
        Output::Denoised(rows) => rows,
        Output::Encoded => panic!("a denoise segment was answered as an encode"),
    }
}

/// The largest differences met.
#[derive(Debug, Default)]
pub struct Worst {
    pub hidden: f32,
    pub keys: f32,
    pub values: f32,
    pub logits: f32,
    pub entropy: f32,
    /// Numbers compared.
    pub compared: usize,
}

/// Compares numbers, remembering the worst; `bound` is absolute.
pub fn close(what: &str, found: &[f32], wanted: &[f32], bound: f32, worst: &mut f32, compared: &mut usize) {
    assert_eq!(found.len(), wanted.len(), "{what}: length");
    for (i, (a, b)) in found.iter().zip(wanted).enumerate() {
        let d = (a - b).abs();
        assert!(d <= bound, "{what}[{i}]: {a} instead of {b}, off by {d}");
        *worst = worst.max(d);
    }
    *compared += found.len();
}

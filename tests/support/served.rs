//! The demo as it can be served: each precision of products, with weights that it rounds.

use canvasd::checkpoint::{Checkpoint, Quantization, Source, open};
use canvasd::model::{LoadOptions, Precision};

/// A precision, and the blocks that the demo's matrices are put into while they are read.
#[derive(Debug, Clone, Copy)]
pub struct Served {
    precision: Precision,
    quantization: Option<Quantization>,
}

/// Where the processor lacks the instructions of one, it is computed in the next more accurate precision.
pub const SERVED: [Served; 4] = [
    Served { precision: Precision::Exact, quantization: None },
    Served { precision: Precision::Bf16, quantization: None },
    Served { precision: Precision::Bytes, quantization: Some(Quantization::Q8_0) },
    // Experts keep their few bits here, and become bytes while they are read. (The demo's rows are too short for Q4_K's own
    // blocks and take Q5_0's.)
    Served { precision: Precision::Bytes, quantization: Some(Quantization::Q4K) },
];

impl Served {
    /// The weights, as `--quantize` makes them.
    pub fn checkpoint(self) -> Checkpoint {
        let demo = open(&Source::Demo).expect("the demo");
        match self.quantization {
            Some(scheme) => demo.quantized(scheme).expect("plain weights"),
            None => demo,
        }
    }

    pub fn options(self, threads: usize) -> LoadOptions {
        LoadOptions { threads, precision: self.precision, ..LoadOptions::default() }
    }
}

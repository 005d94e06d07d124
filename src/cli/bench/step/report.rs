//! What `bench --step` has found, for programs and for people.

use std::fmt::Write;
use std::time::Duration;

use serde_json::{Map, Value, json};

use super::work::Work;
use super::{Encoded, Findings, Measured, Memory, Statistics};
use crate::kernels::cpu::Peak;
use crate::model::{Config, KvElement, Operation, Precision, Splits};

/// Everything measured, with what is needed to judge it.
pub struct StepReport {
    /// The model's name.
    pub model: String,
    /// Threads that computed.
    pub threads: usize,
    /// The instructions that computed.
    pub path: &'static str,
    /// How activations entered products with quantised matrices.
    pub precision: Precision,
    /// How keys and values were held.
    pub kv: KvElement,
    /// The model's shape.
    pub shape: Config,
    /// Bytes of weights that each operation reads once per pass.
    pub weights: Splits<u64>,
    /// What the machine can do, measured just before.
    pub peak: Peak,
    /// What loading took.
    pub load: Duration,
    /// Memory after loading.
    pub loaded: Option<Memory>,
    /// Memory at the end.
    pub end: Option<Memory>,
    /// The measurements.
    pub found: Findings,
}

/// One operation of one measurement.
struct Part {
    operation: Operation,
    milliseconds: f64,
    /// Operations per second, where its work is known.
    rate: Option<f64>,
    /// Bytes of weights per second, where it reads any.
    read: Option<f64>,
}

impl StepReport {
    /// What was computed for one measurement; of the soft embedding only what cannot be left out.
    fn work(&self, one: &Measured) -> f64 {
        let work = Work::of(&self.shape, one.prefix);
        let total = match one.statistics {
            Statistics::Flat => work.total(),
            Statistics::Peaked => work.total() - work.part(Operation::SoftEmbedding),
        };
        total * one.canvases as f64
    }

    /// Operations per second of one measurement.
    fn rate(&self, one: &Measured) -> f64 {
        self.work(one) / (one.median() / 1e3)
    }

    /// The most operations per second that the machine does of the kind that an operation is made of.
    fn ceiling(&self, operation: Operation) -> f64 {
        let f32 = self.peak.flops;
        let bf16 = self.peak.bf16.unwrap_or(f32);
        match (self.precision, operation) {
            // The router is not quantised, and f32 matrices are multiplied exactly.
            (Precision::Exact, _) | (_, Operation::Router | Operation::Elementwise) => f32,
            (Precision::Bytes, Operation::Attention | Operation::SoftEmbedding) => bf16,
            (Precision::Bytes, _) if self.quantised() => self.peak.bytes.unwrap_or(bf16),
            (Precision::Bf16 | Precision::Bytes, _) => bf16,
        }
    }

    /// Whether the matrices are held in fewer than 16 bits a weight.
    fn quantised(&self) -> bool {
        let weights = 3 * self.shape.hidden * self.shape.intermediate * self.shape.layers.len();
        *self.weights.of(Operation::Mlp) < 2 * weights as u64 * 9 / 10
    }

    /// Milliseconds that one measurement's work would take at the machine's peak, each operation at that of its kind.
    fn bound(&self, one: &Measured) -> f64 {
        let work = Work::of(&self.shape, one.prefix);
        let counted =
            |operation: &Operation| *operation != Operation::SoftEmbedding || one.statistics == Statistics::Flat;
        let seconds = |operation: Operation| work.part(operation) / self.ceiling(operation);
        Operation::ALL.into_iter().filter(counted).map(seconds).sum::<f64>() * one.canvases as f64 * 1e3
    }

    fn parts(&self, one: &Measured) -> Vec<Part> {
        let work = Work::of(&self.shape, one.prefix);
        let part = |operation: Operation| {
            let milliseconds = *one.splits.of(operation);
            let counted = operation != Operation::SoftEmbedding || one.statistics == Statistics::Flat;
            let per_second = |amount: f64| (amount > 0.0 && milliseconds > 0.0).then(|| amount / (milliseconds / 1e3));
            Part {
                operation,
                milliseconds,
                rate: per_second(work.part(operation) * one.canvases as f64).filter(|_| counted),
                read: per_second(*self.weights.of(operation) as f64).filter(|_| counted),
            }
        };
        Operation::ALL.map(part).into_iter().filter(|part| part.milliseconds > 0.0).collect()
    }

    /// Time of a pass that no operation accounts for.
    fn rest(one: &Measured) -> f64 {
        one.mean() - Operation::ALL.iter().map(|operation| one.splits.of(*operation)).sum::<f64>()
    }

    /// For programs.
    pub fn json(&self) -> Value {
        json!({
            "canvasd": env!("CARGO_PKG_VERSION"),
            "model": self.model,
            "threads": self.threads,
            "path": self.path,
            "precision": self.precision.name(),
            "kv": kv(self.kv),
            "canvas": self.shape.canvas,
            "load_seconds": self.load.as_secs_f64(),
            "memory": {"loaded": self.loaded.map(Memory::json), "end": self.end.map(Memory::json)},
            "peak": {
                "f32_gflops": self.peak.flops / 1e9,
                "bf16_gflops": self.peak.bf16.map(|rate| rate / 1e9),
                "bytes_gops": self.peak.bytes.map(|rate| rate / 1e9),
                "read_gbytes_per_second": self.peak.read / 1e9,
            },
            "encode": self.found.encoded.as_ref().map(encoded),
            "steps": self.found.steps.iter().map(|one| self.step(one)).collect::<Vec<_>>(),
        })
    }

    fn step(&self, one: &Measured) -> Value {
        let work = Work::of(&self.shape, one.prefix);
        let mut splits: Map<String, Value> = Map::new();
        for part in self.parts(one) {
            splits.insert(
                part.operation.name().into(),
                json!({
                    "ms": part.milliseconds,
                    "share": part.milliseconds / one.mean(),
                    "gflop": work.part(part.operation) * one.canvases as f64 / 1e9,
                    "gflops": part.rate.map(|rate| rate / 1e9),
                    "share_of_peak": part.rate.map(|rate| rate / self.ceiling(part.operation)),
                    "weights_gbytes_per_second": part.read.map(|read| read / 1e9),
                }),
            );
        }
        splits.insert("rest".into(), json!({"ms": Self::rest(one), "share": Self::rest(one) / one.mean()}));
        json!({
            "canvases": one.canvases,
            "prefix": one.prefix,
            "statistics": one.statistics.name(),
            "rows_per_second": (one.canvases * self.shape.canvas) as f64 / (one.median() / 1e3),
            "step_ms": one.median(),
            "spread_ms": {
                "min": one.quantile(0.0), "p25": one.quantile(0.25), "p75": one.quantile(0.75), "max": one.quantile(1.0),
            },
            "passes_ms": one.steps,
            "gflop": self.work(one) / 1e9,
            "gflops": self.rate(one) / 1e9,
            "bound_ms": self.bound(one),
            "share_of_peak": self.bound(one) / one.median(),
            "splits": splits,
        })
    }

    /// For people.
    pub fn table(&self) -> String {
        let kinds = [("f32", Some(self.peak.flops)), ("bf16", self.peak.bf16), ("bytes", self.peak.bytes)];
        let kinds = kinds.into_iter().filter_map(|(kind, rate)| Some(format!("{:.0} GFLOP/s in {kind}", rate? / 1e9)));
        let mut table = format!(
            "{}, {} threads, {} in {} products, keys and values in {}, canvas {}\nthis machine: {}, reads {:.1} GB/s\n",
            self.model,
            self.threads,
            self.path,
            self.precision.name(),
            kv(self.kv),
            self.shape.canvas,
            kinds.collect::<Vec<_>>().join(", "),
            self.peak.read / 1e9
        );
        // Writing to a string cannot fail.
        let _ = write!(table, "loaded in {:.2} s", self.load.as_secs_f64());
        let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
        for (when, memory) in [("after loading", self.loaded), ("at the end", self.end)] {
            if let Some(memory) = memory {
                let (held, peak) = (gib(memory.anonymous + memory.shared), gib(memory.peak));
                let _ = write!(table, "; {when} {held:.2} GiB anonymous and shared (peak with file pages {peak:.2})");
            }
        }
        table.push('\n');
        if let Some(encoded) = &self.found.encoded {
            let (tokens, rate) = (encoded.tokens, encoded.rate());
            let _ = writeln!(table, "encode: {rate:.0} tokens/s over {tokens} tokens in chunks of {}", super::CHUNK);
        }
        table.push_str("canvases  prefix  statistics  step ms  min … max          GFLOP/s  of peak\n");
        for one in &self.found.steps {
            let spread = format!("{:.1} … {:.1}", one.quantile(0.0), one.quantile(1.0));
            let _ = writeln!(
                table,
                "{:>8}  {:>6}  {:<10}  {:>7.1}  {spread:<17}  {:>7.0}  {:>6.0}%",
                one.canvases,
                one.prefix,
                one.statistics.name(),
                one.median(),
                self.rate(one) / 1e9,
                self.bound(one) / one.median() * 100.0
            );
            for part in self.parts(one) {
                let rate = part.rate.map_or_else(String::new, |rate| format!("{:>6.0} GFLOP/s", rate / 1e9));
                let peak = part.rate.map(|rate| rate / self.ceiling(part.operation) * 100.0);
                let peak = peak.map_or_else(String::new, |share| format!("{share:>3.0}% of peak"));
                let read = part.read.map_or_else(String::new, |read| format!("{:>6.1} GB/s", read / 1e9));
                let share = part.milliseconds / one.mean() * 100.0;
                let name = part.operation.name();
                let _ = writeln!(
                    table,
                    "    {name:<18} {:>9.1} ms {share:>4.0}%  {rate:>14}  {peak:>12}  {read:>11}",
                    part.milliseconds
                );
            }
            let rest = Self::rest(one);
            let _ = writeln!(table, "    {:<18} {rest:>9.1} ms {:>4.0}%", "rest", rest / one.mean() * 100.0);
        }
        table
    }
}

fn encoded(encoded: &Encoded) -> Value {
    let times = Operation::ALL.map(|operation| (operation.name(), *encoded.splits.of(operation)));
    let splits: Map<String, Value> =
        times.into_iter().filter(|(_, ms)| *ms > 0.0).map(|(name, ms)| (name.to_owned(), json!({"ms": ms}))).collect();
    json!({
        "tokens": encoded.tokens,
        "chunk": super::CHUNK,
        "ms": encoded.milliseconds,
        "tokens_per_second": encoded.rate(),
        "splits": splits,
    })
}

fn kv(element: KvElement) -> &'static str {
    match element {
        KvElement::F32 => "f32",
        KvElement::Bf16 => "bf16",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> StepReport {
        let shape = include_str!("../../../../models/demo/config.json");
        let mut splits = Splits::default();
        *splits.of_mut(Operation::Mlp) = 4.0;
        *splits.of_mut(Operation::Head) = 5.0;
        *splits.of_mut(Operation::SoftEmbedding) = 1.0;
        let step = |statistics| Measured {
            canvases: 2,
            prefix: 16,
            statistics,
            steps: vec![10.0, 11.0, 12.0, 13.0, 24.0],
            splits,
        };
        StepReport {
            model: "m".into(),
            threads: 1,
            path: "portable",
            precision: Precision::Bytes,
            kv: KvElement::Bf16,
            shape: Config::from_json(&serde_json::from_str(shape).unwrap()).unwrap(),
            weights: Splits::default(),
            peak: Peak { flops: 1e11, read: 1e10, bf16: Some(2e11), bytes: None },
            load: Duration::from_secs(2),
            loaded: Some(Memory { peak: 9, anonymous: 5, shared: 1, files: 3 }),
            end: None,
            found: Findings {
                encoded: Some(Encoded { tokens: 2048, milliseconds: 1000.0, splits }),
                steps: vec![step(Statistics::Flat), step(Statistics::Peaked)],
            },
        }
    }

    #[test]
    fn both_forms_hold_every_measurement_with_its_spread_and_splits() {
        let report = example();
        let value = report.json();
        assert_eq!(value["steps"].as_array().unwrap().len(), 2);
        let step = &value["steps"][0];
        assert_eq!(
            (&step["step_ms"], &step["spread_ms"]["min"], &step["spread_ms"]["max"]),
            (&12.0.into(), &10.0.into(), &24.0.into())
        );
        assert_eq!((&step["spread_ms"]["p25"], &step["spread_ms"]["p75"]), (&11.0.into(), &13.0.into()));
        assert_eq!(step["splits"]["mlp"]["ms"], 4.0);
        // The mean of the passes is 14.
        assert_eq!(step["splits"]["rest"]["ms"], 4.0);
        assert!(step["splits"]["attention"].is_null(), "what took no time is not listed");
        assert_eq!(value["encode"]["tokens_per_second"], 2048.0);
        assert_eq!(value["memory"]["loaded"]["shared_bytes"], 1);
        assert!(report.table().contains("soft_embedding"));
    }

    #[test]
    fn what_a_peaked_sweep_leaves_out_is_not_counted_as_done() {
        let value = example().json();
        let (flat, peaked) = (&value["steps"][0], &value["steps"][1]);
        assert!(flat["gflop"].as_f64() > peaked["gflop"].as_f64());
        assert!(flat["splits"]["soft_embedding"]["gflops"].is_number());
        assert!(peaked["splits"]["soft_embedding"]["gflops"].is_null());
    }
}

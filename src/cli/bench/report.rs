//! What a sweep has found: levels, their statistics, a table and JSON.

use std::fmt::Write;
use std::time::Duration;

use serde_json::{Value, json};

use super::target::{Counters, Sample};

/// A whole sweep.
#[derive(Debug, Clone)]
pub struct Report {
    /// The model's name.
    pub model: String,
    /// Where it ran, in words.
    pub place: String,
    /// One per number of requests at once.
    pub levels: Vec<Level>,
}

/// One number of requests at once.
#[derive(Debug, Clone)]
pub struct Level {
    /// Requests at once.
    pub concurrency: usize,
    /// Requests measured.
    pub requests: usize,
    /// Wall time of all of them.
    pub seconds: f64,
    /// Tokens committed.
    pub tokens: usize,
    /// Denoising steps per canvas.
    pub steps_per_canvas: f64,
    /// Time from request to first text.
    pub first_text: Quantiles,
    /// Time from one commit (or the request) to the next.
    pub canvas: Quantiles,
    /// Rows of one forward pass, where the target counts them.
    pub rows_per_pass: Option<f64>,
    /// Rows per second, prompts and canvases together, where the target counts them. Against the same figure of bare
    /// passes (`--step`) it says what the scheduler and the way of the requests cost.
    pub rows_per_second: Option<f64>,
}

/// Median and 99th percentile in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Quantiles {
    /// Median.
    pub p50: f64,
    /// 99th percentile.
    pub p99: f64,
}

impl Quantiles {
    /// Of any number of times.
    pub fn of(mut times: Vec<Duration>) -> Quantiles {
        times.sort_unstable();
        // The smallest value that at least that share of all values does not exceed.
        let at = |share: f64| {
            let rank = (share * times.len() as f64).ceil() as usize;
            times.get(rank.saturating_sub(1)).map_or(f64::NAN, |time| time.as_secs_f64() * 1e3)
        };
        Quantiles { p50: at(0.50), p99: at(0.99) }
    }

    /// For programs.
    pub fn json(self) -> Value {
        json!({"p50": self.p50, "p99": self.p99})
    }
}

impl Level {
    /// Sums up what was measured.
    pub fn new(concurrency: usize, took: Duration, samples: &[Sample], before: Counters, after: Counters) -> Level {
        let canvases: usize = samples.iter().map(|sample| sample.canvases).sum();
        let steps: usize = samples.iter().map(|sample| sample.steps).sum();
        let passes = after.passes - before.passes;
        Level {
            concurrency,
            requests: samples.len(),
            seconds: took.as_secs_f64(),
            tokens: samples.iter().map(|sample| sample.tokens).sum(),
            steps_per_canvas: steps as f64 / canvases.max(1) as f64,
            first_text: Quantiles::of(samples.iter().filter_map(|sample| sample.first_text).collect()),
            canvas: Quantiles::of(samples.iter().flat_map(|sample| sample.commits.iter().copied()).collect()),
            rows_per_pass: (passes > 0.0).then(|| (after.rows - before.rows) / passes),
            rows_per_second: (passes > 0.0).then(|| (after.rows - before.rows) / took.as_secs_f64()),
        }
    }

    /// Tokens per second, all requests together.
    pub fn tokens_per_second(&self) -> f64 {
        self.tokens as f64 / self.seconds
    }

    fn json(&self) -> Value {
        json!({
            "concurrency": self.concurrency,
            "requests": self.requests,
            "seconds": self.seconds,
            "tokens": self.tokens,
            "tokens_per_second": self.tokens_per_second(),
            "steps_per_canvas": self.steps_per_canvas,
            "first_text_ms": self.first_text.json(),
            "canvas_ms": self.canvas.json(),
            "rows_per_pass": self.rows_per_pass,
            "rows_per_second": self.rows_per_second,
        })
    }
}

impl Report {
    /// For programs.
    pub fn json(&self) -> Value {
        let levels: Vec<Value> = self.levels.iter().map(Level::json).collect();
        json!({"canvasd": env!("CARGO_PKG_VERSION"), "model": self.model, "place": self.place, "levels": levels})
    }

    /// For people.
    pub fn table(&self) -> String {
        let mut table = format!("{} on {}\n", self.model, self.place);
        table.push_str(
            "at once  requests  tokens/s  steps/canvas  first text ms p50/p99  canvas ms p50/p99  rows/pass  rows/s\n",
        );
        for level in &self.levels {
            let figure = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| format!("{value:.0}"));
            let (rows, speed) = (figure(level.rows_per_pass), figure(level.rows_per_second));
            // Writing to a string cannot fail.
            let _ = writeln!(
                table,
                "{:>7}  {:>8}  {:>8.0}  {:>12.1}  {:>21}  {:>17}  {rows:>9}  {speed:>6}",
                level.concurrency,
                level.requests,
                level.tokens_per_second(),
                level.steps_per_canvas,
                format!("{:.0} / {:.0}", level.first_text.p50, level.first_text.p99),
                format!("{:.0} / {:.0}", level.canvas.p50, level.canvas.p99),
            );
        }
        table
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A report with invented figures.
    pub fn example() -> Report {
        let level = |concurrency: usize| Level {
            concurrency,
            requests: 4 * concurrency,
            seconds: 2.0,
            tokens: 100 * concurrency,
            steps_per_canvas: 9.5,
            first_text: Quantiles { p50: 10.0, p99: 20.0 * concurrency as f64 },
            canvas: Quantiles { p50: 30.0, p99: 40.0 },
            rows_per_pass: (concurrency > 1).then_some(96.0),
            rows_per_second: (concurrency > 1).then_some(4000.0),
        };
        Report { model: "a <model>".into(), place: "cpu & more".into(), levels: vec![level(1), level(4), level(16)] }
    }

    #[test]
    fn quantiles_are_values_that_occurred() {
        let times = |count: u64| (1..=count).map(Duration::from_millis).collect::<Vec<_>>();
        assert_eq!(Quantiles::of(times(100)), Quantiles { p50: 50.0, p99: 99.0 });
        assert_eq!(Quantiles::of(times(1)), Quantiles { p50: 1.0, p99: 1.0 });
        assert!(Quantiles::of(Vec::new()).p50.is_nan());
    }

    #[test]
    fn a_level_sums_its_samples() {
        let sample = |tokens| Sample {
            first_text: Some(Duration::from_millis(5)),
            commits: vec![Duration::from_millis(5), Duration::from_millis(7)],
            tokens,
            canvases: 2,
            steps: 9,
            text: String::new(),
        };
        let (before, after) = (Counters { passes: 10.0, rows: 100.0 }, Counters { passes: 20.0, rows: 600.0 });
        let level = Level::new(2, Duration::from_secs(2), &[sample(30), sample(10)], before, after);
        assert_eq!((level.tokens, level.requests), (40, 2));
        assert_eq!(level.tokens_per_second(), 20.0);
        assert_eq!(level.steps_per_canvas, 4.5);
        assert_eq!((level.rows_per_pass, level.rows_per_second), (Some(50.0), Some(250.0)));
        assert_eq!(level.canvas, Quantiles { p50: 5.0, p99: 7.0 });
    }

    #[test]
    fn both_forms_hold_every_level() {
        let report = example();
        let value = report.json();
        assert_eq!(value["levels"].as_array().unwrap().len(), 3);
        assert_eq!(value["levels"][1]["tokens_per_second"], 200.0);
        assert_eq!(value["levels"][0]["rows_per_pass"], Value::Null);
        assert_eq!(report.table().lines().count(), 5);
    }
}

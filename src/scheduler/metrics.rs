//! What the scheduler counts, as OpenMetrics text. Each name is spelled once, here.

use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder, text::encode};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use super::settings::Budget;

/// An enum whose values are label values, each with its word.
macro_rules! label {
    ($(#[$doc:meta])* $name:ident { $($value:ident = $word:literal,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub(super) enum $name { $($value,)* }

        impl $name {
            const ALL: &'static [$name] = &[$($name::$value,)*];
        }

        impl EncodeLabelValue for $name {
            fn encode(&self, encoder: &mut LabelValueEncoder) -> Result<(), std::fmt::Error> {
                let word = match self { $($name::$value => $word,)* };
                std::fmt::Write::write_str(encoder, word)
            }
        }
    };
}

label! {
    /// How a job ended, all its choices together.
    Outcome {
        Finished = "finished",
        Cancelled = "cancelled",
        Deadline = "deadline",
        Failed = "failed",
        ShutDown = "shut_down",
        QueueFull = "queue_full",
        Refused = "refused",
        Unavailable = "unavailable",
    }
}

impl Outcome {
    /// The outcome of a job of which one more choice has ended. Where one breaks off, the request's reader lets go of the
    /// others: that they are cancelled is no outcome of its own.
    pub(super) fn and(self, choice: Outcome) -> Outcome {
        match choice {
            Outcome::Finished => self,
            Outcome::Cancelled if self != Outcome::Finished => self,
            choice => choice,
        }
    }
}

label! {
    /// How a canvas became final.
    End {
        Converged = "converged",
        StepLimit = "step_limit",
        Deadline = "deadline",
    }
}

label! {
    /// What rows are for.
    Mode {
        Encode = "encode",
        Denoise = "denoise",
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByOutcome {
    outcome: Outcome,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByEnd {
    end: End,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByMode {
    mode: Mode,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CacheConfig {
    block_size: u64,
    num_gpu_blocks: u64,
}

/// What one pass was.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct PassFigures {
    pub(super) duration: Duration,
    pub(super) encode_rows: usize,
    pub(super) denoise_rows: usize,
    pub(super) canvases: usize,
}

/// What there is after a pass.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Levels {
    pub(super) running: usize,
    pub(super) kv_used: u64,
    pub(super) kv_cached: u64,
    pub(super) kv_capacity: u64,
}

/// What one committed canvas cost.
#[derive(Debug, Clone, Copy)]
pub(super) struct CanvasFigures {
    pub(super) end: End,
    pub(super) steps: usize,
    pub(super) latency: Duration,
    pub(super) kept: usize,
    pub(super) wasted: usize,
}

pub(super) struct Metrics {
    registry: Registry,
    requests: Family<ByOutcome, Counter>,
    queue_wait: Histogram,
    waiting: Gauge,
    choices_waiting: Gauge,
    running: Gauge,
    passes: Counter,
    pass_seconds: Histogram,
    encode_rows: Counter,
    denoise_rows: Counter,
    canvases_per_pass: Histogram,
    canvases: Family<ByEnd, Counter>,
    steps: Histogram,
    canvas_seconds: Histogram,
    first_text: Histogram,
    first_draft: Histogram,
    tokens: Counter,
    tokens_per_forward: Histogram,
    wasted: Counter,
    kv_used: Gauge,
    kv_cached: Gauge,
    kv_capacity: Gauge,
    prompt_tokens: Counter,
    prefix_hits: Counter,
    cancellations: Counter,
    set_backs: Counter,
    resident: Gauge,
    vllm_waiting: Gauge,
    vllm_running: Gauge,
    vllm_usage: Gauge<f64, std::sync::atomic::AtomicU64>,
}

/// Resident memory of this process in bytes, where the system tells it.
fn resident() -> Option<i64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<i64>().ok()?.checked_mul(1024)
}

/// From a millisecond to about two minutes.
fn seconds() -> Histogram {
    Histogram::new(exponential_buckets(0.001, 2.0, 18))
}

impl Metrics {
    pub(super) fn new(budget: &Budget) -> Self {
        let mut registry = Registry::default();
        let rows: Family<ByMode, Counter> = Family::default();
        let metrics = Metrics {
            requests: Family::default(),
            queue_wait: seconds(),
            waiting: Gauge::default(),
            choices_waiting: Gauge::default(),
            running: Gauge::default(),
            passes: Counter::default(),
            pass_seconds: seconds(),
            encode_rows: rows.get_or_create_owned(&ByMode { mode: Mode::Encode }),
            denoise_rows: rows.get_or_create_owned(&ByMode { mode: Mode::Denoise }),
            canvases_per_pass: Histogram::new([0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0]),
            canvases: Family::default(),
            steps: Histogram::new([1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0, 48.0, 64.0]),
            canvas_seconds: seconds(),
            first_text: seconds(),
            first_draft: seconds(),
            tokens: Counter::default(),
            tokens_per_forward: Histogram::new([0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0]),
            wasted: Counter::default(),
            kv_used: Gauge::default(),
            kv_cached: Gauge::default(),
            kv_capacity: Gauge::default(),
            prompt_tokens: Counter::default(),
            prefix_hits: Counter::default(),
            cancellations: Counter::default(),
            set_backs: Counter::default(),
            resident: Gauge::default(),
            vllm_waiting: Gauge::default(),
            vllm_running: Gauge::default(),
            vllm_usage: Gauge::default(),
            registry: Registry::default(),
        };
        // A series that is there from the start can be taken a rate of.
        for &outcome in Outcome::ALL {
            metrics.requests.get_or_create_owned(&ByOutcome { outcome });
        }
        for &mode in Mode::ALL {
            rows.get_or_create_owned(&ByMode { mode });
        }
        for &end in End::ALL {
            metrics.canvases.get_or_create_owned(&ByEnd { end });
        }
        metrics.register(&mut registry, rows, budget);
        Metrics { registry, ..metrics }
    }

    fn register(&self, registry: &mut Registry, rows: Family<ByMode, Counter>, budget: &Budget) {
        let r = registry;
        r.register("canvasd_requests", "Requests by outcome, each prompt as one", self.requests.clone());
        r.register("canvasd_queue_wait_seconds", "Time from submission to admission", self.queue_wait.clone());
        r.register("canvasd_requests_waiting", "Requests waiting for admission", self.waiting.clone());
        r.register("canvasd_choices_waiting", "Choices not yet admitted, of any request", self.choices_waiting.clone());
        r.register("canvasd_choices_running", "Choices that hold a slot", self.running.clone());
        r.register("canvasd_passes", "Passes of the model", self.passes.clone());
        r.register("canvasd_pass_duration_seconds", "Duration of a pass", self.pass_seconds.clone());
        r.register("canvasd_pass_rows", "Rows of passes by mode", rows);
        r.register("canvasd_pass_canvases", "Canvases denoised per pass", self.canvases_per_pass.clone());
        r.register("canvasd_canvases", "Committed canvases by what ended them", self.canvases.clone());
        r.register("canvasd_canvas_steps", "Denoising steps per canvas", self.steps.clone());
        r.register(
            "canvasd_canvas_duration_seconds",
            "Time from admission, or the commit before, to the commit of a canvas",
            self.canvas_seconds.clone(),
        );
        r.register("canvasd_time_to_first_text_seconds", "Submission to first committed text", self.first_text.clone());
        r.register("canvasd_time_to_first_draft_seconds", "Submission to first draft", self.first_draft.clone());
        r.register("canvasd_completion_tokens", "Tokens committed", self.tokens.clone());
        let per_forward = "Committed tokens per denoising step of a choice";
        r.register("canvasd_tokens_per_forward", per_forward, self.tokens_per_forward.clone());
        r.register("canvasd_wasted_positions", "Canvas positions behind the end of a text", self.wasted.clone());
        r.register("canvasd_kv_used_bytes", "Key/value memory held by running choices", self.kv_used.clone());
        r.register("canvasd_kv_cached_bytes", "Key/value memory kept for later requests", self.kv_cached.clone());
        r.register("canvasd_kv_capacity_bytes", "Key/value memory in all", self.kv_capacity.clone());
        r.register("canvasd_prompt_tokens", "Prompt tokens of admitted requests", self.prompt_tokens.clone());
        r.register("canvasd_prefix_hit_tokens", "Prompt tokens found encoded at admission", self.prefix_hits.clone());
        r.register("canvasd_cancellations", "Choices cancelled by their readers", self.cancellations.clone());
        r.register("canvasd_set_backs", "Choices set back for want of memory", self.set_backs.clone());
        r.register("process_resident_memory_bytes", "Resident memory of the process", self.resident.clone());
        r.register("vllm:num_requests_waiting", "Alias of canvasd_choices_waiting", self.vllm_waiting.clone());
        r.register("vllm:num_requests_running", "Alias of canvasd_choices_running", self.vllm_running.clone());
        r.register("vllm:kv_cache_usage_perc", "Share of key/value memory in use, 0 to 1", self.vllm_usage.clone());
        let config: Family<CacheConfig, Gauge> = Family::default();
        let labels =
            CacheConfig { block_size: budget.geometry.page as u64, num_gpu_blocks: budget.capacity.full_pages as u64 };
        config.get_or_create(&labels).set(1);
        r.register("vllm:cache_config_info", "Page size in tokens and pages of the full layers", config);
    }

    pub(super) fn text(&self) -> String {
        self.resident.set(resident().unwrap_or_default());
        let mut text = String::new();
        // Writing to a string cannot fail; should an encoder do so, what was written is still valid text.
        let _ = encode(&mut text, &self.registry);
        text
    }

    pub(super) fn request(&self, outcome: Outcome) {
        self.requests.get_or_create(&ByOutcome { outcome }).inc();
    }

    pub(super) fn admitted(&self, wait: Duration, prompt_tokens: usize, cached_tokens: usize) {
        self.queue_wait.observe(wait.as_secs_f64());
        self.prompt_tokens.inc_by(prompt_tokens as u64);
        self.prefix_hits.inc_by(cached_tokens as u64);
    }

    pub(super) fn pass(&self, pass: &PassFigures) {
        self.passes.inc();
        self.pass_seconds.observe(pass.duration.as_secs_f64());
        self.encode_rows.inc_by(pass.encode_rows as u64);
        self.denoise_rows.inc_by(pass.denoise_rows as u64);
        self.canvases_per_pass.observe(pass.canvases as f64);
    }

    /// Requests and choices that wait for admission: known to the callers' side between passes too. The names for gateways
    /// count choices, waiting or running: each is a sequence of its own.
    pub(super) fn waiting(&self, requests: usize, choices: usize) {
        self.waiting.set(requests as i64);
        self.choices_waiting.set(choices as i64);
        self.vllm_waiting.set(choices as i64);
    }

    pub(super) fn levels(&self, levels: &Levels) {
        self.running.set(levels.running as i64);
        self.vllm_running.set(levels.running as i64);
        self.kv_used.set(levels.kv_used as i64);
        self.kv_cached.set(levels.kv_cached as i64);
        self.kv_capacity.set(levels.kv_capacity as i64);
        self.vllm_usage.set(levels.kv_used as f64 / levels.kv_capacity.max(1) as f64);
    }

    pub(super) fn canvas(&self, canvas: &CanvasFigures) {
        self.canvases.get_or_create(&ByEnd { end: canvas.end }).inc();
        self.steps.observe(canvas.steps as f64);
        self.canvas_seconds.observe(canvas.latency.as_secs_f64());
        self.tokens.inc_by(canvas.kept as u64);
        self.wasted.inc_by(canvas.wasted as u64);
    }

    pub(super) fn choice(&self, tokens: usize, steps: usize) {
        if steps > 0 {
            self.tokens_per_forward.observe(tokens as f64 / steps as f64);
        }
    }

    pub(super) fn first_text(&self, after: Duration) {
        self.first_text.observe(after.as_secs_f64());
    }

    pub(super) fn first_draft(&self, after: Duration) {
        self.first_draft.observe(after.as_secs_f64());
    }

    pub(super) fn cancelled(&self) {
        self.cancellations.inc();
    }

    pub(super) fn set_back(&self) {
        self.set_backs.inc();
    }
}

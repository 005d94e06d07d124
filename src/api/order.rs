//! From the fields that all generating requests share to what the scheduler is asked for: every range is checked here.
//!
//! A field that cannot be honoured is an error that names it; nothing is clamped, except that the server's own time
//! limit holds beside the request's.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::error::ApiError;
use super::state::AppState;
use super::wire::chat::Seed;
use super::wire::either::{Progress, Stop};
use super::wire::options::{DiffusionOptions, Effort, ProgressMode, StreamOptions};
use crate::prompt::StopStrings;
use crate::scheduler::{self, Drafts, Draw, Penalties, Sampler};

/// Most stop strings, as in the original API.
const MOST_STOPS: usize = 4;
/// Longest stop string, in characters: far beyond any use, and a bound on what each choice holds back to look for it.
const LONGEST_STOP: usize = 1024;
/// Most denoising steps a request may ask for: far beyond any use, and a bound on what one request can cost. Lower than a
/// checkpoint's (10,000), which its operator has chosen.
const MOST_STEPS: usize = 1024;

/// The fields that all generating requests share, as they came.
#[derive(Default)]
pub(crate) struct Wishes {
    pub seed: Option<Seed>,
    pub temperature: Option<f64>,
    pub top_p: Option<f64>,
    pub logit_bias: Option<BTreeMap<String, f64>>,
    pub presence_penalty: Option<f64>,
    pub frequency_penalty: Option<f64>,
    pub stop: Option<Stop>,
    pub diffusion: Option<DiffusionOptions>,
    pub stream: Option<bool>,
    pub stream_options: Option<StreamOptions>,
    pub diffusing: Option<bool>,
}

/// The same, checked.
#[derive(Debug, Clone)]
pub(crate) struct Order {
    pub sampler: Sampler,
    pub draw: Draw,
    pub bias: Arc<[(u32, f32)]>,
    pub penalties: Penalties,
    pub seed: u64,
    pub stop: StopStrings,
    /// When the request came.
    pub arrived: Instant,
    /// Most time from then to the last commit.
    pub timeout: Duration,
    pub delivery: Delivery,
}

/// How the answer goes out.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Delivery {
    /// In one piece.
    Whole,
    /// As it is committed.
    Stream {
        /// Whether a usage chunk closes it.
        usage: UsageChunk,
        /// Whether it tells of canvases being denoised.
        progress: Option<ProgressPlan>,
    },
}

/// Whether a usage chunk closes a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum UsageChunk {
    /// Asked for.
    Wanted,
    /// Not asked for.
    Unwanted,
}

/// How a stream tells of canvases being denoised.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct ProgressPlan {
    pub every: u32,
    pub mode: ProgressMode,
    /// Least time between two frames of a choice.
    pub pause: Duration,
}

impl Order {
    /// What is left of the request's time; nothing once it is over.
    pub(crate) fn time_left(&self) -> Duration {
        self.timeout.saturating_sub(self.arrived.elapsed())
    }
}

impl Delivery {
    /// How often the scheduler is to publish drafts.
    pub(crate) fn drafts(&self) -> Drafts {
        match self {
            Delivery::Stream { progress: Some(plan), .. } => Drafts::Every(plan.every),
            _ => Drafts::Off,
        }
    }
}

/// Takes the fields that all generating requests share out of a request.
macro_rules! wishes {
    ($request:expr) => {
        $crate::api::order::Wishes {
            seed: $request.seed.take(),
            temperature: $request.temperature.take(),
            top_p: $request.top_p.take(),
            logit_bias: $request.logit_bias.take(),
            presence_penalty: $request.presence_penalty.take(),
            frequency_penalty: $request.frequency_penalty.take(),
            stop: $request.stop.take(),
            diffusion: $request.diffusion.take(),
            stream: $request.stream.take(),
            stream_options: $request.stream_options.take(),
            diffusing: $request.diffusing.take(),
        }
    };
}
pub(crate) use wishes;

impl Wishes {
    /// Checks everything against what this server has and allows; the request's time counts from `arrived`.
    pub(crate) fn order(self, state: &AppState, arrived: Instant) -> Result<Order, ApiError> {
        let longest = state.settings().request_timeout;
        self.check(state.card().sampler, state.engine().limits().vocabulary, arrived, longest)
    }

    /// Checks everything; `checkpoint` is the model's own sampler, `longest` the server's time limit.
    fn check(
        self,
        checkpoint: Sampler,
        vocabulary: usize,
        arrived: Instant,
        longest: Duration,
    ) -> Result<Order, ApiError> {
        let temperature = within("temperature", self.temperature, 1.0, 0.0, 2.0)?;
        let top_p = within("top_p", self.top_p, 1.0, 0.0, 1.0)?;
        // The scheduler has it in single precision, in which the smallest are 0.
        if top_p as f32 == 0.0 {
            return Err(ApiError::invalid(
                "top_p",
                "'top_p' must be above 0 in single precision and at most 1; use temperature 0 instead.",
            ));
        }
        let penalties = Penalties {
            presence: within("presence_penalty", self.presence_penalty, 0.0, -2.0, 2.0)? as f32,
            frequency: within("frequency_penalty", self.frequency_penalty, 0.0, -2.0, 2.0)? as f32,
        };
        let (draw, seed) = scheduler::sampling(temperature, top_p, self.seed.map(|Seed(seed)| seed));
        let diffusion = self.diffusion.unwrap_or_default();
        Ok(Order {
            sampler: sampler(checkpoint, &diffusion)?,
            draw,
            bias: bias(self.logit_bias.unwrap_or_default(), vocabulary)?,
            penalties,
            seed,
            stop: stops(self.stop)?,
            arrived,
            timeout: timeout(diffusion.timeout_ms, longest)?,
            delivery: delivery(self.stream, self.stream_options, self.diffusing)?,
        })
    }
}

fn within(param: &str, given: Option<f64>, default: f64, least: f64, most: f64) -> Result<f64, ApiError> {
    let value = given.unwrap_or(default);
    if (least..=most).contains(&value) {
        return Ok(value);
    }
    Err(ApiError::invalid(param, format!("'{param}' must be between {least} and {most}, got {value}.")))
}

/// A number of choices, tokens or alternatives within its bounds.
pub(crate) fn count(
    param: &str,
    given: Option<usize>,
    default: usize,
    least: usize,
    most: usize,
) -> Result<usize, ApiError> {
    let value = given.unwrap_or(default);
    if (least..=most).contains(&value) {
        return Ok(value);
    }
    let bounds = if most == usize::MAX { format!("at least {least}") } else { format!("between {least} and {most}") };
    Err(ApiError::invalid(param, format!("'{param}' must be {bounds}, got {value}.")))
}

fn stops(stop: Option<Stop>) -> Result<StopStrings, ApiError> {
    let stops = stop.map(Stop::into_vec).unwrap_or_default();
    if stops.len() > MOST_STOPS {
        let message = format!("'stop' takes at most {MOST_STOPS} strings, got {}.", stops.len());
        return Err(ApiError::invalid("stop", message));
    }
    if stops.iter().any(String::is_empty) {
        return Err(ApiError::invalid("stop", "A stop string must not be empty."));
    }
    if let Some(length) = stops.iter().map(|stop| stop.chars().count()).find(|&length| length > LONGEST_STOP) {
        let message = format!(
            "A string of 'stop' must have at most {LONGEST_STOP} characters, got {length}; give its beginning instead."
        );
        return Err(ApiError::invalid("stop", message));
    }
    Ok(StopStrings::new(&stops))
}

fn bias(wanted: BTreeMap<String, f64>, vocabulary: usize) -> Result<Arc<[(u32, f32)]>, ApiError> {
    let mut biases = BTreeMap::new();
    for (key, value) in wanted {
        let param = || format!("logit_bias.{key}");
        let id = key.parse::<u32>().ok().filter(|id| (*id as usize) < vocabulary).ok_or_else(|| {
            ApiError::invalid(param(), format!("A key of 'logit_bias' must be a token id below {vocabulary}."))
        })?;
        if !(-100.0..=100.0).contains(&value) {
            let message = format!("A value of 'logit_bias' must be between -100 and 100, got {value}.");
            return Err(ApiError::invalid(param(), message));
        }
        if biases.insert(id, value as f32).is_some() {
            return Err(ApiError::invalid(param(), format!("'logit_bias' names token {id} twice.")));
        }
    }
    Ok(biases.into_iter().collect())
}

/// The checkpoint's sampler, changed by `effort` and then by the explicit values.
fn sampler(checkpoint: Sampler, wanted: &DiffusionOptions) -> Result<Sampler, ApiError> {
    let mut sampler = match wanted.effort {
        None => checkpoint,
        Some(Effort::Fast) => scheduler::Effort::Fast.apply(checkpoint),
        Some(Effort::Balanced) => scheduler::Effort::Balanced.apply(checkpoint),
        Some(Effort::Quality) => scheduler::Effort::Quality.apply(checkpoint),
    };
    if let Some(steps) = wanted.max_denoising_steps {
        sampler.max_steps = count("diffusion.max_denoising_steps", Some(steps), 1, 1, MOST_STEPS)?;
    }
    if let Some(steps) = wanted.stability_threshold {
        sampler.stability_threshold = count("diffusion.stability_threshold", Some(steps), 0, 0, MOST_STEPS)?;
    }
    if let Some(bound) = wanted.entropy_bound {
        sampler.entropy_bound = positive("diffusion.entropy_bound", bound, 1e6)?;
    }
    if let Some(threshold) = wanted.confidence_threshold {
        sampler.confidence_threshold = positive("diffusion.confidence_threshold", threshold, 1e3)?;
    }
    sampler.validate().map_err(|error| ApiError::invalid("diffusion", format!("{error}.")))?;
    Ok(sampler)
}

fn positive(param: &str, value: f64, most: f64) -> Result<f32, ApiError> {
    let narrow = value as f32;
    if narrow > 0.0 && value <= most {
        return Ok(narrow);
    }
    Err(ApiError::invalid(param, format!("'{param}' must be above 0 and at most {most}, got {value}.")))
}

fn timeout(wanted: Option<u64>, longest: Duration) -> Result<Duration, ApiError> {
    match wanted {
        None => Ok(longest),
        Some(0) => Err(ApiError::invalid("diffusion.timeout_ms", "'diffusion.timeout_ms' must be at least 1, got 0.")),
        Some(milliseconds) => Ok(Duration::from_millis(milliseconds).min(longest)),
    }
}

fn delivery(
    stream: Option<bool>,
    options: Option<StreamOptions>,
    diffusing: Option<bool>,
) -> Result<Delivery, ApiError> {
    let options = options.unwrap_or_default();
    // Checked even where it will have no effect: a mistake should show at once.
    let progress = progress(options.include_diffusion_progress, diffusing)?;
    if stream != Some(true) {
        return Ok(Delivery::Whole);
    }
    let usage = if options.include_usage == Some(true) { UsageChunk::Wanted } else { UsageChunk::Unwanted };
    Ok(Delivery::Stream { usage, progress })
}

fn progress(wanted: Option<Progress>, diffusing: Option<bool>) -> Result<Option<ProgressPlan>, ApiError> {
    const PATH: &str = "stream_options.include_diffusion_progress";
    let options = match wanted {
        Some(Progress::Options(options)) => options,
        Some(Progress::Switch(true)) => Default::default(),
        Some(Progress::Switch(false)) => return Ok(None),
        None if diffusing == Some(true) => Default::default(),
        None => return Ok(None),
    };
    let every = count(&format!("{PATH}.every"), options.every, 1, 1, 1000)?;
    let hertz = options.max_hz.unwrap_or(20.0);
    if !(hertz > 0.0 && hertz <= 1000.0) {
        let path = format!("{PATH}.max_hz");
        return Err(ApiError::invalid(&path, format!("'{path}' must be above 0 and at most 1000, got {hertz}.")));
    }
    Ok(Some(ProgressPlan {
        every: every as u32,
        mode: options.mode.unwrap_or_default(),
        // A day bounds what a tiny rate asks for.
        pause: Duration::from_secs_f64((1.0 / hertz).min(86_400.0)),
    }))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const LONGEST: Duration = Duration::from_secs(60);

    /// Checks one request's shared fields.
    fn check(body: Value) -> Result<Order, ApiError> {
        let mut body: crate::api::wire::chat::ChatRequest = serde_json::from_value(body).unwrap();
        wishes!(body).check(Sampler::default(), 100, Instant::now(), LONGEST)
    }

    #[test]
    fn nothing_asked_is_the_checkpoints_own_way() {
        let order = check(json!({})).unwrap();
        assert_eq!(order.sampler, Sampler::default());
        assert_eq!(order.draw, Draw::Scaled { temperature: 1.0, top_p: 1.0 });
        assert_eq!(order.penalties, Penalties::default());
        assert_eq!(order.delivery, Delivery::Whole);
        assert_eq!(order.timeout, LONGEST);
        assert_ne!(order.seed, check(json!({})).unwrap().seed);
    }

    #[test]
    fn each_field_arrives() {
        let order = check(json!({
            "seed": -1, "temperature": 1, "top_p": 0.5, "logit_bias": {"7": -100, "3": 1.5},
            "presence_penalty": -2, "frequency_penalty": 2, "stop": ["a", "b"], "stream": true,
            "stream_options": {"include_usage": true, "include_diffusion_progress": {"every": 4, "mode": "edits", "max_hz": 10}},
            "diffusion": {"effort": "quality", "max_denoising_steps": 5, "timeout_ms": 250}
        }))
        .unwrap();
        assert_eq!(order.seed, u64::MAX);
        assert_eq!(order.draw, Draw::Scaled { temperature: 1.0, top_p: 0.5 });
        assert_eq!(&order.bias[..], &[(3, 1.5), (7, -100.0)]);
        assert_eq!(order.penalties, Penalties { presence: -2.0, frequency: 2.0 });
        assert_eq!(order.stop, StopStrings::new(&["a", "b"]));
        assert_eq!(order.timeout, Duration::from_millis(250));
        assert_eq!(order.sampler.max_steps, 5);
        assert_eq!(order.sampler.entropy_bound, 0.05);
        assert_eq!(order.sampler.stability_threshold, 2);
        let plan = ProgressPlan { every: 4, mode: ProgressMode::Edits, pause: Duration::from_millis(100) };
        assert_eq!(order.delivery, Delivery::Stream { usage: UsageChunk::Wanted, progress: Some(plan) });
        let fast = check(json!({"diffusion": {"effort": "fast", "confidence_threshold": 0.25}, "stop": "x"})).unwrap();
        assert_eq!(fast.sampler.max_steps, 16);
        assert_eq!(fast.sampler.confidence_threshold, 0.25);
        assert_eq!(fast.stop, StopStrings::new(&["x"]));
        let longest = "é".repeat(LONGEST_STOP);
        assert_eq!(check(json!({"stop": longest})).unwrap().stop, StopStrings::new(&[longest]));
        let zero = check(json!({"temperature": 0, "diffusing": true, "stream": true})).unwrap();
        assert_eq!((zero.draw, zero.seed), (Draw::Argmax, 0));
        assert_eq!(zero.delivery.drafts(), Drafts::Every(1));
    }

    #[test]
    fn each_range_is_checked_and_named() {
        for (body, param) in [
            (json!({"temperature": 2.1}), "temperature"),
            (json!({"temperature": -0.1}), "temperature"),
            (json!({"top_p": 0}), "top_p"),
            (json!({"top_p": 1e-50}), "top_p"),
            (json!({"top_p": 1.1}), "top_p"),
            (json!({"presence_penalty": 2.5}), "presence_penalty"),
            (json!({"frequency_penalty": -3}), "frequency_penalty"),
            (json!({"stop": ["1", "2", "3", "4", "5"]}), "stop"),
            (json!({"stop": ""}), "stop"),
            (json!({"stop": ["x", "a".repeat(LONGEST_STOP + 1)]}), "stop"),
            (json!({"logit_bias": {"100": 1}}), "logit_bias.100"),
            (json!({"logit_bias": {"x": 1}}), "logit_bias.x"),
            (json!({"logit_bias": {"1": 101}}), "logit_bias.1"),
            (json!({"logit_bias": {"1": 1, "01": 2}}), "logit_bias.1"),
            (json!({"diffusion": {"max_denoising_steps": 0}}), "diffusion.max_denoising_steps"),
            (json!({"diffusion": {"entropy_bound": 0}}), "diffusion.entropy_bound"),
            (json!({"diffusion": {"entropy_bound": 1e-300}}), "diffusion.entropy_bound"),
            (json!({"diffusion": {"confidence_threshold": -1}}), "diffusion.confidence_threshold"),
            (json!({"diffusion": {"stability_threshold": 9999}}), "diffusion.stability_threshold"),
            (json!({"diffusion": {"timeout_ms": 0}}), "diffusion.timeout_ms"),
            (
                json!({"stream_options": {"include_diffusion_progress": {"every": 0}}}),
                "stream_options.include_diffusion_progress.every",
            ),
            (
                json!({"stream_options": {"include_diffusion_progress": {"max_hz": 0}}}),
                "stream_options.include_diffusion_progress.max_hz",
            ),
        ] {
            let error = check(body.clone()).expect_err(&body.to_string()).body().error;
            assert_eq!(error.param.as_deref(), Some(param), "{body}");
        }
    }
}

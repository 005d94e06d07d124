//! What is measured: the engine in this process, or a server. Both are asked the same and tell the same.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::http::{Http, HttpError};
use crate::cli::CliError;
use crate::cli::wire::House;
use crate::diffusion::Sampler;
use crate::pass::Draw;
use crate::prompt::{Chat, Dialect, Message, Role, Text};
use crate::scheduler::{Choice, Drafts, Event, Handle, Job};

/// What one answer cost.
#[derive(Debug, Clone)]
pub struct Sample {
    /// From the request to its first text; `None` where the answer has none.
    pub first_text: Option<Duration>,
    /// From each commit, or the request, to the next commit.
    pub commits: Vec<Duration>,
    /// Tokens committed.
    pub tokens: usize,
    /// Canvases denoised.
    pub canvases: usize,
    /// Denoising steps, all canvases together.
    pub steps: usize,
}

/// Running totals of the scheduler.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Counters {
    /// Forward passes.
    pub passes: f64,
    /// Their rows, both modes together.
    pub rows: f64,
}

impl Counters {
    /// Reads them from Prometheus text: the count and sums of the rows per pass.
    pub fn read(metrics: &str) -> Counters {
        let sum = |name: &str| {
            let samples = metrics.lines().filter(|line| {
                line.strip_prefix(name).is_some_and(|rest| rest.starts_with(' ') || rest.starts_with('{'))
            });
            samples.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).sum()
        };
        Counters { passes: sum("canvasd_passes_total"), rows: sum("canvasd_pass_rows_total") }
    }
}

/// What is measured.
pub enum Target {
    /// The engine in this process.
    Engine {
        /// Takes jobs.
        handle: Handle,
        /// Renders prompts.
        text: Arc<Text>,
        /// The checkpoint's own sampler.
        sampler: Sampler,
        /// The model's name.
        model: String,
        /// Where it runs, in words.
        place: String,
    },
    /// A server.
    Server {
        /// How to ask it.
        http: Http,
        /// The model's name.
        model: String,
    },
}

impl Target {
    /// The engine of this process.
    pub fn engine(house: &House) -> Target {
        Target::Engine {
            handle: house.engine.handle(),
            text: house.text.clone(),
            sampler: house.sampler,
            model: house.name.clone(),
            place: format!("this process, {} threads", house.threads),
        }
    }

    /// The server at `url`, whose first model is taken.
    pub async fn server(url: &str) -> Result<Target, CliError> {
        let http = Http::new(url, std::env::var("CANVASD_API_KEY").ok().as_deref())?;
        let models = http.get("/v1/models").await?;
        let models: serde_json::Value =
            serde_json::from_str(&models).map_err(|error| http.wrong(format!("/v1/models is no JSON: {error}")))?;
        let model = models["data"][0]["id"].as_str().ok_or_else(|| http.wrong("it serves no model".into()))?.to_owned();
        Ok(Target::Server { http, model })
    }

    /// The model's name.
    pub fn model(&self) -> &str {
        match self {
            Target::Engine { model, .. } | Target::Server { model, .. } => model,
        }
    }

    /// Where it runs, in words.
    pub fn place(&self) -> &str {
        match self {
            Target::Engine { place, .. } => place,
            Target::Server { http, .. } => http.url(),
        }
    }

    /// The scheduler's totals.
    pub async fn counters(&self) -> Result<Counters, CliError> {
        Ok(match self {
            Target::Engine { handle, .. } => Counters::read(&handle.metrics()),
            Target::Server { http, .. } => Counters::read(&http.get("/metrics").await?),
        })
    }

    /// Asks once and waits for the end of the answer.
    pub async fn ask(&self, prompt: &str, seed: u64, max_tokens: usize) -> Result<Sample, CliError> {
        match self {
            Target::Engine { handle, text, sampler, .. } => {
                in_process(handle, text, *sampler, prompt, seed, max_tokens).await
            }
            Target::Server { http, model } => over_http(http, model, prompt, seed, max_tokens).await,
        }
    }
}

async fn in_process(
    handle: &Handle,
    text: &Text,
    sampler: Sampler,
    prompt: &str,
    seed: u64,
    max_tokens: usize,
) -> Result<Sample, CliError> {
    let begun = Instant::now();
    let chat = Chat { messages: vec![Message::new(Role::User, prompt)], ..Chat::default() };
    let rendered = text.render(&chat).map_err(CliError::Prompt)?;
    let job = Job {
        prompt: Arc::from(rendered.ids),
        resume_points: rendered.resume_points,
        choices: vec![Choice { seed, stream: 0, gate: text.gate(rendered.opening, Dialect::ChatWithoutTools, &[]) }],
        max_tokens,
        sampler,
        draw: Draw::Scaled { temperature: 1.0, top_p: 1.0 },
        bias: Arc::from([]),
        penalties: Default::default(),
        top_k: 0,
        timeout: None,
        drafts: Drafts::Off,
    };
    let mut clock = Clock::new(begun);
    let mut reader = handle.submit(job)?.choices.pop().ok_or(CliError::EngineStopped)?;
    loop {
        match reader.next().await {
            Some(Event::Committed(committed)) if committed.tokens.is_empty() => {}
            Some(Event::Committed(_)) => clock.commit(),
            Some(Event::Finished(finished)) => {
                let usage = finished.usage;
                return Ok(clock.sample(usage.completion_tokens, usage.canvases, usage.steps));
            }
            Some(Event::Failed(error)) => return Err(error.into()),
            None => return Err(CliError::EngineStopped),
        }
    }
}

async fn over_http(http: &Http, model: &str, prompt: &str, seed: u64, max_tokens: usize) -> Result<Sample, CliError> {
    let body = serde_json::json!({
        "model": model, "messages": [{"role": "user", "content": prompt}], "seed": seed, "max_tokens": max_tokens,
        "stream": true, "stream_options": {"include_usage": true},
    });
    let mut clock = Clock::new(Instant::now());
    let mut usage = serde_json::Value::Null;
    let mut failure = None;
    http.stream("/v1/chat/completions", &body.to_string(), |event| {
        if let Some(error) = event.get("error") {
            failure = Some(error.to_string());
        }
        let text = event["choices"][0]["delta"]["content"].as_str().unwrap_or_default();
        if !text.is_empty() {
            clock.commit();
        }
        if event["usage"].is_object() {
            usage = event["usage"].clone();
        }
    })
    .await?;
    if let Some(error) = failure {
        return Err(http.wrong(format!("the stream broke off: {error}")).into());
    }
    let number = |pointer: &str| {
        let value = usage.pointer(pointer).and_then(serde_json::Value::as_u64);
        value.map(|value| value as usize).ok_or_else(|| http.wrong(format!("the usage has no {pointer}")))
    };
    Ok(clock.sample(number("/completion_tokens")?, number("/diffusion/canvases")?, number("/diffusion/steps")?))
}

/// Takes the times of one answer.
struct Clock {
    begun: Instant,
    last: Instant,
    first_text: Option<Duration>,
    commits: Vec<Duration>,
}

impl Clock {
    fn new(begun: Instant) -> Clock {
        Clock { begun, last: begun, first_text: None, commits: Vec::new() }
    }

    fn commit(&mut self) {
        let now = Instant::now();
        self.first_text = self.first_text.or(Some(now - self.begun));
        self.commits.push(now - self.last);
        self.last = now;
    }

    fn sample(self, tokens: usize, canvases: usize, steps: usize) -> Sample {
        Sample { first_text: self.first_text, commits: self.commits, tokens, canvases, steps }
    }
}

impl From<HttpError> for CliError {
    fn from(error: HttpError) -> CliError {
        CliError::Unhealthy { url: error.url, why: error.why }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_read_from_prometheus_text() {
        let text = "# TYPE canvasd_pass_rows counter\ncanvasd_pass_rows_total{mode=\"encode\"} 100\n\
                    canvasd_pass_rows_total{mode=\"denoise\"} 200.5\ncanvasd_pass_rows_total_else 7\n\
                    canvasd_passes_total 12\n";
        assert_eq!(Counters::read(text), Counters { passes: 12.0, rows: 300.5 });
        assert_eq!(Counters::read(""), Counters { passes: 0.0, rows: 0.0 });
    }
}

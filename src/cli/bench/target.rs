//! What is measured: the engine in this process, or a server. Both are asked the same and tell the same.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::http::{Http, HttpError};
use crate::cli::wire::House;
use crate::cli::{CliError, options};
use crate::diffusion::{Effort, Sampler};
use crate::prompt::{Chat, Delta, Dialect, Message, Opening, Prompt, Role, Rules, Text};
use crate::scheduler::{Choice, Event, Handle, Job};

/// What is asked once.
#[derive(Debug, Clone)]
pub struct Question {
    /// The conversation so far.
    pub said: Said,
    /// Seed of its draws.
    pub seed: u64,
    /// Most tokens of the answer.
    pub max_tokens: usize,
    /// Trade of quality for speed; `None` is the checkpoint's own.
    pub effort: Option<Effort>,
    /// Most steps of a canvas; `None` is what the effort says.
    pub steps: Option<usize>,
}

/// What an answer follows.
#[derive(Debug, Clone)]
pub enum Said {
    /// A conversation, through the model's chat template.
    Chat(Vec<(Role, String)>),
    /// A text to go on with.
    Text(String),
}

impl Question {
    /// One user's turn.
    pub fn chat(text: &str, seed: u64, max_tokens: usize) -> Question {
        Question { said: Said::Chat(vec![(Role::User, text.to_owned())]), seed, max_tokens, effort: None, steps: None }
    }
}

/// What one answer cost.
#[derive(Debug, Clone)]
pub struct Sample {
    /// The answer, without thoughts.
    pub text: String,
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
    /// Reads them from Prometheus text: the passes and the sum of their rows.
    pub fn read(metrics: &str) -> Counters {
        Counters { passes: sum(metrics, "canvasd_passes_total"), rows: sum(metrics, "canvasd_pass_rows_total") }
    }
}

/// What is held at one moment.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Levels {
    /// Requests waiting for admission.
    pub waiting: f64,
    /// Choices that hold a slot.
    pub running: f64,
    /// Key/value memory held by running choices, bytes.
    pub kv_used: f64,
    /// Key/value memory kept for later requests, bytes.
    pub kept: u64,
    /// Resident memory of the process, bytes; 0 where the system does not tell.
    pub resident: u64,
}

impl Levels {
    fn read(metrics: &str) -> Levels {
        Levels {
            waiting: sum(metrics, "canvasd_requests_waiting"),
            running: sum(metrics, "canvasd_choices_running"),
            kv_used: sum(metrics, "canvasd_kv_used_bytes"),
            kept: sum(metrics, "canvasd_kv_cached_bytes") as u64,
            resident: sum(metrics, "process_resident_memory_bytes") as u64,
        }
    }

    /// Whether no request is there any more.
    pub fn is_idle(&self) -> bool {
        self.waiting + self.running + self.kv_used == 0.0
    }
}

/// The sum of all series of one name in Prometheus text.
fn sum(metrics: &str, name: &str) -> f64 {
    let samples = metrics
        .lines()
        .filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(' ') || rest.starts_with('{')));
    samples.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).sum()
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
        let keys = options::api_keys()?;
        let http = Http::new(url, keys.first().map(String::as_str))?;
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

    /// What the scheduler and the process hold now.
    pub async fn levels(&self) -> Result<Levels, CliError> {
        Ok(match self {
            Target::Engine { handle, .. } => Levels::read(&handle.metrics()),
            Target::Server { http, .. } => Levels::read(&http.get("/metrics").await?),
        })
    }

    /// Asks once and waits for the end of the answer. Dropping the future gives the request up.
    pub async fn ask(&self, question: &Question) -> Result<Sample, CliError> {
        match self {
            Target::Engine { handle, text, sampler, .. } => in_process(handle, text, *sampler, question).await,
            Target::Server { http, model } => over_http(http, model, question).await,
        }
    }
}

async fn in_process(handle: &Handle, text: &Text, sampler: Sampler, question: &Question) -> Result<Sample, CliError> {
    let mut clock = Clock::new(Instant::now());
    let (job, opening, dialect) = job(text, sampler, question)?;
    let mut writer = text.reader(opening, dialect, Rules::default());
    let mut reader = handle.submit(job)?.choices.pop().ok_or(CliError::EngineStopped)?;
    let mut answer = String::new();
    let mut write = |deltas: Vec<Delta>| {
        for delta in deltas {
            if let Delta::Content(text) = delta {
                answer.push_str(&text);
            }
        }
    };
    loop {
        match reader.next().await {
            Some(Event::Committed(committed)) if committed.tokens.is_empty() => {}
            Some(Event::Committed(committed)) => {
                let ids: Vec<u32> = committed.tokens.iter().map(|token| token.id).collect();
                write(writer.push(&ids));
                clock.commit();
            }
            Some(Event::Finished(finished)) => {
                write(writer.finish());
                let usage = finished.usage;
                return Ok(clock.sample(answer, usage.completion_tokens, usage.canvases, usage.steps));
            }
            Some(Event::Failed(error)) => return Err(error.into()),
            None => return Err(CliError::EngineStopped),
        }
    }
}

/// The question as a job, and how its answer is to be read.
fn job(text: &Text, sampler: Sampler, question: &Question) -> Result<(Job, Opening, Dialect), CliError> {
    let (prompt, dialect) = match &question.said {
        Said::Chat(messages) => {
            let messages = messages.iter().map(|(role, text)| Message::new(*role, text.clone())).collect();
            let chat = Chat { messages, ..Chat::default() };
            (text.render(&chat).map_err(CliError::Prompt)?, Dialect::ChatWithoutTools)
        }
        Said::Text(prompt) => (Prompt::plain(text.encode(prompt).map_err(CliError::Prompt)?), Dialect::Raw),
    };
    let mut sampler = question.effort.map_or(sampler, |effort| effort.apply(sampler));
    sampler.max_steps = question.steps.unwrap_or(sampler.max_steps);
    let gate = text.gate(prompt.opening, dialect, Rules::default());
    let choice = Choice { seed: question.seed, stream: 0, gate, structure: None };
    let job = Job::plain(prompt.ids, vec![choice], question.max_tokens, sampler);
    Ok((Job { resume_points: prompt.resume_points, ..job }, prompt.opening, dialect))
}

async fn over_http(http: &Http, model: &str, question: &Question) -> Result<Sample, CliError> {
    let mut body = serde_json::json!({
        "model": model, "seed": question.seed, "max_tokens": question.max_tokens,
        "stream": true, "stream_options": {"include_usage": true},
    });
    let (path, text) = match &question.said {
        Said::Chat(messages) => {
            let message = |(role, text): &(Role, String)| serde_json::json!({"role": role.as_str(), "content": text});
            body["messages"] = messages.iter().map(message).collect();
            ("/v1/chat/completions", "/choices/0/delta/content")
        }
        Said::Text(prompt) => {
            body["prompt"] = prompt.as_str().into();
            ("/v1/completions", "/choices/0/text")
        }
    };
    if let Some(effort) = question.effort {
        body["diffusion"]["effort"] = effort.word().into();
    }
    if let Some(steps) = question.steps {
        body["diffusion"]["max_denoising_steps"] = steps.into();
    }
    let mut clock = Clock::new(Instant::now());
    let (mut answer, mut usage, mut failure) = (String::new(), serde_json::Value::Null, None);
    http.stream(path, &body.to_string(), |event| {
        if let Some(error) = event.get("error") {
            failure = Some(error.to_string());
        }
        let text = event.pointer(text).and_then(serde_json::Value::as_str).unwrap_or_default();
        if !text.is_empty() {
            answer.push_str(text);
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
    let (tokens, canvases) = (number("/completion_tokens")?, number("/diffusion/canvases")?);
    Ok(clock.sample(answer, tokens, canvases, number("/diffusion/steps")?))
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

    fn sample(self, text: String, tokens: usize, canvases: usize, steps: usize) -> Sample {
        Sample { text, first_text: self.first_text, commits: self.commits, tokens, canvases, steps }
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

    #[test]
    fn levels_are_read_from_prometheus_text() {
        let text = "canvasd_requests_waiting 2\ncanvasd_choices_running 1\ncanvasd_kv_used_bytes 64\n\
                    canvasd_kv_cached_bytes 32\nprocess_resident_memory_bytes 1048576\n";
        let levels = Levels::read(text);
        assert_eq!(levels, Levels { waiting: 2.0, running: 1.0, kv_used: 64.0, kept: 32, resident: 1 << 20 });
        assert!(!levels.is_idle() && Levels::read("").is_idle());
    }
}

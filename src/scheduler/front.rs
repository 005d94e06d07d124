//! Where requests come in: checks them against the budget, bounds the queue, and hands them to the engine.
//!
//! Runs on the callers' threads and shares nothing with the engine's but an inbox and a few counters, so that
//! submitting never waits for a pass.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::job::{Drafts, Job, Refusal};
use super::metrics::{Metrics, Outcome};
use super::reader::{Outlet, Reader, pair};
use super::settings::{Budget, Settings, SlotBound};
use crate::pass::{CANDIDATES, Draw, Limits};

/// Choices that may wait for each request that the queue has room for: a choice takes memory while it waits. The request
/// that goes beyond is still taken whole.
const CHOICES_PER_REQUEST: usize = 8;

/// Whether requests are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum State {
    /// Requests are taken.
    Ready,
    /// Running requests are finished, new ones refused.
    Draining,
    /// The engine is gone: after draining, or after an internal error.
    Stopped,
}

/// The receiving ends of a submitted job.
#[derive(Debug)]
pub struct Ticket {
    /// One reader per choice, in index order. Dropping one cancels that choice at the next pass.
    pub choices: Vec<Reader>,
}

/// A job that has passed the checks, on its way to the engine.
pub struct Submission {
    pub(super) job: Job,
    pub(super) submitted: Instant,
    pub(super) outlets: Vec<Outlet>,
    pub(super) places: Vec<Place>,
}

/// A choice's place in the queue; free again when it is dropped.
pub(super) struct Place(Arc<AtomicUsize>);

impl Place {
    fn new(taken: &Arc<AtomicUsize>) -> Place {
        taken.fetch_add(1, Ordering::AcqRel);
        Place(taken.clone())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Wakes the engine and counts what it should look at.
#[derive(Debug, Default)]
pub(super) struct Bell {
    inbox: Mutex<Inbox>,
    condition: Condvar,
    /// Readers dropped so far.
    cancelled: AtomicUsize,
}

#[derive(Default)]
struct Inbox {
    arrivals: Vec<Submission>,
    rung: bool,
    closed: bool,
}

impl std::fmt::Debug for Inbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inbox").field("arrivals", &self.arrivals.len()).finish_non_exhaustive()
    }
}

impl Bell {
    /// Nothing in the inbox can be left half done, so a poisoned lock is as good as any.
    fn inbox(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn ring(&self) {
        self.inbox().rung = true;
        self.condition.notify_one();
    }

    pub(super) fn cancelled(&self) {
        self.cancelled.fetch_add(1, Ordering::AcqRel);
        self.ring();
    }

    pub(super) fn cancellations(&self) -> usize {
        self.cancelled.load(Ordering::Acquire)
    }

    /// What has arrived, without waiting.
    pub(super) fn take(&self) -> Vec<Submission> {
        let mut inbox = self.inbox();
        inbox.rung = false;
        std::mem::take(&mut inbox.arrivals)
    }

    /// Whether nothing has arrived since [`Bell::take`].
    pub(super) fn is_empty(&self) -> bool {
        self.inbox().arrivals.is_empty()
    }

    /// Waits until something arrives, somebody rings, or `until` has come.
    pub(super) fn wait(&self, until: Option<Instant>) {
        let mut inbox = self.inbox();
        while !inbox.rung && inbox.arrivals.is_empty() {
            let Some(until) = until else {
                inbox = self.condition.wait(inbox).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            let Some(left) = until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) else {
                return;
            };
            inbox = self.condition.wait_timeout(inbox, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Refuses everything from now on and returns what had arrived.
    pub(super) fn close(&self) -> Vec<Submission> {
        let mut inbox = self.inbox();
        inbox.closed = true;
        std::mem::take(&mut inbox.arrivals)
    }
}

/// Mean time between two admissions while somebody waits, in microseconds; 0 while unknown.
#[derive(Debug, Default)]
pub(super) struct Pace(AtomicU64);

impl Pace {
    /// Takes in the time between an admission and the one before.
    pub(super) fn note(&self, interval: Duration) {
        let new = interval.as_micros().min(u128::from(u32::MAX)) as u64;
        let mean = self.0.load(Ordering::Relaxed);
        let mean = if mean == 0 { new } else { (7 * mean + new) / 8 };
        self.0.store(mean.max(1), Ordering::Relaxed);
    }

    /// How long so many admissions take; no time while nothing is known.
    fn time_for(&self, admissions: usize) -> Duration {
        Duration::from_micros(self.0.load(Ordering::Relaxed).saturating_mul(admissions as u64))
    }
}

/// The callers' side of the engine.
pub struct Front {
    budget: Budget,
    queue: usize,
    unread_canvases: usize,
    bell: Arc<Bell>,
    /// Requests taken and not yet admitted.
    queued: AtomicUsize,
    /// Choices that have not been admitted: those of these requests, and further ones of admitted requests.
    queued_choices: Arc<AtomicUsize>,
    /// How fast requests leave the queue, and how fast choices do.
    request_pace: Pace,
    choice_pace: Pace,
    state: watch::Sender<State>,
    metrics: Metrics,
}

impl Front {
    pub(super) fn new(budget: Budget, settings: &Settings) -> Self {
        let metrics = Metrics::new(&budget);
        Front {
            budget,
            queue: settings.queue,
            unread_canvases: settings.unread_canvases,
            bell: Arc::default(),
            queued: AtomicUsize::new(0),
            queued_choices: Arc::default(),
            request_pace: Pace::default(),
            choice_pace: Pace::default(),
            state: watch::Sender::new(State::Ready),
            metrics,
        }
    }

    /// What the model is, with the context cut to what the memory can hold for one request.
    pub fn limits(&self) -> &Limits {
        &self.budget.limits
    }

    /// The model's own context, of which [`Front::limits`] may hold less.
    pub fn model_context(&self) -> usize {
        self.budget.model_context
    }

    /// Why there are as many slots as there are.
    pub(super) fn slot_bound(&self) -> SlotBound {
        self.budget.slot_bound
    }

    pub(super) fn bell(&self) -> &Bell {
        &self.bell
    }

    pub(super) fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Metrics as OpenMetrics text.
    pub(super) fn metrics_text(&self) -> String {
        self.metrics.waiting(self.queued(), self.queued_choices());
        self.metrics.text()
    }

    /// Whether requests are taken.
    pub fn state(&self) -> State {
        *self.state.borrow()
    }

    pub(super) fn watch(&self) -> watch::Receiver<State> {
        self.state.subscribe()
    }

    /// States only follow each other in their order.
    pub(super) fn advance(&self, state: State) {
        self.state.send_if_modified(|now| {
            let forward = (*now as u8) < (state as u8);
            if forward {
                *now = state;
            }
            forward
        });
    }

    /// Requests that wait for admission.
    pub fn queued(&self) -> usize {
        self.queued.load(Ordering::Relaxed)
    }

    /// Choices that wait for their first admission.
    pub(super) fn queued_choices(&self) -> usize {
        self.queued_choices.load(Ordering::Acquire)
    }

    /// A request has left the queue; `interval` is the time since the one before if somebody waited all the while.
    pub(super) fn left_queue(&self, interval: Option<Duration>) {
        self.queued.fetch_sub(1, Ordering::AcqRel);
        if let Some(interval) = interval {
            self.request_pace.note(interval);
        }
    }

    pub(super) fn choice_pace(&self) -> &Pace {
        &self.choice_pace
    }

    /// Choices that may wait when another request is taken.
    fn most_choices(&self) -> usize {
        self.queue.saturating_mul(CHOICES_PER_REQUEST)
    }

    /// Jobs of so many choices each that an empty queue takes, whatever runs.
    pub fn most_jobs(&self, choices: usize) -> usize {
        self.queue.min(self.most_choices().div_ceil(choices.max(1)))
    }

    /// Whether a job would be taken now, whatever it is: for callers to whom it is work to make one.
    pub fn check_open(&self) -> Result<(), Refusal> {
        let (queued, choices) = (self.queued(), self.queued_choices());
        let room = queued < self.queue && choices < self.most_choices();
        let open = self.check_state().and_then(|()| if room { Ok(()) } else { Err(self.full(queued, choices)) });
        self.counted(open)
    }

    /// Checks a job and takes it into the queue. Never blocks.
    pub fn accept(&self, job: Job, now: Instant) -> Result<(Submission, Ticket), Refusal> {
        self.counted(self.try_accept(job, now))
    }

    /// Takes a refusal into the figures.
    fn counted<T>(&self, result: Result<T, Refusal>) -> Result<T, Refusal> {
        if let Err(refusal) = &result {
            self.metrics.request(match refusal {
                Refusal::QueueFull { .. } => Outcome::QueueFull,
                Refusal::NeverFits { .. } | Refusal::Invalid(_) => Outcome::Refused,
                Refusal::Draining | Refusal::Stopped => Outcome::Unavailable,
            });
        }
        result
    }

    fn check_state(&self) -> Result<(), Refusal> {
        match self.state() {
            State::Ready => Ok(()),
            State::Draining => Err(Refusal::Draining),
            State::Stopped => Err(Refusal::Stopped),
        }
    }

    fn full(&self, queued: usize, choices: usize) -> Refusal {
        Refusal::QueueFull { queued, choices, retry_after: self.retry_after(queued, choices) }
    }

    fn try_accept(&self, job: Job, now: Instant) -> Result<(Submission, Ticket), Refusal> {
        self.check_state()?;
        check(&job, &self.budget.limits)?;
        let choices = self.queued_choices();
        let room = choices < self.most_choices();
        let place = |queued| (room && queued < self.queue).then_some(queued + 1);
        if let Err(queued) = self.queued.fetch_update(Ordering::AcqRel, Ordering::Relaxed, place) {
            return Err(self.full(queued, choices));
        }
        let ends = job.choices.iter().map(|_| pair(self.unread_canvases, self.bell.clone()));
        let (outlets, choices) = ends.unzip();
        let places = job.choices.iter().map(|_| Place::new(&self.queued_choices)).collect();
        Ok((Submission { job, submitted: now, outlets, places }, Ticket { choices }))
    }

    /// Takes the jobs of one request, all or none, and hands them to the engine's thread with no other's between them.
    pub(super) fn submit(&self, jobs: Vec<Job>, now: Instant) -> Result<Vec<Ticket>, Refusal> {
        let (mut submissions, mut tickets) = (Vec::with_capacity(jobs.len()), Vec::with_capacity(jobs.len()));
        for job in jobs {
            match self.accept(job, now) {
                Ok((submission, ticket)) => {
                    submissions.push(submission);
                    tickets.push(ticket);
                }
                Err(refusal) => {
                    submissions.iter().for_each(|_| self.left_queue(None));
                    return Err(refusal);
                }
            }
        }
        self.send(submissions)?;
        Ok(tickets)
    }

    fn send(&self, submissions: Vec<Submission>) -> Result<(), Refusal> {
        let mut inbox = self.bell.inbox();
        if inbox.closed {
            submissions.iter().for_each(|_| self.left_queue(None));
            return Err(Refusal::Stopped);
        }
        inbox.arrivals.extend(submissions);
        drop(inbox);
        self.bell.condition.notify_one();
        Ok(())
    }

    /// About when a place in the queue will be free, in whole seconds: when a tenth of those who wait beyond a bound have
    /// been admitted, at the rate of late; of choices, when they are below theirs again. One second while nothing is known.
    fn retry_after(&self, queued: usize, choices: usize) -> Duration {
        let mut wait = Duration::ZERO;
        if queued >= self.queue {
            wait = self.request_pace.time_for(queued.div_ceil(10));
        }
        if let Some(beyond) = choices.checked_sub(self.most_choices()) {
            wait = wait.max(self.choice_pace.time_for(choices.div_ceil(10).max(beyond + 1)));
        }
        Duration::from_secs((wait.as_secs_f64().ceil() as u64).clamp(1, 600))
    }
}

/// What can be said of a job without knowing what else runs.
fn check(job: &Job, limits: &Limits) -> Result<(), Refusal> {
    let invalid = |what: &str| Err(Refusal::Invalid(what.to_owned()));
    let vocabulary = limits.vocabulary as u64;
    if job.prompt.is_empty() {
        return invalid("the prompt is empty");
    }
    if let Some(token) = job.prompt.iter().find(|&&token| u64::from(token) >= vocabulary) {
        return Err(Refusal::Invalid(format!("token {token} of the prompt is beyond the vocabulary of {vocabulary}")));
    }
    if job.choices.is_empty() {
        return invalid("at least one choice must be asked for");
    }
    if job.max_tokens == 0 {
        return invalid("max_tokens must be at least 1");
    }
    job.sampler.validate().map_err(|error| Refusal::Invalid(error.to_string()))?;
    if let Draw::Scaled { temperature, top_p } = job.draw
        && !(temperature > 0.0 && temperature.is_finite() && top_p > 0.0 && top_p <= 1.0)
    {
        return invalid("a scaled draw needs a finite temperature above 0 and 0 < top_p <= 1");
    }
    let ascending = job.bias.windows(2).all(|pair| pair[0].0 < pair[1].0);
    let known = job.bias.last().is_none_or(|last| u64::from(last.0) < vocabulary);
    if !ascending || !known || job.bias.iter().any(|bias| !bias.1.is_finite()) {
        return invalid("biases must be finite, for known tokens, in ascending order");
    }
    if !(job.penalties.presence.is_finite() && job.penalties.frequency.is_finite()) {
        return invalid("penalties must be finite");
    }
    if usize::from(job.top_k) > CANDIDATES {
        return invalid(&format!("at most {CANDIDATES} candidates can be recorded per token"));
    }
    if job.drafts == Drafts::Every(0) {
        return invalid("drafts are wanted after every n-th step, n at least 1");
    }
    let points = &job.resume_points;
    if points.windows(2).any(|pair| pair[0] > pair[1]) || points.last().is_some_and(|&last| last > job.prompt.len()) {
        return invalid("resume points must ascend and lie within the prompt");
    }
    let needed = job.prompt.len() + limits.canvas;
    if needed > limits.context {
        return Err(Refusal::NeverFits {
            what: "the context in tokens, prompt and one canvas together",
            needed: needed as u64,
            available: limits.context as u64,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::job::{Choice, CommitGate, Verdict};
    use super::super::settings::tests::limits;
    use super::*;
    use crate::diffusion::Sampler;

    struct Endless;

    impl CommitGate for Endless {
        fn commit(&mut self, _: &[u32]) -> Verdict {
            Verdict::Continue
        }
    }

    /// A job whose `max_tokens` tells it apart.
    fn job(max_tokens: usize) -> Job {
        let choice = Choice { seed: 0, stream: 0, gate: Box::new(Endless), structure: None };
        Job::plain(vec![1, 2, 3], vec![choice], max_tokens, Sampler::default())
    }

    fn front(queue: usize) -> Front {
        let settings = Settings { queue, ..Settings::default() };
        Front::new(Budget::new(&limits(), &settings).expect("fits"), &settings)
    }

    /// The order of service follows from the order of arrival, so nobody comes in between.
    #[test]
    fn the_jobs_of_a_request_arrive_together() {
        let front = front(10_000);
        std::thread::scope(|scope| {
            for thread in 0..2 {
                let front = &front;
                scope.spawn(move || {
                    for request in 0..500 {
                        let jobs = (0..3).map(|_| job(1 + 1000 * thread + request)).collect();
                        front.submit(jobs, Instant::now()).expect("taken");
                    }
                });
            }
        });
        let arrived: Vec<usize> = front.bell().take().iter().map(|submission| submission.job.max_tokens).collect();
        assert_eq!(arrived.len(), 3000);
        assert!(arrived.chunks(3).all(|jobs| jobs.iter().all(|job| *job == jobs[0])));
    }

    #[test]
    fn a_request_is_taken_whole_or_leaves_nothing_behind() {
        let front = front(3);
        let submit = |jobs: Vec<Job>| front.submit(jobs, Instant::now());
        assert!(matches!(submit((0..4).map(|_| job(8)).collect()), Err(Refusal::QueueFull { queued: 3, .. })));
        assert!(matches!(submit(vec![job(8), job(0)]), Err(Refusal::Invalid(_))));
        assert_eq!((front.queued(), front.queued_choices()), (0, 0));
        assert!(front.bell().is_empty());
        let tickets = submit((0..3).map(|_| job(8)).collect()).expect("there is room again");
        assert_eq!((tickets.len(), front.queued(), front.queued_choices()), (3, 3, 3));
        drop(front.bell().close());
        front.queued.store(0, Ordering::Relaxed);
        assert!(matches!(submit(vec![job(8), job(8)]), Err(Refusal::Stopped)));
        assert_eq!(front.queued(), 0);
    }
}

//! Where requests come in: checks them against the budget, bounds the queue, and hands them to the engine.
//!
//! Runs on the callers' threads and shares nothing with the engine's but an inbox and a few counters, so that
//! submitting never waits for a pass.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::job::{Drafts, Job, Refusal};
use super::metrics::{Metrics, Outcome};
use super::pace::Pace;
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

    /// Whether so many jobs of one request would be taken now, whatever they are: for callers to whom it is work to make
    /// them.
    pub fn check_open(&self, jobs: usize) -> Result<(), Refusal> {
        let (queued, choices) = (self.queued(), self.queued_choices());
        let room = queued + jobs <= self.queue && choices < self.most_choices();
        let open =
            self.check_state().and_then(|()| if room { Ok(()) } else { Err(self.full((jobs, 0), queued, choices)) });
        self.counted(jobs, open)
    }

    /// Checks a job and takes it into the queue. Never blocks.
    pub fn accept(&self, job: Job, now: Instant) -> Result<(Submission, Ticket), Refusal> {
        self.counted(1, self.take_places(std::slice::from_ref(&job)))?;
        Ok(self.enter(job, now))
    }

    /// Takes the refusal of so many jobs into the figures.
    fn counted<T>(&self, jobs: usize, result: Result<T, Refusal>) -> Result<T, Refusal> {
        if let Err(refusal) = &result {
            let outcome = match refusal {
                Refusal::QueueFull { .. } => Outcome::QueueFull,
                Refusal::NeverFits { .. } | Refusal::Invalid(_) => Outcome::Refused,
                Refusal::Draining | Refusal::Stopped => Outcome::Unavailable,
            };
            (0..jobs).for_each(|_| self.metrics.request(outcome));
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

    /// The refusal of so many jobs with so many choices before the last one's.
    fn full(&self, (jobs, ahead): (usize, usize), queued: usize, choices: usize) -> Refusal {
        Refusal::QueueFull { jobs, queued, choices, retry_after: self.retry_after((jobs, ahead), queued, choices) }
    }

    /// Checks the jobs of one request and takes their places in the queue, all at once: what is refused was never seen
    /// by others.
    fn take_places(&self, jobs: &[Job]) -> Result<(), Refusal> {
        self.check_state()?;
        jobs.iter().try_for_each(|job| check(job, &self.budget.limits))?;
        let choices = self.queued_choices();
        // What the last one brings may go beyond.
        let ahead: usize = jobs.iter().rev().skip(1).map(|job| job.choices.len()).sum();
        let room = choices + ahead < self.most_choices();
        let places = |queued| Some(queued + jobs.len()).filter(|&all| room && all <= self.queue);
        match self.queued.fetch_update(Ordering::AcqRel, Ordering::Relaxed, places) {
            Ok(_) => Ok(()),
            Err(queued) => Err(self.full((jobs.len(), ahead), queued, choices)),
        }
    }

    /// Makes a job that has its place ready for the engine.
    fn enter(&self, job: Job, now: Instant) -> (Submission, Ticket) {
        let ends = job.choices.iter().map(|_| pair(self.unread_canvases, self.bell.clone()));
        let (outlets, choices) = ends.unzip();
        let places = job.choices.iter().map(|_| Place::new(&self.queued_choices)).collect();
        (Submission { job, submitted: now, outlets, places }, Ticket { choices })
    }

    /// Takes the jobs of one request, all or none, and hands them to the engine's thread with no other's between them.
    pub(super) fn submit(&self, jobs: Vec<Job>, now: Instant) -> Result<Vec<Ticket>, Refusal> {
        let count = jobs.len();
        self.counted(count, self.take_places(&jobs))?;
        let (submissions, tickets) = jobs.into_iter().map(|job| self.enter(job, now)).unzip();
        self.counted(count, self.send(submissions))?;
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

    /// About when so many jobs will have places in the queue, in whole seconds: when a tenth of those who wait beyond a
    /// bound have been admitted, and as many as are in the way, at the rate of late; of choices, when they are below their
    /// bound again. One second while nothing is known.
    fn retry_after(&self, (jobs, ahead): (usize, usize), queued: usize, choices: usize) -> Duration {
        let mut wait = Duration::ZERO;
        let in_the_way = (queued + jobs).saturating_sub(self.queue);
        if in_the_way > 0 {
            wait = self.request_pace.time_for(queued.div_ceil(10).max(in_the_way));
        }
        if let Some(beyond) = (choices + ahead).checked_sub(self.most_choices()) {
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

    /// Its numbers are of those who wait, and each prompt of an array is a request in the figures.
    #[test]
    fn an_array_that_finds_no_room_is_refused_as_one() {
        let front = front(3);
        let _waits = front.submit(vec![job(8)], Instant::now()).expect("taken");
        let refusal = front.submit(vec![job(8), job(8), job(8)], Instant::now()).expect_err("no room");
        let told = "the queue has no room for 3 prompts together (1 requests, 1 choices wait); try again in about 1 s";
        assert_eq!(refusal.to_string(), told);
        assert_eq!(front.check_open(3), Err(refusal));
        assert_eq!(front.check_open(2), Ok(()));
        let metrics = front.metrics_text();
        assert!(metrics.contains("canvasd_requests_total{outcome=\"queue_full\"} 6\n"), "{metrics}");
    }

    #[test]
    fn a_request_is_taken_whole_or_leaves_nothing_behind() {
        let front = front(3);
        let submit = |jobs: Vec<Job>| front.submit(jobs, Instant::now());
        assert!(matches!(
            submit((0..4).map(|_| job(8)).collect()),
            Err(Refusal::QueueFull { jobs: 4, queued: 0, choices: 0, .. })
        ));
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

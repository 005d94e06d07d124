//! The thread that owns the model: a clock and a loop around the state machine.
//!
//! An error of the model fails the requests it concerns. A panic of the model ends the engine: its state can no longer
//! be trusted, so every request is told, the state becomes [`State::Stopped`], and the process is expected to exit with
//! an error and to be started anew by whoever runs it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::core::Core;
use super::front::{Front, State, Ticket};
use super::job::{Job, JobError, Refusal};
use super::settings::{Settings, SlotBound, StartError};
use crate::pass::{Denoiser, EngineError, Limits};

/// A running engine. Dropping it stops it: running requests are told, and the thread is waited for.
pub struct Engine {
    handle: Handle,
    orders: Arc<Orders>,
    thread: Option<JoinHandle<()>>,
}

/// What the owner wants of the thread.
#[derive(Default)]
struct Orders {
    stop: AtomicBool,
    /// When draining ends, if it has begun.
    drained_by: Mutex<Option<Instant>>,
}

impl Orders {
    fn drained_by(&self) -> Option<Instant> {
        *self.drained_by.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The way to the engine for everybody else; cheap to clone.
#[derive(Clone)]
pub struct Handle {
    front: Arc<Front>,
}

impl Engine {
    /// Lets the model reserve its memory and starts the engine's thread.
    pub fn start(mut denoiser: Box<dyn Denoiser>, settings: Settings) -> Result<Engine, StartError> {
        let (core, capacity) = Core::new(denoiser.limits(), &settings, Instant::now())?;
        if capacity.slots < settings.max_running {
            warn_of_slots(core.front().slot_bound(), capacity.slots, settings.max_running);
        }
        let front = core.front();
        let (held, whole) = (front.limits().context, front.model_context());
        if held < whole {
            tracing::warn!("memory holds texts of {held} tokens, not the model's {whole}; raise kv_memory");
        }
        denoiser.reserve(capacity)?;
        let orders = Arc::new(Orders::default());
        let thread = std::thread::Builder::new().name("engine".into()).spawn({
            let (front, orders) = (front.clone(), orders.clone());
            move || run(denoiser, core, &front, &orders)
        });
        let thread = thread.map_err(|error| StartError::Thread(error.to_string()))?;
        Ok(Engine { handle: Handle { front }, orders, thread: Some(thread) })
    }

    /// The way to the engine.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Refuses new requests, lets the others finish within `grace`, tells those that have not, and waits for the end. No
    /// pass is begun that would most likely end later.
    pub async fn drain(mut self, grace: Duration) {
        let until = Instant::now() + grace;
        *self.orders.drained_by.lock().unwrap_or_else(PoisonError::into_inner) = Some(until);
        self.handle.front.advance(State::Draining);
        self.handle.front.bell().ring();
        let mut state = self.handle.watch();
        // The sender lives as long as the handle, so waiting ends with the state only.
        let _ = state.wait_for(|state| *state == State::Stopped).await;
        self.join();
    }

    fn join(&mut self) {
        if let Some(thread) = self.thread.take() {
            // A panic of the thread has been reported by the thread itself.
            let _ = thread.join();
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.orders.stop.store(true, Ordering::Release);
        self.handle.front.bell().ring();
        self.join();
    }
}

impl Handle {
    /// Hands in a request of one job. Never blocks: a job that cannot be taken is refused at once.
    pub fn submit(&self, job: Job) -> Result<Ticket, Refusal> {
        let tickets = self.submit_all(vec![job])?;
        Ok(Ticket { choices: tickets.into_iter().flat_map(|ticket| ticket.choices).collect() })
    }

    /// Hands in the jobs of one request, in their order: all are taken, or none. Never blocks.
    pub fn submit_all(&self, jobs: Vec<Job>) -> Result<Vec<Ticket>, Refusal> {
        self.front.submit(jobs, Instant::now())
    }

    /// Whether so many jobs of one request would be taken now, whatever they are: for callers to whom it is work to make
    /// them.
    pub fn check_open(&self, jobs: usize) -> Result<(), Refusal> {
        self.front.check_open(jobs)
    }

    /// What the model is, with the context cut to what the memory can hold for one request.
    pub fn limits(&self) -> &Limits {
        self.front.limits()
    }

    /// The model's own context, of which [`Handle::limits`] may hold less.
    pub fn model_context(&self) -> usize {
        self.front.model_context()
    }

    /// Jobs of so many choices each that an empty queue takes, whatever runs.
    pub fn most_jobs(&self, choices: usize) -> usize {
        self.front.most_jobs(choices)
    }

    /// Whether requests are taken.
    pub fn state(&self) -> State {
        self.front.state()
    }

    /// Follows [`Handle::state`]; a process should exit when it becomes [`State::Stopped`] unasked.
    pub fn watch(&self) -> watch::Receiver<State> {
        self.front.watch()
    }

    /// Metrics as OpenMetrics text (`application/openmetrics-text; version=1.0.0; charset=utf-8`).
    pub fn metrics(&self) -> String {
        self.front.metrics_text()
    }
}

/// Says why fewer canvases run at once than the operator wants, and what to do about it.
fn warn_of_slots(bound: SlotBound, slots: usize, wanted: usize) {
    match bound {
        SlotBound::MaxRunning => {}
        SlotBound::RowsPerPass(rows) => tracing::warn!(
            "max_rows_per_pass = {rows} has room for {slots} canvases at once, not for max_running = {wanted}: raise the one, \
             or lower the other"
        ),
        SlotBound::WorkingMemory => {
            tracing::warn!("there is working memory for {slots} canvases at once, not for {wanted}")
        }
    }
}

fn run(mut denoiser: Box<dyn Denoiser>, mut core: Core, front: &Front, orders: &Orders) {
    let end = catch_unwind(AssertUnwindSafe(|| pass_loop(denoiser.as_mut(), &mut core, front, orders)));
    let error = match end {
        Ok(error) => error,
        Err(panic) => {
            tracing::error!("the engine panicked: {}", message(panic.as_ref()));
            JobError::Stopped
        }
    };
    front.advance(State::Draining);
    let late = front.bell().close();
    // After a panic the books may be torn; whatever cannot be told in order is told when it is dropped.
    let told = catch_unwind(AssertUnwindSafe(|| {
        late.into_iter().for_each(|submission| core.arrive(submission));
        core.stop(&error, Instant::now());
    }));
    drop(core);
    drop(denoiser);
    if told.is_err() {
        tracing::error!("the engine could not end in order");
    }
    front.advance(State::Stopped);
}

/// Runs passes until the engine is to end, and says what those who still wait are told.
fn pass_loop(denoiser: &mut dyn Denoiser, core: &mut Core, front: &Front, orders: &Orders) -> JobError {
    loop {
        front.bell().take().into_iter().for_each(|submission| core.arrive(submission));
        let now = Instant::now();
        let drained_by = orders.drained_by();
        if orders.stop.load(Ordering::Acquire)
            || drained_by.is_some_and(|until| core.horizon(now) >= until || core.is_idle() && front.bell().is_empty())
        {
            return JobError::ShutDown;
        }
        if core.plan(now) {
            match catch_unwind(AssertUnwindSafe(|| denoiser.run(core.pass()))) {
                Ok(answer) => core.apply(answer, Instant::now()),
                Err(panic) => {
                    let why = message(panic.as_ref());
                    tracing::error!("the model panicked: {why}");
                    core.apply(Err(EngineError::Device(format!("it panicked: {why}"))), Instant::now());
                    return JobError::Stopped;
                }
            }
        } else if drained_by.is_none() || !core.is_idle() {
            let wake = core.wake_at().into_iter().chain(drained_by).min();
            front.bell().wait(wake);
        }
    }
}

fn message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".to_owned())
}

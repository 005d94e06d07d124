//! A small world to play schedules in: the state machine, the scripted model and a clock that only passes move.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use canvasd::pass::Denoiser;
use canvasd::scheduler::{
    Choice, ChoiceUsage, CommitGate, Committed, Core, Event, FinishReason, Finished, Front, Job, JobError, Reader,
    Refusal, Sampler, Settings, Structure, StructureError, Ticket, Verdict,
};

use crate::support::{Log, Scripted, limits};

pub struct World {
    pub core: Core,
    pub front: Arc<Front>,
    pub model: Scripted,
    pub now: Instant,
    pub log: Arc<Mutex<Log>>,
    /// What a pass costs: this much, and this much per row.
    pub cost: (Duration, Duration),
    pub start: Instant,
}

/// A gate that panics.
pub struct Broken;

impl CommitGate for Broken {
    fn commit(&mut self, _: &[u32]) -> Verdict {
        panic!("scripted");
    }
}

/// Roomy settings for the small model.
pub fn settings() -> Settings {
    Settings { encode_rows: 16, max_running: 8, queue: 64, kv_bytes: 100_000, ..Settings::default() }
}

/// The same with room for one choice at a time.
pub fn one_slot() -> Settings {
    Settings { max_running: 1, ..settings() }
}

impl World {
    pub fn new(settings: Settings) -> World {
        World::of(Scripted::new(limits()), settings)
    }

    pub fn of(mut model: Scripted, settings: Settings) -> World {
        let now = Instant::now();
        let (core, capacity) = Core::new(model.limits(), &settings, now).expect("the settings fit");
        model.reserve(capacity).expect("reserved");
        let (front, log) = (core.front(), model.log());
        World {
            core,
            front,
            model,
            now,
            log,
            cost: (Duration::from_millis(10), Duration::from_micros(100)),
            start: now,
        }
    }

    pub fn submit(&mut self, job: Job) -> Result<Ticket, Refusal> {
        let (submission, ticket) = self.front.accept(job, self.now)?;
        self.core.arrive(submission);
        Ok(ticket)
    }

    /// Runs one pass without checking the books.
    pub fn pass_unchecked(&mut self) {
        if self.core.plan(self.now) {
            let answer = self.model.run(self.core.pass());
            self.now += self.cost.0;
            self.core.apply(answer, self.now);
        }
    }

    /// Runs one pass, or lets time go on to when something will happen; false if nothing will.
    pub fn pass(&mut self) -> bool {
        if self.core.plan(self.now) {
            let rows: usize = self.core.pass().segments.iter().map(|segment| segment.rows()).sum();
            self.audit();
            let answer = self.model.run(self.core.pass());
            self.now += self.cost.0 + self.cost.1 * rows as u32;
            self.core.apply(answer, self.now);
            self.audit();
            return true;
        }
        self.audit();
        match self.core.wake_at() {
            Some(at) if !self.core.is_idle() => {
                assert!(at > self.now, "a wake-up in the past would spin");
                self.now = at;
                true
            }
            _ => false,
        }
    }

    pub fn audit(&self) {
        if let Err(why) = self.core.audit() {
            panic!("the books are wrong: {why}");
        }
        let log = self.log.lock().expect("the log");
        assert!(log.violations.is_empty(), "{:?}", log.violations);
    }

    /// Runs until nothing is left to do, and fails if something is left waiting.
    pub fn finish(&mut self) {
        for _ in 0..100_000 {
            if !self.pass() {
                assert!(self.core.is_idle(), "somebody waits for ever");
                return;
            }
        }
        panic!("no end");
    }

    /// Runs until a story that is read as it comes has ended.
    pub fn until_end(&mut self, story: &mut Story, reader: &mut Reader) {
        story.read(reader);
        while story.end.is_none() {
            assert!(self.pass(), "nothing runs, and the story has no end");
            story.read(reader);
        }
    }

    /// Rows encoded so far.
    pub fn encoded(&self) -> usize {
        self.log.lock().expect("the log").passes.iter().map(|pass| pass.0).sum()
    }
}

/// Ends a text at the first token below `ends`, which belongs to it.
pub struct EndsBelow(pub u32);

impl CommitGate for EndsBelow {
    fn commit(&mut self, tokens: &[u32]) -> Verdict {
        match tokens.iter().position(|&token| token < self.0) {
            Some(at) => Verdict::Finish { keep: at + 1, reason: FinishReason::Stop },
            None => Verdict::Continue,
        }
    }
}

/// A structure: texts without multiples of seven.
pub struct NoSevens;

impl NoSevens {
    pub fn allows(tokens: &[u32]) -> bool {
        !tokens.iter().any(|token| token.is_multiple_of(7))
    }
}

impl Structure for NoSevens {
    fn fits(&mut self, tokens: &[u32]) -> Result<usize, StructureError> {
        Ok(tokens.iter().take_while(|token| !token.is_multiple_of(7)).count())
    }

    fn mend(&mut self, _: &[u32], candidates: &mut dyn Iterator<Item = u32>) -> Result<Vec<u32>, StructureError> {
        let mut candidates = candidates;
        Ok(vec![Iterator::find(&mut candidates, |token| !token.is_multiple_of(7)).unwrap_or(8)])
    }

    fn commit(&mut self, tokens: &[u32]) -> Result<(), StructureError> {
        NoSevens::allows(tokens).then_some(()).ok_or_else(|| StructureError::Astray("a multiple of seven".to_owned()))
    }
}

/// A plain job of one choice that runs to its `max_tokens`.
pub fn job(prompt: &[u32], max_tokens: usize, seed: u64) -> Job {
    jobs(prompt, max_tokens, seed, 1, 0)
}

/// A job of `n` choices whose texts end at a token below `ends`.
pub fn jobs(prompt: &[u32], max_tokens: usize, seed: u64, n: u32, ends: u32) -> Job {
    let choices =
        (0..n).map(|stream| Choice { seed, stream, gate: Box::new(EndsBelow(ends)), structure: None }).collect();
    Job::plain(prompt, choices, max_tokens, Sampler { max_steps: 12, ..Sampler::default() })
}

/// A prompt of `n` tokens that differs from others of another `salt` from the first token on.
pub fn prompt(n: usize, salt: u32) -> Vec<u32> {
    (0..n as u32).map(|i| (salt * 31 + i * 7 + i * i) % 97).collect()
}

/// What became of a choice.
#[derive(Debug, Clone, Default)]
pub struct Story {
    pub canvases: Vec<Committed>,
    pub end: Option<Result<Finished, JobError>>,
}

impl Story {
    /// Takes what is there; the order is checked.
    pub fn read(&mut self, reader: &mut Reader) {
        while let Some(event) = reader.try_next() {
            assert!(self.end.is_none(), "an event after the end: {event:?}");
            match event {
                Event::Committed(committed) => {
                    assert_eq!(committed.canvas, self.canvases.len(), "canvases come in order");
                    self.canvases.push(committed);
                }
                Event::Finished(finished) => self.end = Some(Ok(finished)),
                Event::Failed(error) => self.end = Some(Err(error)),
            }
        }
    }

    pub fn of(reader: &mut Reader) -> Story {
        let mut story = Story::default();
        story.read(reader);
        story
    }

    pub fn tokens(&self) -> Vec<u32> {
        self.canvases.iter().flat_map(|canvas| canvas.tokens.iter().map(|token| token.id)).collect()
    }

    pub fn usage(&self) -> ChoiceUsage {
        self.finished().usage
    }

    pub fn finished(&self) -> Finished {
        match &self.end {
            Some(Ok(finished)) => *finished,
            other => panic!("not finished: {other:?}"),
        }
    }

    pub fn error(&self) -> JobError {
        match &self.end {
            Some(Err(error)) => error.clone(),
            other => panic!("not failed: {other:?}"),
        }
    }
}

/// Stories of all choices of a ticket.
pub fn stories(ticket: &mut Ticket) -> Vec<Story> {
    ticket.choices.iter_mut().map(Story::of).collect()
}

/// What a job gives alone in a roomy world.
pub fn alone(job: Job) -> Vec<Story> {
    let mut world = World::new(settings());
    let mut ticket = world.submit(job).expect("taken");
    let mut all = vec![Story::default(); ticket.choices.len()];
    while !world.core.is_idle() {
        world.pass();
        for (story, reader) in all.iter_mut().zip(&mut ticket.choices) {
            story.read(reader);
        }
    }
    all
}

/// Reads what is there and forgets it.
pub fn discard(reader: &mut Reader) {
    while reader.try_next().is_some() {}
}

//! The scheduler with the checkpoint that ships, in every precision that is served: what a request gets is bit for bit the
//! same alone and in any company, whatever was cached and with any number of threads.

use std::cell::RefCell;
use std::sync::Arc;
use std::time::Instant;

use canvasd::model::DiffusionGemma;
use canvasd::pass::Denoiser;
use canvasd::scheduler::{
    Choice, CommitGate, Core, Drafts, Draw, Event, FinishReason, Job, Penalties, Sampler, Settings, Ticket, Verdict,
};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

#[path = "support/served.rs"]
mod served;

use served::{SERVED, Served};

fn demo(served: Served, threads: usize) -> DiffusionGemma {
    let checkpoint = served.checkpoint();
    DiffusionGemma::load(&checkpoint.config, checkpoint.weights.as_ref(), &served.options(threads)).expect("loads")
}

/// Ends a text at the demo's end of turn.
struct EndOfTurn;

impl CommitGate for EndOfTurn {
    fn commit(&mut self, tokens: &[u32]) -> Verdict {
        match tokens.iter().position(|&token| token == 1 || token == 6) {
            Some(at) => Verdict::Finish { keep: at + 1, reason: FinishReason::Stop },
            None => Verdict::Continue,
        }
    }
}

#[derive(Debug, Clone)]
struct Wanted {
    /// Prompts of the same head begin alike.
    head: u32,
    length: usize,
    seed: u64,
    n: u32,
    max_tokens: usize,
    steps: usize,
}

impl Wanted {
    fn job(&self) -> Job {
        let head = (0..20).map(|i| 30 + (self.head * 101 + i * 7) % 2000);
        let tail = (0..self.length as u32).map(|i| 40 + (self.head * 37 + self.length as u32 * 11 + i * i) % 2000);
        Job {
            prompt: [2].into_iter().chain(head).chain(tail).collect(),
            resume_points: vec![21],
            choices: (0..self.n)
                .map(|stream| Choice { seed: self.seed, stream, gate: Box::new(EndOfTurn), structure: None })
                .collect(),
            choices_before: 0,
            max_tokens: self.max_tokens,
            sampler: Sampler { max_steps: self.steps, ..Sampler::default() },
            draw: Draw::Scaled { temperature: 1.0, top_p: 1.0 },
            bias: Arc::new([]),
            penalties: Penalties::default(),
            top_k: 3,
            timeout: None,
            drafts: Drafts::Off,
        }
    }
}

/// Everything a choice was told, floats as bits.
type Told = Vec<(u32, u32, Vec<(u32, u32)>)>;

fn read(ticket: &mut Ticket, told: &mut [Told]) -> bool {
    let mut ended = true;
    for (reader, told) in ticket.choices.iter_mut().zip(told) {
        let mut end = false;
        while let Some(event) = reader.try_next() {
            match event {
                Event::Committed(committed) => told.extend(committed.tokens.iter().map(|token| {
                    let top = token.top.iter().map(|candidate| (candidate.token, candidate.logit.to_bits())).collect();
                    (token.id, token.logprob.to_bits(), top)
                })),
                Event::Finished(_) => end = true,
                Event::Failed(error) => panic!("{error}"),
            }
        }
        ended &= end;
    }
    ended
}

struct World {
    model: DiffusionGemma,
    core: Core,
}

impl World {
    fn new(served: Served, threads: usize, settings: Settings) -> World {
        let mut model = demo(served, threads);
        let (core, capacity) = Core::new(model.limits(), &settings, Instant::now()).expect("fits");
        model.reserve(capacity).expect("reserved");
        World { model, core }
    }

    fn submit(&mut self, wanted: &Wanted) -> (Ticket, Vec<Told>) {
        let (submission, ticket) = self.core.front().accept(wanted.job(), Instant::now()).expect("taken");
        self.core.arrive(submission);
        (ticket, vec![Told::new(); wanted.n as usize])
    }

    fn pass(&mut self) -> bool {
        let planned = self.core.plan(Instant::now());
        if planned {
            let answer = self.model.run(self.core.pass());
            self.core.apply(answer, Instant::now());
        }
        planned
    }

    fn alone(&mut self, wanted: &Wanted) -> Vec<Told> {
        let (mut ticket, mut told) = self.submit(wanted);
        while self.pass() {}
        read(&mut ticket, &mut told);
        told
    }
}

fn wanted() -> impl Strategy<Value = Wanted> {
    (0u32..2, 0usize..50, 0u64..1000, 1u32..3, 1usize..100, 1usize..4)
        .prop_map(|(head, length, seed, n, max_tokens, steps)| Wanted { head, length, seed, n, max_tokens, steps })
}

fn cases() -> u32 {
    std::env::var("CANVASD_SCHEDULES").ok().and_then(|n| n.parse().ok()).unwrap_or(2)
}

/// Requests with random companions that join at random passes, and some of which leave.
#[test]
fn company_changes_no_bit() {
    SERVED.into_iter().for_each(company_changes_no_bit_of);
}

fn company_changes_no_bit_of(served: Served) {
    let roomy = Settings { kv_bytes: 64 << 20, unread_canvases: 100, ..Settings::default() };
    let lonely = RefCell::new(World::new(served, 1, Settings { prefix_cache_bytes: Some(0), ..roomy.clone() }));
    let crowd = Settings { encode_rows: 64, max_running: 5, ..roomy };
    let crowded = RefCell::new([1, 2].map(|threads| World::new(served, threads, crowd.clone())));
    let plays = proptest::collection::vec((wanted(), 0usize..4, proptest::option::weighted(0.2, 1usize..5)), 2..7);
    let mut runner = TestRunner::new(Config { cases: cases(), failure_persistence: None, ..Config::default() });
    let result = runner.run(&plays, |plays| {
        let expected: Vec<_> = plays.iter().map(|(wanted, ..)| lonely.borrow_mut().alone(wanted)).collect();
        for world in crowded.borrow_mut().iter_mut() {
            let mut open = Vec::new();
            for (index, (wanted, passes, leaves)) in plays.iter().enumerate() {
                let (ticket, told) = world.submit(wanted);
                open.push((index, ticket, told, *leaves));
                for _ in 0..*passes {
                    world.pass();
                    open.iter_mut().for_each(|(_, _, _, leaves)| *leaves = leaves.map(|n| n.saturating_sub(1)));
                    open.retain(|(.., leaves)| *leaves != Some(0));
                }
            }
            while world.pass() {}
            for (index, mut ticket, mut told, _) in open {
                prop_assert!(read(&mut ticket, &mut told), "everybody is told the end");
                prop_assert_eq!(&told, &expected[index]);
            }
            prop_assert_eq!(world.core.audit(), Ok(()));
        }
        Ok(())
    });
    if let Err(error) = result {
        panic!("{served:?}: {error}");
    }
}

/// Streams at once (`CANVASD_STREAMS`, 16 by default), each the same as alone.
#[test]
fn many_streams_at_once_all_finish() {
    SERVED.into_iter().for_each(many_streams_all_finish);
}

fn many_streams_all_finish(served: Served) {
    let streams = std::env::var("CANVASD_STREAMS").ok().and_then(|n| n.parse().ok()).unwrap_or(16);
    let settings =
        Settings { max_running: 256, queue: streams, kv_bytes: 256 << 20, unread_canvases: 100, ..Settings::default() };
    let mut world = World::new(served, 2, settings.clone());
    let mut lonely = World::new(served, 2, settings);
    let make = |i: usize| Wanted { head: i as u32 % 3, length: i % 40, seed: i as u64, n: 1, max_tokens: 30, steps: 2 };
    let begun = Instant::now();
    let mut open: Vec<_> = (0..streams).map(|i| world.submit(&make(i))).collect();
    while world.pass() {}
    println!("{served:?}: {streams} streams in {:?}", begun.elapsed());
    for (i, (ticket, told)) in open.iter_mut().enumerate() {
        assert!(read(ticket, told), "{served:?}: stream {i} has no end");
        if i % 16 == 0 {
            assert_eq!(*told, lonely.alone(&make(i)), "{served:?}");
        }
    }
}

/// Asks once with a prompt whose first `common` tokens others are likely to share; what was told, and how many tokens
/// were found encoded.
fn ask(world: &mut World, prompt: Vec<u32>, common: usize) -> (Told, usize) {
    let wanted = Wanted { head: 0, length: 0, seed: 7, n: 1, max_tokens: 60, steps: 2 };
    let job = Job { prompt: prompt.into(), resume_points: vec![common], ..wanted.job() };
    let (submission, mut ticket) = world.core.front().accept(job, Instant::now()).expect("taken");
    world.core.arrive(submission);
    while world.pass() {}
    let (mut told, mut cached) = (Told::new(), None);
    while let Some(event) = ticket.choices[0].try_next() {
        match event {
            Event::Committed(committed) => {
                told.extend(committed.tokens.iter().map(|token| (token.id, token.logprob.to_bits(), Vec::new())));
            }
            Event::Finished(finished) => cached = Some(finished.usage.cached_tokens),
            Event::Failed(error) => panic!("{error}"),
        }
    }
    (told, cached.expect("finished"))
}

/// A request that resumes behind a common beginning gets, bit for bit, what it gets alone: for beginnings around the
/// window's length and of every length within a page (`CANVASD_THOROUGH=1`; a few of them by default).
#[test]
fn a_common_beginning_changes_no_bit_around_the_window_and_within_a_page() {
    SERVED.into_iter().for_each(a_common_beginning_changes_no_bit_of);
}

fn a_common_beginning_changes_no_bit_of(served: Served) {
    let settings = Settings { kv_bytes: 64 << 20, unread_canvases: 100, ..Settings::default() };
    let mut lonely = World::new(served, 2, Settings { prefix_cache_bytes: Some(0), ..settings.clone() });
    let limits = lonely.model.limits().clone();
    let (window, page) = (limits.window, limits.page_tokens);
    let thorough = std::env::var_os("CANVASD_THOROUGH").is_some();
    let every = if thorough { 1 } else { page / 4 };
    let around = (window - 2..=window + 2).filter(|length| thorough || *length != window - 1);
    let within = (page..=2 * page).step_by(every).chain([2 * page - 1, 2 * page + 1]);
    let mut world = World::new(served, 2, settings);
    for (salt, common) in around.chain(within).enumerate() {
        let text = |n: usize, salt: usize| (0..n).map(move |i| (40 + (salt * 131 + i * i * 7 + i) % 2000) as u32);
        let head: Vec<u32> = [2].into_iter().chain(text(common - 1, salt)).collect();
        let first: Vec<u32> = head.iter().copied().chain(text(5, 900 + salt)).collect();
        let second: Vec<u32> = head.iter().copied().chain(text(9, 1900 + salt)).collect();
        assert_eq!(ask(&mut world, first, common).1, 0, "nothing is shared with those before");
        let (told, cached) = ask(&mut world, second.clone(), common);
        assert_eq!(cached, common / page * page, "a beginning of {common} is resumed at the page before its end");
        assert_eq!(told, ask(&mut lonely, second, common).0, "{served:?}: a beginning of {common}");
        assert_eq!(world.core.audit(), Ok(()));
    }
}

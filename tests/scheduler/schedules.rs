//! Random schedules: arrivals, readers that leave or are slow, faults, deadlines, little memory. After every pass the
//! books are checked; in the end everybody has been served or told, and every text that was finished is the one that
//! its request gets alone.

use std::collections::HashMap;
use std::time::Duration;

use canvasd::pass::{Limits, Segment};
use canvasd::scheduler::{Job, JobError, Settings, Ticket};
use proptest::prelude::*;

use crate::support::{Fault, Scripted, limits};
use crate::world::*;

/// What identifies a job, so that its text alone is computed once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Wanted {
    head: u32,
    common: usize,
    tail: usize,
    n: u32,
    max_tokens: usize,
    seed: u64,
    timeout_ms: Option<u64>,
}

impl Wanted {
    fn job(&self) -> Job {
        let tokens: Vec<u32> =
            prompt(self.common, self.head).into_iter().chain(prompt(self.tail, 50 + self.head)).collect();
        let mut job = jobs(&tokens, self.max_tokens, self.seed, self.n, 2);
        job.resume_points = vec![self.common];
        job.timeout = self.timeout_ms.map(Duration::from_millis);
        if self.is_structured() {
            job.choices.iter_mut().for_each(|choice| choice.structure = Some(Box::new(NoSevens)));
        }
        job
    }

    /// A third of the texts must have a structure.
    fn is_structured(&self) -> bool {
        self.head == 2
    }
}

#[derive(Debug, Clone)]
enum Act {
    Submit(Wanted),
    Passes(usize),
    /// The reader of the n-th open ticket goes away.
    Leave(usize),
    /// The n-th open ticket is read; others only now and then.
    Read(usize),
    ReadAll,
}

fn wanted() -> impl Strategy<Value = Wanted> {
    (0u32..3, 1usize..24, 0usize..14, 1u32..4, 1usize..40, 0u64..3, proptest::option::weighted(0.15, 30u64..600))
        .prop_map(|(head, common, tail, n, max_tokens, seed, timeout_ms)| Wanted {
            head,
            common,
            tail,
            n,
            max_tokens,
            seed,
            timeout_ms,
        })
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        4 => wanted().prop_map(Act::Submit),
        4 => (1usize..6).prop_map(Act::Passes),
        1 => (0usize..8).prop_map(Act::Leave),
        1 => (0usize..8).prop_map(Act::Read),
        2 => Just(Act::ReadAll),
    ];
    proptest::collection::vec(act, 1..24)
}

fn some_settings() -> impl Strategy<Value = Settings> {
    let cache = prop_oneof![Just(Some(0)), Just(Some(700)), Just(None)];
    (1usize..6, 1usize..7, 2_600u64..12_000, cache, 1usize..4, proptest::option::of(20usize..60)).prop_map(
        |(max_running, pages, kv_bytes, prefix_cache_bytes, unread_canvases, max_rows_per_pass)| Settings {
            max_running,
            encode_rows: 4 * pages,
            kv_bytes,
            prefix_cache_bytes,
            unread_canvases,
            max_rows_per_pass,
            queue: 6,
            working_bytes: None,
        },
    )
}

fn texts_alone(memory: &mut HashMap<(Wanted, usize), Vec<Vec<u32>>>, wanted: Wanted, context: usize) -> Vec<Vec<u32>> {
    let untimed = Wanted { timeout_ms: None, ..wanted };
    let compute = || {
        // The context may be cut by memory; a text that ends there ends there alone, too.
        let limits = Limits { context, ..limits() };
        let mut world = World::of(Scripted::new(limits), settings());
        let mut ticket = world.submit(untimed.job()).expect("taken");
        let mut all = vec![Story::default(); ticket.choices.len()];
        while !world.core.is_idle() {
            world.pass();
            for (story, reader) in all.iter_mut().zip(&mut ticket.choices) {
                story.read(reader);
            }
        }
        all.iter().map(Story::tokens).collect()
    };
    memory.entry((untimed, context)).or_insert_with(compute).clone()
}

struct Open {
    wanted: Wanted,
    ticket: Ticket,
    stories: Vec<Story>,
}

impl Open {
    fn read(&mut self) {
        for (story, reader) in self.stories.iter_mut().zip(&mut self.ticket.choices) {
            story.read(reader);
        }
    }
}

fn play(settings: Settings, acts: &[Act], fault_every: Option<usize>) {
    let mut passes = 0;
    let faults = move |pass: &canvasd::pass::Pass| {
        passes += 1;
        match fault_every {
            Some(every) if passes % every == 0 => match passes / every % 3 {
                0 => Fault::Pass,
                1 => Fault::Segment(passes % pass.segments.len()),
                _ if matches!(pass.segments.last(), Some(Segment::Denoise { .. })) => {
                    Fault::NotANumber(pass.segments.len() - 1)
                }
                _ => Fault::None,
            },
            _ => Fault::None,
        }
    };
    let mut world = World::of(Scripted::new(limits()).with_faults(faults), settings);
    let context = world.front.limits().context;
    let mut open: Vec<Open> = Vec::new();
    let mut closed: Vec<Open> = Vec::new();
    for act in acts {
        match act {
            Act::Submit(wanted) => {
                if let Ok(ticket) = world.submit(wanted.job()) {
                    let stories = vec![Story::default(); ticket.choices.len()];
                    open.push(Open { wanted: *wanted, ticket, stories });
                }
            }
            Act::Passes(n) => {
                for _ in 0..*n {
                    world.pass();
                }
            }
            Act::Leave(n) if *n < open.len() => drop(open.remove(*n)),
            Act::Read(n) if *n < open.len() => open[*n].read(),
            Act::Leave(_) | Act::Read(_) => {}
            Act::ReadAll => open.iter_mut().for_each(Open::read),
        }
    }
    for _ in 0..20_000 {
        open.iter_mut().for_each(Open::read);
        if !world.pass() {
            break;
        }
    }
    assert!(world.core.is_idle(), "somebody waits for ever");
    world.audit();
    assert_eq!(world.front.queued(), 0);
    open.iter_mut().for_each(Open::read);
    closed.append(&mut open);
    let mut memory = HashMap::new();
    for done in &closed {
        let alone = texts_alone(&mut memory, done.wanted, context);
        for (story, expected) in done.stories.iter().zip(alone) {
            let got = story.tokens();
            assert!(!done.wanted.is_structured() || NoSevens::allows(&got), "{got:?}");
            match story.end.as_ref().expect("everybody is told the end") {
                Ok(finished) if finished.usage.forced_commits == 0 && done.wanted.timeout_ms.is_none() => {
                    assert_eq!(got, expected);
                }
                // A canvas forced by the deadline is a draft; all before it is the text.
                Ok(finished) if finished.usage.forced_commits == 1 => {
                    let settled = 8 * (story.canvases.len() - 1);
                    assert_eq!(got[..settled], expected[..settled]);
                }
                Ok(_) => assert_eq!(got, expected[..got.len()]),
                Err(JobError::Model(_)) => assert!(fault_every.is_some()),
                Err(JobError::DeadlineExceeded) => assert!(done.wanted.timeout_ms.is_some() && got.is_empty()),
                Err(error @ (JobError::Structure(_) | JobError::ShutDown | JobError::Stopped)) => panic!("{error}"),
            }
            if story.end.as_ref().is_some_and(Result::is_err) {
                assert_eq!(got, expected[..got.len()], "what was committed before an error is right");
            }
        }
    }
}

/// How many schedules to play; `CANVASD_SCHEDULES` asks for more than the default run's few hundred.
fn schedules() -> u32 {
    std::env::var("CANVASD_SCHEDULES").ok().and_then(|n| n.parse().ok()).unwrap_or(400)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: schedules(), max_shrink_iters: 4000, ..ProptestConfig::default() })]

    #[test]
    fn every_schedule_ends_well(settings in some_settings(), acts in acts(), fault_every in proptest::option::weighted(0.3, 3usize..20)) {
        play(settings, &acts, fault_every);
    }
}

//! What is encoded once and used again: by the choices of a request, and by requests with a common beginning.

use canvasd::pass::Limits;
use canvasd::scheduler::{Job, Settings};
use proptest::prelude::*;

use crate::support::{Scripted, limits};
use crate::world::*;

/// A job's choices, each run alone.
fn each_alone(make: impl Fn() -> Job, limits: &Limits) -> Vec<Vec<u32>> {
    let n = make().choices.len();
    (0..n)
        .map(|keep| {
            let mut job = make();
            let mut index = 0;
            job.choices.retain(|_| {
                index += 1;
                index - 1 == keep
            });
            let mut world = World::of(Scripted::new(limits.clone()), settings());
            let mut ticket = world.submit(job).expect("taken");
            let mut story = Story::default();
            while !world.core.is_idle() {
                world.pass();
                story.read(&mut ticket.choices[0]);
            }
            story.tokens()
        })
        .collect()
}

fn run(world: &mut World, job: Job) -> Vec<Story> {
    let mut ticket = world.submit(job).expect("taken");
    let mut all = vec![Story::default(); ticket.choices.len()];
    while all.iter().any(|story| story.end.is_none()) {
        assert!(world.pass());
        for (story, reader) in all.iter_mut().zip(&mut ticket.choices) {
            story.read(reader);
        }
    }
    all
}

#[test]
fn choices_share_one_encode_of_the_prompt() {
    for length in 1..=30 {
        let mut world = World::new(settings());
        let all = run(&mut world, jobs(&prompt(length, 3), 8, 1, 5, 0));
        assert_eq!(world.encoded(), length, "a prompt of {length} is encoded once");
        assert!(all.iter().all(|story| story.tokens().len() == 8));
    }
}

/// At every offset inside a page: a choice that goes on writes behind the prompt and disturbs nobody.
#[test]
fn choices_that_go_on_do_not_write_into_shared_pages() {
    for length in 1..=13 {
        for n in [2, 3] {
            let make = || jobs(&prompt(length, 4), 24, 9, n, 3);
            let mut world = World::new(settings());
            let texts: Vec<_> = run(&mut world, make()).iter().map(Story::tokens).collect();
            assert_eq!(texts, each_alone(make, &limits()), "prompt of {length}, {n} choices");
        }
    }
}

/// Of the page that is partly filled at the prompt's end, each choice but the last encodes its part again, no more.
#[test]
fn going_on_costs_less_than_a_page_more() {
    for length in 8..12 {
        let mut world = World::new(settings());
        run(&mut world, jobs(&prompt(length, 4), 16, 9, 3, 0));
        let again = (length % 4) * 2;
        assert!(world.encoded() <= length + 3 * 8 + again, "{} rows", world.encoded());
        assert!(world.encoded() >= length + 3 * 8);
    }
}

/// Prefixes of every length around the window (6) and every offset in a page (4): exact or declined, never wrong.
#[test]
fn a_common_beginning_is_used_again() {
    for common in 1..=24usize {
        for longer in [0, 1, 3, 9] {
            let head = prompt(common, 5);
            let mut world = World::new(settings());
            let first: Vec<u32> = head.iter().copied().chain(prompt(7, 6)).collect();
            let mut job_one = job(&first, 10, 1);
            job_one.resume_points = vec![common];
            run(&mut world, job_one);
            let second: Vec<u32> = head.iter().copied().chain(prompt(longer, 8)).collect();
            let before = world.encoded();
            let story = &run(&mut world, job(&second, 10, 2))[0];
            assert_eq!(story.tokens(), alone(job(&second, 10, 2))[0].tokens());
            let cached = story.usage().cached_tokens;
            assert_eq!(cached, common / 4 * 4, "the resume point at {common} is used, at the page before it");
            assert_eq!(world.encoded() - before, second.len() - cached + 8, "what is cached is not encoded again");
        }
    }
}

#[test]
fn a_following_turn_resumes_behind_the_committed_canvases() {
    let mut world = World::new(settings());
    let first = prompt(11, 5);
    let story = &run(&mut world, job(&first, 24, 1))[0];
    let turn: Vec<u32> = first.iter().copied().chain(story.tokens()).chain(prompt(6, 9)).collect();
    let answer = &run(&mut world, job(&turn, 8, 2))[0];
    // The prompt and two canvases were encoded: 27 tokens, 24 of them in whole pages.
    assert_eq!(answer.usage().cached_tokens, 24);
    assert_eq!(answer.tokens(), alone(job(&turn, 8, 2))[0].tokens());
}

/// Requests that arrive together and begin alike: the common pages are encoded by one of them.
#[test]
fn requests_that_arrive_together_share_their_beginning() {
    let mut world = World::new(settings());
    let head = prompt(40, 5);
    let tails: Vec<Vec<u32>> = (0..4).map(|i| head.iter().copied().chain(prompt(5, 10 + i)).collect()).collect();
    let mut tickets: Vec<_> = tails.iter().map(|tail| world.submit(job(tail, 8, 1)).expect("taken")).collect();
    world.finish();
    assert_eq!(world.encoded(), 40 + 4 * 5);
    for (ticket, tail) in tickets.iter_mut().zip(&tails) {
        assert_eq!(stories(ticket)[0].tokens(), alone(job(tail, 8, 1))[0].tokens());
    }
}

/// Those that wait for the first one's pages take none of its rows.
#[test]
fn equal_prompts_take_the_passes_of_one() {
    let passes = |count: u32| {
        let mut world = World::new(settings());
        let tickets = (0..count).map(|seed| world.submit(job(&prompt(200, 5), 8, seed.into())).expect("taken"));
        let tickets: Vec<_> = tickets.collect();
        let passes = (1..100).find(|_| {
            world.pass();
            world.encoded() == 200
        });
        drop(tickets);
        world.finish();
        passes.expect("one prompt is encoded, once")
    };
    let one = passes(1);
    for count in [2, 4, 8] {
        assert!(passes(count) <= one + 1, "{count} equal prompts");
    }
}

#[test]
fn long_prompts_can_be_resumed_every_1024_tokens() {
    let wide = Limits { context: 4096, page_tokens: 64, window: 100, ..limits() };
    let settings = Settings { encode_rows: 512, kv_bytes: 1_000_000, ..settings() };
    let mut world = World::of(Scripted::new(wide), settings);
    let first = prompt(3000, 5);
    run(&mut world, job(&first, 8, 1));
    let second: Vec<u32> = first[..2100].iter().copied().chain(prompt(50, 8)).collect();
    let story = &run(&mut world, job(&second, 8, 1))[0];
    assert_eq!(story.usage().cached_tokens, 2048);
}

#[test]
fn nothing_is_kept_where_nothing_may_be_kept() {
    let mut world = World::new(Settings { prefix_cache_bytes: Some(0), ..settings() });
    for _ in 0..2 {
        assert_eq!(run(&mut world, job(&prompt(20, 5), 24, 1))[0].usage().cached_tokens, 0);
    }
}

/// The least recently used prefix goes first: of three that do not all fit, the one used again stays.
#[test]
fn the_least_recently_used_prefix_is_evicted() {
    // A prompt of 16 keeps 4 full pages and, for its window, 2 sliding ones: 600 bytes of 1,300.
    let mut world = World::new(Settings { prefix_cache_bytes: Some(1300), ..settings() });
    let cached = |world: &mut World, salt| run(world, job(&prompt(16, salt), 8, 1))[0].usage().cached_tokens;
    assert_eq!([cached(&mut world, 1), cached(&mut world, 2)], [0, 0]);
    assert_eq!(cached(&mut world, 1), 16);
    assert_eq!(cached(&mut world, 3), 0);
    assert_eq!(cached(&mut world, 1), 16);
    assert_eq!(cached(&mut world, 2), 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    /// Windows and pages of many sizes, with sharing of both kinds.
    #[test]
    fn sharing_is_exact_for_any_window_and_page(
        window in 1usize..20, page in 1usize..8, canvas in 2usize..9, common in 1usize..30, tail in 0usize..12,
        n in 1u32..4, seed in 0u64..4,
    ) {
        let limits = Limits { window, page_tokens: page, canvas, ..limits() };
        let mut world = World::of(Scripted::new(limits.clone()), settings());
        let head = prompt(common, 5);
        let first: Vec<u32> = head.iter().copied().chain(prompt(7, 6)).collect();
        let second: Vec<u32> = head.iter().copied().chain(prompt(tail, 8)).collect();
        let mut job_one = jobs(&first, 3 * canvas, 1, 2, 3);
        job_one.resume_points = vec![common];
        run(&mut world, job_one);
        let make = || jobs(&second, 3 * canvas, seed, n, 3);
        let got: Vec<_> = run(&mut world, make()).iter().map(Story::tokens).collect();
        prop_assert_eq!(got, each_alone(make, &limits));
    }
}

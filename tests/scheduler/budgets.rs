//! Budgets and fairness: who is refused, who waits, who is set back, and who is not held up.

use std::time::Duration;

use canvasd::pass::Segment;
use canvasd::scheduler::{Job, JobError, Refusal, Settings, Ticket};

use crate::support::{Scripted, limits};
use crate::world::*;

#[test]
fn a_full_queue_refuses_with_an_estimate() {
    let mut world = World::new(Settings { queue: 3, ..one_slot() });
    let mut tickets: Vec<Ticket> = Vec::new();
    for i in 0..3 {
        tickets.push(world.submit(job(&prompt(5, i), 24, 1)).expect("taken"));
    }
    let Err(Refusal::QueueFull { queued, .. }) = world.submit(job(&prompt(5, 9), 8, 1)) else { panic!("taken") };
    assert_eq!(queued, 3);
    // One is admitted, so one more fits; the estimate follows what was measured.
    world.pass();
    tickets.push(world.submit(job(&prompt(5, 9), 8, 1)).expect("taken"));
    let retry_after = |world: &mut World| match world.submit(job(&prompt(5, 9), 8, 1)) {
        Err(Refusal::QueueFull { retry_after, .. }) => retry_after,
        _ => panic!("taken"),
    };
    let first = retry_after(&mut world);
    world.cost.0 = Duration::from_secs(20);
    while world.front.queued() > 1 {
        world.pass();
    }
    tickets.push(world.submit(job(&prompt(5, 7), 8, 1)).expect("taken"));
    tickets.push(world.submit(job(&prompt(5, 8), 8, 1)).expect("taken"));
    assert!(retry_after(&mut world) > first, "slow passes are waited for longer");
    world.finish();
    for ticket in &mut tickets {
        stories(ticket)[0].finished();
    }
}

/// Every choice that waits takes memory, so requests of many choices fill the queue sooner.
#[test]
fn waiting_choices_are_bounded_too() {
    let mut world = World::new(Settings { queue: 4, ..one_slot() });
    let many = |i| jobs(&prompt(5, i), 8, 1, 12, 0);
    let mut tickets: Vec<Ticket> = (0..3).map(|i| world.submit(many(i)).expect("taken")).collect();
    assert!(matches!(world.submit(many(3)), Err(Refusal::QueueFull { queued: 3, .. })));
    tickets.pop();
    world.pass();
    tickets.push(world.submit(many(3)).expect("taken"));
    drop(tickets);
    world.finish();
    world.submit(many(4)).expect("taken");
}

/// Choices of a request that runs already fill the queue too: the figures show them, and the estimate counts them.
#[test]
fn waiting_choices_are_told_and_estimated() {
    let mut world = World::new(Settings { queue: 2, ..one_slot() });
    let mut many = world.submit(jobs(&prompt(5, 1), 8, 1, 60, 0)).expect("taken");
    world.pass();
    assert_eq!(metric(&world, "canvasd_requests_waiting"), 0);
    assert_eq!(metric(&world, "canvasd_choices_waiting"), 59);
    assert_eq!(metric(&world, "vllm:num_requests_waiting"), 59);
    assert_eq!(metric(&world, "vllm:num_requests_running"), 1);
    let refused = |world: &mut World| match world.submit(job(&prompt(5, 9), 8, 1)) {
        Err(refusal @ Refusal::QueueFull { queued: 0, retry_after, .. }) => (refusal.to_string(), retry_after),
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("taken"),
    };
    assert_eq!(refused(&mut world).1, Duration::from_secs(1), "nothing is known yet");
    world.cost.0 = Duration::from_millis(300);
    let begun = world.now;
    while metric(&world, "canvasd_choices_waiting") > 50 {
        world.pass();
    }
    // There is room below sixteen: 35 more must go.
    let (words, retry_after) = refused(&mut world);
    assert_eq!(retry_after.subsec_nanos(), 0);
    assert!(words.ends_with(&format!("in about {} s", retry_after.as_secs())), "{words}");
    let each = (world.now - begun) / 9;
    assert!(retry_after > each * 35 / 3 && retry_after < each * 35 * 3, "{retry_after:?} at {each:?} each");
    let refused_at = world.now;
    while metric(&world, "canvasd_choices_waiting") > 15 {
        world.pass();
    }
    let took = world.now - refused_at;
    assert!(retry_after > took / 3 && retry_after < took * 3, "{retry_after:?} for {took:?}");
    drop(world.submit(job(&prompt(5, 9), 8, 1)).expect("taken"));
    many.choices.clear();
    world.finish();
}

#[test]
fn what_can_never_fit_is_refused_with_the_numbers() {
    let mut world = World::new(settings());
    assert!(world.submit(job(&prompt(248, 1), 8, 1)).is_ok());
    match world.submit(job(&prompt(249, 1), 8, 1)) {
        Err(Refusal::NeverFits { needed: 257, available: 256, .. }) => {}
        other => panic!("{:?}", other.err()),
    }
    // Memory for fewer positions than the model's context lowers the limit that callers see.
    let small = World::new(Settings { kv_bytes: 3_000, ..settings() });
    assert!(small.front.limits().context < 256);
}

/// Memory for one long text at a time: all get theirs, the same as alone, the oldest first.
#[test]
fn the_youngest_is_set_back_and_gets_the_same_text() {
    let tight = Settings { kv_bytes: 5_000, prefix_cache_bytes: None, ..settings() };
    let mut world = World::new(tight);
    let make = |i: u32| job(&prompt(10 + i as usize, i), 60, u64::from(i));
    let mut tickets: Vec<Ticket> = (0..5).map(|i| world.submit(make(i)).expect("taken")).collect();
    let mut all = vec![Story::default(); 5];
    let mut ends = Vec::new();
    while !world.core.is_idle() {
        world.pass();
        for (i, ticket) in tickets.iter_mut().enumerate() {
            let before = all[i].end.is_some();
            all[i].read(&mut ticket.choices[0]);
            if all[i].end.is_some() && !before {
                ends.push(i);
            }
        }
    }
    assert_eq!(ends.first(), Some(&0), "the oldest is never set back");
    for (i, story) in all.iter().enumerate() {
        let expected = &alone(make(i as u32))[0];
        assert_eq!(story.tokens(), expected.tokens());
        assert_eq!(story.usage().steps, expected.usage().steps, "usage does not tell of company");
    }
    assert!(set_backs(&world) > 0, "the memory was tight enough to test anything");
}

fn set_backs(world: &World) -> u64 {
    metric(world, "canvasd_set_backs_total")
}

fn metric(world: &World, name: &str) -> u64 {
    figure(world, name) as u64
}

fn figure(world: &World, name: &str) -> f64 {
    let text = world.core.metrics();
    let line = text.lines().find(|line| line.starts_with(name)).expect("the metric is there");
    line.split_whitespace().last().and_then(|value| value.parse().ok()).expect("a number")
}

/// Eight slots, a request of sixteen choices, then a single one: it does not wait for the sixteen.
#[test]
fn many_choices_do_not_shut_out_the_rest() {
    let mut world = World::new(settings());
    let mut many = world.submit(jobs(&prompt(5, 1), 80, 1, 16, 0)).expect("taken");
    world.pass();
    let mut single = world.submit(job(&prompt(5, 2), 8, 1)).expect("taken");
    let mut story = Story::default();
    for _ in 0..20 {
        world.pass();
        story.read(&mut single.choices[0]);
        if story.end.is_some() {
            break;
        }
    }
    assert!(story.end.is_some(), "the single request waits for the many");
    for reader in &mut many.choices {
        let story = Story::of(reader);
        assert!(story.end.is_none(), "{:?} after {} canvases", story.end, story.canvases.len());
    }
    drop(many);
    world.finish();
}

/// The same with a prompt for each choice, and so a job: the single one goes before those that wait.
#[test]
fn many_prompts_do_not_shut_out_the_rest() {
    let mut world = World::new(settings());
    let of_request = |i: usize| Job { choices_before: i, ..job(&prompt(5, i as u32), 24, 1) };
    let mut many: Vec<Ticket> = (0..32).map(|i| world.submit(of_request(i)).expect("taken")).collect();
    world.pass();
    let mut single = world.submit(job(&prompt(5, 99), 8, 1)).expect("taken");
    let mut story = Story::default();
    let mut all = vec![Story::default(); many.len()];
    while story.end.is_none() {
        assert!(world.pass(), "somebody waits for ever");
        story.read(&mut single.choices[0]);
        for (story, ticket) in all.iter_mut().zip(&mut many) {
            story.read(&mut ticket.choices[0]);
        }
    }
    let ended = all.iter().filter(|story| story.end.is_some()).count();
    assert!(ended <= 16, "the single request waits for {ended} of the many");
    drop(many);
    world.finish();
}

/// A request of many choices gets all of them although others never stop arriving.
#[test]
fn nobody_waits_for_ever_behind_a_stream_of_others() {
    let mut world = World::new(Settings { max_running: 2, ..settings() });
    let mut many = world.submit(jobs(&prompt(5, 1), 8, 1, 6, 0)).expect("taken");
    let mut all = vec![Story::default(); 6];
    let mut others: Vec<Ticket> = Vec::new();
    for i in 0..600 {
        if world.front.queued() < 8 {
            others.push(world.submit(job(&prompt(5, i), 16, 1)).expect("taken"));
        }
        world.pass();
        for ticket in &mut others {
            ticket.choices.iter_mut().for_each(discard);
        }
        for (story, reader) in all.iter_mut().zip(&mut many.choices) {
            story.read(reader);
        }
    }
    assert!(all.iter().all(|story| story.end.is_some()), "starved");
}

/// A long prompt costs the others at most the budget, and arrives nevertheless; short prompts pass it.
#[test]
fn a_long_prompt_does_not_hold_up_steps_or_short_prompts() {
    let mut world = World::of(Scripted::new(limits()).with_steps(5..=5), settings());
    let mut running: Vec<Ticket> = (0..4).map(|i| world.submit(job(&prompt(4, i), 160, 1)).expect("taken")).collect();
    for _ in 0..3 {
        world.pass();
    }
    let long = world.submit(job(&prompt(240, 9), 8, 1)).expect("taken");
    let mut short = world.submit(job(&prompt(6, 8), 8, 1)).expect("taken");
    let (mut passes, mut story) = (0, Story::default());
    while story.end.is_none() {
        world.core.plan(world.now);
        let prompts = world.core.pass().segments.iter();
        let canvases = prompts.clone().filter(|segment| matches!(segment, Segment::Denoise { .. })).count();
        assert!(canvases >= 4, "a running canvas misses a pass");
        world.pass();
        story.read(&mut short.choices[0]);
        running.iter_mut().flat_map(|ticket| &mut ticket.choices).for_each(discard);
        passes += 1;
    }
    assert!(passes <= 8, "the short prompt waited for the long one: {passes} passes");
    let most = world.log.lock().expect("the log").passes.iter().map(|pass| pass.0).max();
    assert!(most <= Some(16 + 4 * 8), "{most:?} rows encoded in one pass");
    drop((long, running));
    world.finish();
}

#[test]
fn a_slow_reader_pauses_its_own_choice_only() {
    let mut world = World::new(Settings { unread_canvases: 2, ..settings() });
    let mut slow = world.submit(job(&prompt(5, 1), 80, 1)).expect("taken");
    let mut other = world.submit(job(&prompt(5, 2), 80, 1)).expect("taken");
    let mut story = Story::default();
    world.until_end(&mut story, &mut other.choices[0]);
    assert_eq!(story.tokens(), alone(job(&prompt(5, 2), 80, 1))[0].tokens());
    let mut late = Story::of(&mut slow.choices[0]);
    assert_eq!(late.canvases.len(), 2, "no more than two canvases wait unread");
    world.until_end(&mut late, &mut slow.choices[0]);
    assert_eq!(late.tokens(), alone(job(&prompt(5, 1), 80, 1))[0].tokens(), "nothing is lost by reading late");
}

/// The choices of a stream share one reader, which may be long at another one's text.
#[test]
fn a_reader_may_be_behind_for_any_time() {
    let mut world = World::new(Settings { unread_canvases: 1, ..settings() });
    let mut slow = world.submit(job(&prompt(5, 1), 80, 1)).expect("taken");
    let mut story = Story::default();
    while story.end.is_none() {
        while world.pass() {}
        let ended = world.core.is_idle();
        world.now += Duration::from_secs(3600);
        story.read(&mut slow.choices[0]);
        assert!(!ended || story.end.is_some(), "a choice has gone without a word");
    }
    story.finished();
    assert_eq!(story.tokens(), alone(job(&prompt(5, 1), 80, 1))[0].tokens());
}

/// The same where slots are free and pages are not.
#[test]
fn a_paused_choice_does_not_hold_pages() {
    let tight = Settings { unread_canvases: 1, kv_bytes: 2_600, ..settings() };
    let mut world = World::new(tight);
    let mut slow = world.submit(job(&prompt(30, 1), 16, 1)).expect("taken");
    let mut other = world.submit(job(&prompt(30, 2), 8, 1)).expect("taken");
    let mut story = Story::default();
    world.until_end(&mut story, &mut other.choices[0]);
    assert_eq!(story.usage().canvases, 1);
    assert_eq!(set_backs(&world), 1, "the memory was tight enough to test anything");
    let mut late = Story::default();
    world.until_end(&mut late, &mut slow.choices[0]);
    assert_eq!(late.tokens(), alone(job(&prompt(30, 1), 16, 1))[0].tokens());
}

/// A choice that waits for its reader gives its place to one that waits for a place.
#[test]
fn a_paused_choice_does_not_hold_a_slot() {
    let mut world = World::new(Settings { unread_canvases: 1, ..one_slot() });
    let mut slow = world.submit(job(&prompt(5, 1), 40, 1)).expect("taken");
    let mut other = world.submit(job(&prompt(5, 2), 8, 1)).expect("taken");
    let mut story = Story::default();
    for _ in 0..40 {
        world.pass();
        story.read(&mut other.choices[0]);
        if story.end.is_some() {
            break;
        }
    }
    assert!(story.end.is_some(), "it waits for the other's reader");
    let mut late = Story::default();
    world.until_end(&mut late, &mut slow.choices[0]);
    assert_eq!(late.tokens(), alone(job(&prompt(5, 1), 40, 1))[0].tokens());
}

#[test]
fn a_dropped_reader_frees_everything_before_the_next_pass() {
    for passes in 0..12 {
        let mut world = World::new(one_slot());
        let ticket = world.submit(jobs(&prompt(30, 1), 80, 1, 2, 0)).expect("taken");
        for _ in 0..passes {
            world.pass();
        }
        drop(ticket);
        assert!(!world.core.plan(world.now), "a pass is spent for nobody");
        assert!(world.core.is_idle());
        world.audit();
        assert_eq!(world.front.queued(), 0);
    }
}

#[test]
fn metrics_tell_what_happened() {
    let mut world = World::new(settings());
    let mut ticket = world.submit(jobs(&prompt(10, 1), 12, 1, 2, 0)).expect("taken");
    world.finish();
    let steps: usize = stories(&mut ticket).iter().map(|story| story.usage().steps).sum();
    assert_eq!(metric(&world, "canvasd_requests_total{outcome=\"finished\"}"), 1);
    assert_eq!(metric(&world, "canvasd_completion_tokens_total"), 24);
    assert_eq!(metric(&world, "canvasd_wasted_positions_total"), 8);
    assert_eq!(metric(&world, "canvasd_pass_rows_total{mode=\"denoise\"}"), steps as u64 * 8);
    assert_eq!(metric(&world, "canvasd_pass_rows_total{mode=\"encode\"}"), world.encoded() as u64);
    assert_eq!(metric(&world, "canvasd_canvas_steps_count"), 4);
    assert_eq!(metric(&world, "vllm:num_requests_running"), 0);
    assert_eq!(metric(&world, "vllm:num_requests_waiting"), 0);
    let text = world.core.metrics();
    assert!(text.contains("vllm:cache_config_info{block_size=\"4\",num_gpu_blocks="), "{text}");
    assert!(text.contains("vllm:kv_cache_usage_perc 0"), "{text}");
}

/// What a canvas takes does not tell of the queue, which has a figure of its own.
#[test]
fn a_canvas_begins_with_the_admission() {
    let mut world = World::new(one_slot());
    let mut tickets: Vec<Ticket> = (0..2).map(|i| world.submit(job(&prompt(5, i), 8, 1)).expect("taken")).collect();
    world.finish();
    for ticket in &mut tickets {
        stories(ticket)[0].finished();
    }
    assert_eq!(metric(&world, "canvasd_canvas_duration_seconds_count"), 2);
    let (sum, took) = (figure(&world, "canvasd_canvas_duration_seconds_sum"), (world.now - world.start).as_secs_f64());
    assert!((sum - took).abs() < 1e-9, "{sum} s for two canvases one after the other in {took} s");
}

/// Where one choice fails, whoever asked lets go of the others: that is one failure, and nobody cancelled anything.
#[test]
fn a_request_that_fails_is_counted_as_such() {
    let mut world = World::new(settings());
    let mut wanted = jobs(&prompt(6, 5), 80, 5, 2, 0);
    wanted.choices[0].gate = Box::new(Broken);
    let mut ticket = world.submit(wanted).expect("taken");
    let mut story = Story::default();
    world.until_end(&mut story, &mut ticket.choices[0]);
    assert!(matches!(story.error(), JobError::Model(_)));
    drop(ticket);
    world.finish();
    assert_eq!(metric(&world, "canvasd_cancellations_total"), 1);
    assert_eq!(metric(&world, "canvasd_requests_total{outcome=\"failed\"}"), 1);
    assert_eq!(metric(&world, "canvasd_requests_total{outcome=\"cancelled\"}"), 0);
}

/// Whoever leaves while nothing else runs is not counted as running for ever.
#[test]
fn levels_are_true_without_a_following_pass() {
    let mut world = World::new(one_slot());
    let running = world.submit(job(&prompt(10, 1), 80, 1)).expect("taken");
    let waiting = world.submit(job(&prompt(10, 2), 80, 1)).expect("taken");
    assert_eq!(metric(&world, "canvasd_requests_waiting"), 2, "told before any pass");
    world.pass();
    assert_eq!(metric(&world, "canvasd_choices_running"), 1);
    assert_eq!(metric(&world, "vllm:num_requests_waiting"), 1);
    assert!(metric(&world, "canvasd_kv_used_bytes") > 0);
    drop((running, waiting));
    assert!(!world.pass());
    for name in ["canvasd_choices_running", "vllm:num_requests_running", "canvasd_kv_used_bytes"] {
        assert_eq!(metric(&world, name), 0, "{name}");
    }
    assert_eq!(metric(&world, "canvasd_requests_waiting"), 0);
    assert_eq!(metric(&world, "canvasd_requests_total{outcome=\"cancelled\"}"), 2);
}

//! What a request gets: exact lengths, ends, logprobs, penalties, drafts, deadlines.

use std::sync::Arc;
use std::time::Duration;

use canvasd::scheduler::{Drafts, FinishReason, Job, JobError, Penalties, Phase, Refusal};

use crate::log::catch;
use crate::support::{Fault, Scripted, limits};
use crate::world::*;

#[test]
fn one_request_runs_to_its_end() {
    let mut world = World::new(settings());
    let mut ticket = world.submit(job(&prompt(10, 1), 20, 7)).expect("taken");
    world.finish();
    let story = &stories(&mut ticket)[0];
    assert_eq!(story.tokens().len(), 20);
    assert_eq!(story.finished().reason, FinishReason::Length);
    let usage = story.usage();
    assert_eq!((usage.canvases, usage.completion_tokens, usage.cached_tokens, usage.forced_commits), (3, 20, 0, 0));
    assert_eq!(usage.steps, story.canvases.iter().map(|canvas| canvas.steps).sum::<usize>());
    // Prompt and two canvases are encoded, the last canvas never is.
    assert_eq!(world.encoded(), 10 + 16);
}

#[test]
fn max_tokens_is_exact_at_every_length() {
    for max_tokens in 1..=25 {
        let story = &alone(job(&prompt(5, 2), max_tokens, 3))[0];
        assert_eq!(story.tokens().len(), max_tokens);
        assert_eq!(story.usage().canvases, max_tokens.div_ceil(8));
    }
}

#[test]
fn a_longer_answer_begins_like_a_shorter_one() {
    let long = alone(job(&prompt(5, 2), 40, 3))[0].tokens();
    for max_tokens in [1, 8, 9, 31] {
        assert_eq!(alone(job(&prompt(5, 2), max_tokens, 3))[0].tokens(), long[..max_tokens]);
    }
}

#[test]
fn seeds_and_streams_tell_texts_apart() {
    let text = |seed| alone(jobs(&prompt(5, 2), 16, seed, 2, 0)).iter().map(Story::tokens).collect::<Vec<_>>();
    let (one, two) = (text(1), text(2));
    assert_eq!(one, text(1));
    assert_ne!(one[0], one[1]);
    assert_ne!(one[0], two[0]);
}

#[test]
fn an_end_token_ends_the_text_and_belongs_to_it() {
    let free = alone(job(&prompt(5, 2), 200, 3))[0].tokens();
    let at = free.iter().position(|&token| token < 4).expect("some token is small");
    let story = &alone(jobs(&prompt(5, 2), 200, 3, 1, 4))[0];
    assert_eq!(story.tokens(), free[..=at]);
    assert_eq!(story.finished().reason, FinishReason::Stop);
}

#[test]
fn the_context_ends_a_text_with_length() {
    let story = &alone(job(&prompt(230, 2), 1000, 3))[0];
    assert_eq!(story.tokens().len(), (256 - 230) / 8 * 8);
    assert_eq!(story.finished().reason, FinishReason::Length);
}

#[test]
fn logprobs_are_those_of_the_last_step() {
    let mut wanted = job(&prompt(5, 2), 10, 3);
    wanted.top_k = 3;
    let story = &alone(wanted)[0];
    for token in story.canvases.iter().flat_map(|canvas| &canvas.tokens) {
        assert_eq!(token.logprob, -0.25);
        let logprobs: Vec<f32> = token.top.iter().map(|candidate| candidate.logit).collect();
        assert_eq!(logprobs, [-0.25, -1.25, -2.25]);
        assert_eq!(token.top[0].token, token.id);
    }
    assert!(alone(job(&prompt(5, 2), 10, 3))[0].canvases[0].tokens[0].top.is_empty());
}

/// Presence so strong that a committed token never comes again in a later canvas; within one canvas it may.
#[test]
fn penalties_are_frozen_per_canvas() {
    let mut wanted = job(&prompt(5, 2), 48, 3);
    wanted.penalties = Penalties { presence: 100.0, frequency: 0.0 };
    let story = &alone(wanted)[0];
    let canvases: Vec<Vec<u32>> =
        story.canvases.iter().map(|canvas| canvas.tokens.iter().map(|token| token.id).collect()).collect();
    for (i, later) in canvases.iter().enumerate() {
        for earlier in &canvases[..i] {
            assert!(later.iter().all(|token| !earlier.contains(token)), "{canvases:?}");
        }
    }
    let plain = alone(job(&prompt(5, 2), 48, 3))[0].tokens();
    assert_eq!(story.tokens()[..8], plain[..8], "the first canvas has nothing to penalise");
}

#[test]
fn a_users_bias_is_kept_beside_penalties() {
    let mut wanted = job(&prompt(5, 2), 48, 3);
    wanted.bias = (0..60).map(|token| (token, -100.0)).collect::<Vec<_>>().into();
    wanted.penalties = Penalties { presence: 0.0, frequency: 1.0 };
    assert!(alone(wanted)[0].tokens().iter().all(|&token| token >= 60));
}

#[test]
fn drafts_follow_the_canvas() {
    let mut world = World::new(settings());
    let mut wanted = job(&prompt(20, 2), 16, 3);
    wanted.drafts = Drafts::Every(1);
    let mut ticket = world.submit(wanted).expect("taken");
    let mut drafts = ticket.choices[0].drafts();
    let mut phases = Vec::new();
    let mut steps = Vec::new();
    let mut last = [None, None];
    loop {
        let draft = drafts.borrow_and_update().clone().expect("there is always one");
        if phases.last() != Some(&draft.phase) {
            phases.push(draft.phase);
        }
        if draft.phase == Phase::Denoise {
            assert_eq!(draft.tokens.len(), 8);
            steps.push((draft.canvas, draft.step));
            last[draft.canvas] = Some((draft.step, draft.last_step, draft.elapsed));
        }
        if !world.pass() {
            break;
        }
    }
    assert_eq!(phases, [Phase::Queued, Phase::Encode, Phase::Denoise]);
    assert!(steps.windows(2).all(|pair| pair[0] < pair[1]), "{steps:?}");
    // A commit has the numbers of the draft that it makes final.
    let story = &stories(&mut ticket)[0];
    let committed = story.canvases.iter().map(|canvas| Some((canvas.steps, canvas.last_step, canvas.elapsed)));
    assert_eq!(committed.collect::<Vec<_>>(), last);
    assert!(story.canvases.iter().all(|canvas| canvas.last_step.settled == 8 && canvas.last_step.batch == 1));
}

#[test]
fn no_drafts_unless_wanted() {
    let mut world = World::new(settings());
    let ticket = world.submit(job(&prompt(5, 2), 16, 3)).expect("taken");
    world.finish();
    assert!(ticket.choices[0].drafts().borrow().is_none());
}

/// A model that never settles, so that only the deadline ends a canvas.
fn restless() -> World {
    World::of(Scripted::new(limits()).with_steps(1000..=1000), settings())
}

#[test]
fn the_deadline_commits_the_draft() {
    let mut world = restless();
    let mut wanted = job(&prompt(5, 2), 16, 3);
    wanted.sampler.max_steps = 10_000;
    wanted.timeout = Some(Duration::from_millis(100));
    let mut ticket = world.submit(wanted).expect("taken");
    world.finish();
    let story = &stories(&mut ticket)[0];
    assert_eq!(story.tokens().len(), 8);
    assert_eq!(story.finished().reason, FinishReason::Length);
    assert_eq!(story.usage().forced_commits, 1);
    assert!(world.now - world.start <= Duration::from_millis(100), "no step that would overrun is begun");
    assert!(world.now - world.start >= Duration::from_millis(80));
}

#[test]
fn a_deadline_before_the_first_step_is_an_error() {
    let mut world = restless();
    let mut wanted = job(&prompt(200, 2), 16, 3);
    wanted.timeout = Some(Duration::from_millis(50));
    let mut ticket = world.submit(wanted).expect("taken");
    world.finish();
    assert_eq!(stories(&mut ticket)[0].error(), JobError::DeadlineExceeded);
}

/// What passes took is forgotten once nothing runs: it says nothing of the next one.
#[test]
fn slow_passes_of_the_past_do_not_refuse_short_deadlines() {
    let mut world = World::new(settings());
    world.cost.0 = Duration::from_secs(3);
    let mut slow = world.submit(job(&prompt(5, 1), 16, 1)).expect("taken");
    world.finish();
    stories(&mut slow)[0].finished();
    world.cost.0 = Duration::from_millis(10);
    let mut wanted = job(&prompt(5, 2), 8, 1);
    wanted.timeout = Some(Duration::from_millis(500));
    let mut ticket = world.submit(wanted).expect("taken");
    world.finish();
    let usage = stories(&mut ticket)[0].usage();
    assert_eq!((usage.completion_tokens, usage.forced_commits), (8, 0));
}

#[test]
fn a_deadline_in_the_queue_is_an_error_in_time() {
    let mut world = World::of(Scripted::new(limits()).with_steps(9..=9), one_slot());
    let _busy = world.submit(job(&prompt(5, 2), 200, 3)).expect("taken");
    let mut wanted = job(&prompt(5, 2), 16, 3);
    wanted.timeout = Some(Duration::from_millis(200));
    let mut ticket = world.submit(wanted).expect("taken");
    let mut story = Story::default();
    world.until_end(&mut story, &mut ticket.choices[0]);
    assert_eq!(story.error(), JobError::DeadlineExceeded);
    assert!(world.now - world.start <= Duration::from_millis(220));
}

/// Between two canvases nothing needs to be forced.
#[test]
fn a_deadline_between_two_canvases_forces_nothing() {
    let whole = alone(job(&prompt(5, 2), 40, 3))[0].clone();
    let mut ended_between = 0;
    for timeout in (20..300).step_by(5) {
        let mut world = World::new(settings());
        let mut wanted = job(&prompt(5, 2), 40, 3);
        wanted.timeout = Some(Duration::from_millis(timeout));
        let mut ticket = world.submit(wanted).expect("taken");
        world.finish();
        let story = &stories(&mut ticket)[0];
        let usage = story.usage();
        assert_eq!(story.finished().reason, FinishReason::Length);
        if usage.forced_commits == 0 && usage.completion_tokens < 40 {
            ended_between += 1;
            assert_eq!(story.tokens(), whole.tokens()[..usage.completion_tokens]);
        }
    }
    assert!(ended_between > 0, "no deadline fell between two canvases");
}

/// A fault in one segment ends one choice, and the others' texts are what they would have been.
#[test]
fn a_failing_segment_fails_its_request_only() {
    let make = |i: u32| job(&prompt(9, 5 + i), 24, u64::from(5 + i));
    for victim in 0..2 {
        let faults = move |pass: &canvasd::pass::Pass| match &pass.segments[..] {
            [canvasd::pass::Segment::Denoise { .. }, canvasd::pass::Segment::Denoise { .. }] => {
                Fault::NotANumber(victim)
            }
            _ => Fault::None,
        };
        let mut world = World::of(Scripted::new(limits()).with_faults(faults), settings());
        let mut tickets = [0, 1].map(|i| world.submit(make(i)).expect("taken"));
        world.finish();
        assert!(
            matches!(stories(&mut tickets[victim])[0].error(), JobError::Model(why) if why.contains("not finite")),
            "choice {victim}"
        );
        let other = 1 - victim;
        assert_eq!(stories(&mut tickets[other])[0].tokens(), alone(make(other as u32))[0].tokens());
    }
}

/// The choices that share a prompt fall with the encode they depend on; a request that does not goes on.
#[test]
fn a_failing_encode_fails_those_who_read_it() {
    let mut first = true;
    let faults = move |pass: &canvasd::pass::Pass| {
        let encodes = pass.segments.iter().filter(|s| matches!(s, canvasd::pass::Segment::Encode { .. })).count();
        let fails = encodes == 2 && std::mem::take(&mut first);
        if fails { Fault::Segment(1) } else { Fault::None }
    };
    let mut world = World::of(Scripted::new(limits()).with_faults(faults), settings());
    let mut good = world.submit(job(&prompt(6, 5), 24, 5)).expect("taken");
    let mut bad = world.submit(jobs(&prompt(6, 6), 24, 6, 3, 0)).expect("taken");
    world.finish();
    assert_eq!(stories(&mut good)[0].tokens(), alone(job(&prompt(6, 5), 24, 5))[0].tokens());
    for story in stories(&mut bad) {
        assert!(matches!(story.error(), JobError::Model(_)));
        assert!(story.canvases.is_empty());
    }
}

/// A canvas never goes on over keys and values that were not written: the step that rides with a failing encode, of a
/// prompt or of the canvas before, counts for nothing, whatever the model answered to it.
#[test]
fn a_step_beside_its_own_failing_encode_is_not_used() {
    for failing in 1..4 {
        let mut encodes = 0;
        let faults = move |pass: &canvasd::pass::Pass| {
            let encode = pass.segments.iter().position(|s| matches!(s, canvasd::pass::Segment::Encode { .. }));
            encodes += usize::from(encode.is_some());
            encode.filter(|_| encodes == failing).map_or(Fault::None, Fault::Segment)
        };
        let mut world = World::of(Scripted::new(limits()).with_faults(faults), settings());
        let mut ticket = world.submit(job(&prompt(6, 5), 40, 5)).expect("taken");
        world.finish();
        let story = &stories(&mut ticket)[0];
        assert!(matches!(story.error(), JobError::Model(_)));
        assert_eq!(story.canvases.len(), failing - 1, "no canvas is committed over what is missing");
        assert_eq!(story.tokens(), alone(job(&prompt(6, 5), 40, 5))[0].tokens()[..8 * (failing - 1)]);
    }
}

#[test]
fn a_failing_pass_fails_those_in_it_and_the_next_ones_run() {
    let mut passes = 0;
    let faults = move |_: &canvasd::pass::Pass| {
        passes += 1;
        if passes == 3 { Fault::Pass } else { Fault::None }
    };
    let mut world = World::of(Scripted::new(limits()).with_faults(faults), settings());
    let mut bad = world.submit(job(&prompt(6, 5), 40, 5)).expect("taken");
    for _ in 0..3 {
        world.pass();
    }
    assert!(matches!(stories(&mut bad)[0].error(), JobError::Model(why) if why.contains("scripted")));
    let mut good = world.submit(job(&prompt(6, 5), 24, 5)).expect("taken");
    world.finish();
    assert_eq!(stories(&mut good)[0].tokens(), alone(job(&prompt(6, 5), 24, 5))[0].tokens());
}

/// Those who operate the server learn what the client was told, without a line for each of its choices.
#[test]
fn a_failure_of_the_model_is_logged_once_for_each_request() {
    let mut world = World::of(Scripted::new(limits()).with_faults(|_| Fault::Pass), settings());
    let caught = catch();
    let mut one = world.submit(job(&prompt(6, 5), 40, 5)).expect("taken");
    let mut three = world.submit(jobs(&prompt(7, 6), 40, 5, 3, 0)).expect("taken");
    world.finish();
    for story in stories(&mut one).iter().chain(&stories(&mut three)) {
        assert!(matches!(story.error(), JobError::Model(_)));
    }
    let told = caught.with("ERROR");
    assert_eq!(told.len(), 2, "{told:?}");
    for (line, tokens) in told.iter().zip([6, 7]) {
        assert!(line.contains("the model failed: ") && line.contains(&format!("prompt_tokens={tokens}")), "{line}");
    }
    // What is no failure of the model is the client's affair.
    let mut late = world.submit(Job { timeout: Some(Duration::ZERO), ..job(&prompt(6, 5), 40, 5) }).expect("taken");
    world.finish();
    assert_eq!(stories(&mut late)[0].error(), JobError::DeadlineExceeded);
    assert_eq!(caught.with("ERROR").len(), 2);
}

#[test]
fn a_panicking_gate_fails_its_choice_only() {
    let mut world = World::new(settings());
    let mut wanted = jobs(&prompt(6, 5), 24, 5, 2, 0);
    wanted.choices[0].gate = Box::new(Broken);
    let mut ticket = world.submit(wanted).expect("taken");
    world.finish();
    let all = stories(&mut ticket);
    assert!(matches!(all[0].error(), JobError::Model(_)));
    assert_eq!(all[1].tokens(), alone(jobs(&prompt(6, 5), 24, 5, 2, 0))[1].tokens());
}

#[test]
fn nonsense_is_refused_before_it_costs_anything() {
    let mut world = World::new(settings());
    let mut bad = vec![job(&[], 5, 1), job(&[97], 5, 1), job(&[1], 0, 1), jobs(&[1], 5, 1, 0, 0)];
    let mut with = |change: fn(&mut canvasd::scheduler::Job)| {
        let mut wanted = job(&[1, 2, 3], 5, 1);
        change(&mut wanted);
        bad.push(wanted);
    };
    with(|job| job.sampler.max_steps = 0);
    with(|job| job.draw = canvasd::scheduler::Draw::Scaled { temperature: 0.0, top_p: 1.0 });
    with(|job| job.draw = canvasd::scheduler::Draw::Scaled { temperature: 1.0, top_p: f32::NAN });
    with(|job| job.bias = Arc::new([(2, 1.0), (1, 1.0)]));
    with(|job| job.bias = Arc::new([(97, 1.0)]));
    with(|job| job.bias = Arc::new([(9, f32::INFINITY)]));
    with(|job| job.penalties.presence = f32::NAN);
    with(|job| job.top_k = 65);
    with(|job| job.drafts = Drafts::Every(0));
    with(|job| job.resume_points = vec![2, 1]);
    with(|job| job.resume_points = vec![4]);
    for (i, job) in bad.into_iter().enumerate() {
        assert!(matches!(world.submit(job), Err(Refusal::Invalid(_))), "job {i}");
    }
    assert!(world.core.is_idle());
}

//! Heavy loads: throughput against the ideal, and ten thousand requests with readers that go away.

use std::time::Duration;

use canvasd::pass::{Limits, Segment};
use canvasd::scheduler::{Settings, Ticket};

use crate::support::{Scripted, limits, mix};
use crate::world::*;

/// A larger canvas, so that steps dominate as they do in earnest.
fn wide() -> Limits {
    Limits { canvas: 32, page_tokens: 16, window: 64, context: 1024, ..limits() }
}

/// `clients` that each submit their next request of another length when the last one ends. The ideal is a pass in which
/// every client takes a step: `a` shared by all of them, and `b` for each row that is needed at all.
fn share_of_ideal(clients: usize) -> f64 {
    let settings = Settings { encode_rows: 256, max_running: 256, queue: 512, kv_bytes: 4_000_000, ..settings() };
    let mut world = World::of(Scripted::new(wide()).with_steps(3..=12), settings);
    world.cost = (Duration::from_millis(20), Duration::from_micros(50));
    let mut tickets: Vec<(Ticket, Story)> = Vec::new();
    let mut number = 0u64;
    let next = |world: &mut World, number: &mut u64| {
        *number += 1;
        let size = mix(*number, 1);
        let (prompt_len, max_tokens) = (8 + size % 60, 16 + size / 64 % 200);
        let wanted = job(&prompt(prompt_len as usize, *number as u32 * 3), max_tokens as usize, *number);
        (world.submit(wanted).expect("taken"), Story::default())
    };
    for _ in 0..clients {
        tickets.push(next(&mut world, &mut number));
    }
    let passes = 4000 / clients.max(20);
    let warm_up = 10;
    let (mut steps, mut rows, mut from) = (0, 0, world.now);
    for pass in 0..warm_up + passes {
        if pass == warm_up {
            (steps, rows, from) = (0, 0, world.now);
        }
        assert!(world.core.plan(world.now));
        let segments = &world.core.pass().segments;
        rows += segments.iter().map(Segment::rows).sum::<usize>();
        steps += segments.iter().filter(|segment| matches!(segment, Segment::Denoise { .. })).count();
        world.pass();
        for entry in &mut tickets {
            entry.1.read(&mut entry.0.choices[0]);
            if entry.1.end.is_some() {
                *entry = next(&mut world, &mut number);
            }
        }
    }
    let ideal = world.cost.0.as_secs_f64() * steps as f64 / clients as f64 + world.cost.1.as_secs_f64() * rows as f64;
    ideal / (world.now - from).as_secs_f64()
}

#[test]
fn throughput_is_close_to_ideal_at_any_concurrency() {
    for clients in [1, 2, 7, 16, 64, 256] {
        let share = share_of_ideal(clients);
        println!("{clients} clients: {:.1} % of the ideal", 100.0 * share);
        assert!(share >= 0.95, "{clients} clients reach {share} of the ideal");
    }
}

/// Memory of this process in bytes, where the system tells it.
fn resident() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/statm").ok()?;
    text.split_whitespace().nth(1)?.parse::<u64>().ok().map(|pages| pages * 4096)
}

/// Ten thousand short requests; many readers leave at a random moment. Nothing is left behind.
#[test]
fn ten_thousand_requests_leave_nothing_behind() {
    let mut world = World::new(Settings { max_running: 32, queue: 64, ..settings() });
    let mut tickets: Vec<(Ticket, Story, u64)> = Vec::new();
    let (mut submitted, mut finished, mut at_half) = (0u64, 0, None);
    while submitted < 10_000 || !tickets.is_empty() {
        while submitted < 10_000 && tickets.len() < 60 {
            submitted += 1;
            let size = mix(submitted, 2);
            let wanted = jobs(&prompt(1 + (size % 20) as usize, (size / 32 % 12) as u32), 12, submitted, 1, 2);
            let leaves_after = if size.is_multiple_of(3) { size / 7 % 8 } else { u64::MAX };
            tickets.push((world.submit(wanted).expect("taken"), Story::default(), leaves_after));
        }
        assert!(world.core.plan(world.now) || world.core.is_idle());
        // Books are checked now and then only, for time's sake.
        if submitted.is_multiple_of(97) {
            world.audit();
        }
        world.pass_unchecked();
        tickets.retain_mut(|(ticket, story, leaves_after)| {
            story.read(&mut ticket.choices[0]);
            finished += usize::from(story.end.is_some());
            let left = *leaves_after == 0;
            *leaves_after = leaves_after.saturating_sub(u64::from(*leaves_after != u64::MAX));
            story.end.is_none() && !left
        });
        world.log.lock().expect("the log").passes.clear();
        if submitted >= 5_000 && at_half.is_none() {
            at_half = resident();
        }
    }
    world.finish();
    assert!(finished > 5_000);
    assert_eq!(world.front.queued(), 0);
    if let Some(end) = resident() {
        let half = at_half.expect("read where the system tells it");
        println!("resident after 5,000 requests {half}, after 10,000 {end}");
        // Other tests run beside this one in the same process; a leak of a request's worth each would be 50 MB.
        assert!(end < half + (32 << 20), "memory grows: {half} to {end}");
    }
}

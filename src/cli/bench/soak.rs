//! `canvasd bench --soak`: thousands of short requests, a third of which are given up at a random moment, and what is
//! left behind: resident memory over time, and whether every slot and page is free in the end.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::sync::Mutex;

use super::target::{Levels, Question, Target};
use super::{PROMPTS, in_turn};
use crate::cli::{CliError, tell};

/// Readings of the memory over the whole run.
const READINGS: usize = 20;

/// Readings that belong to the warm-up: buffers and the allocator's arenas find their size.
const WARM_UP: usize = 4;

/// How much more memory at the end than after the warm-up is still called flat: the allocator's own unrest.
const UNREST: f64 = 0.05;

/// What is run.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// Requests in all.
    pub requests: usize,
    /// Requests at once.
    pub streams: usize,
    /// Seed of the first request.
    pub seed: u64,
}

/// How one request ended.
enum End {
    Finished,
    GivenUp,
}

/// Memory when so many requests were done, in bytes.
#[derive(Debug, Clone, Copy)]
pub struct Reading {
    done: usize,
    resident: u64,
    /// Of it keys and values kept for later requests, which grow to their bound and are meant to.
    kept: u64,
}

impl Reading {
    fn own(&self) -> u64 {
        self.resident.saturating_sub(self.kept)
    }
}

/// What was found.
#[derive(Debug)]
pub struct Soak {
    model: String,
    place: String,
    finished: usize,
    given_up: usize,
    seconds: f64,
    readings: Vec<Reading>,
    left: Levels,
}

/// Runs the whole plan. An error of any request is an error of the soak.
pub async fn run(plan: &Plan, target: &Arc<Target>) -> Result<Soak, CliError> {
    let begun = Instant::now();
    let done = Arc::new(AtomicUsize::new(0));
    let readings = Arc::new(Mutex::new(Vec::new()));
    let every = plan.requests.div_ceil(READINGS);
    let ends = in_turn(plan.streams, plan.requests, |number| {
        let (target, done, readings, plan) = (target.clone(), done.clone(), readings.clone(), *plan);
        async move {
            let end = one(&target, plan.seed.wrapping_add(number as u64)).await?;
            let done = done.fetch_add(1, Ordering::Relaxed) + 1;
            if done.is_multiple_of(every) {
                let Levels { resident, kept, .. } = target.levels().await?;
                tell(format_args!("{done} of {} done, {:.1} MiB resident", plan.requests, mebi(resident)));
                readings.lock().await.push(Reading { done, resident, kept });
            }
            Ok(end)
        }
    })
    .await?;
    let seconds = begun.elapsed().as_secs_f64();
    let finished = ends.iter().filter(|end| matches!(end, End::Finished)).count();
    let mut readings = std::mem::take(&mut *readings.lock().await);
    readings.sort_by_key(|reading| reading.done);
    Ok(Soak {
        model: target.model().to_owned(),
        place: target.place().to_owned(),
        finished,
        given_up: ends.len() - finished,
        seconds,
        readings,
        left: settle(target).await?,
    })
}

/// Asks one short question and, one time in three, leaves before the end.
async fn one(target: &Target, seed: u64) -> Result<End, CliError> {
    let dice = mix(seed);
    let prompt = PROMPTS[(dice % PROMPTS.len() as u64) as usize];
    // What is worn out here is coming and going, so the work in between is kept short.
    let short = Question::chat(prompt, seed, 1 + (dice >> 8) as usize % 64);
    let question = Question { steps: Some(1 + (dice >> 16) as usize % 2), ..short };
    if !(dice >> 20).is_multiple_of(3) {
        target.ask(&question).await?;
        return Ok(End::Finished);
    }
    let patience = Duration::from_millis((dice >> 32) % 1000);
    match tokio::time::timeout(patience, target.ask(&question)).await {
        Ok(answer) => answer.map(|_| End::Finished),
        Err(_) => Ok(End::GivenUp),
    }
}

/// Waits a little until nothing runs any more: those given up last are dropped before the next pass.
async fn settle(target: &Target) -> Result<Levels, CliError> {
    let mut levels = target.levels().await?;
    for _ in 0..100 {
        if levels.is_idle() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
        levels = target.levels().await?;
    }
    Ok(levels)
}

fn mebi(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// Well mixed bits of a number (the finaliser of SplitMix64).
fn mix(number: u64) -> u64 {
    let mut x = number.wrapping_add(0x9E37_79B9_7F4A_7C15);
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

impl Soak {
    /// Memory at the end of the warm-up and in the last quarter, medians of some readings each: single ones are restless.
    fn growth(&self) -> Option<(u64, u64)> {
        let median = |readings: &[Reading]| {
            let mut own: Vec<u64> = readings.iter().map(Reading::own).collect();
            own.sort_unstable();
            own.get(own.len() / 2).copied()
        };
        let last = self.readings.len() - self.readings.len().div_ceil(4);
        let warm = median(self.readings.get(WARM_UP..2 * WARM_UP)?)?;
        Some((warm, median(self.readings.get(last..)?)?)).filter(|(warm, _)| *warm > 0)
    }

    /// An error if something is left behind, or if memory has grown.
    pub fn verdict(&self) -> Result<(), CliError> {
        if !self.left.is_idle() {
            return Err(CliError::Measurement(format!("something is left behind: {:?}", self.left)));
        }
        match self.growth() {
            Some((warm, end)) if end as f64 > warm as f64 * (1.0 + UNREST) => {
                Err(CliError::Measurement(format!("memory has grown from {warm} to {end} bytes")))
            }
            _ => Ok(()),
        }
    }

    /// For programs.
    pub fn json(&self) -> Value {
        let reading = |reading: &Reading| json!({"requests": reading.done, "resident_bytes": reading.resident, "kept_bytes": reading.kept});
        json!({
            "canvasd": env!("CARGO_PKG_VERSION"),
            "model": self.model,
            "place": self.place,
            "finished": self.finished,
            "given_up": self.given_up,
            "seconds": self.seconds,
            "readings": self.readings.iter().map(reading).collect::<Vec<_>>(),
            "left": {"waiting": self.left.waiting, "running": self.left.running, "kv_used_bytes": self.left.kv_used},
        })
    }

    /// For people.
    pub fn table(&self) -> String {
        use std::fmt::Write;
        let mut table = format!("{} on {}\n  requests  resident MiB  kept prefixes MiB\n", self.model, self.place);
        for reading in &self.readings {
            // Writing to a string cannot fail.
            let (resident, kept) = (mebi(reading.resident), mebi(reading.kept));
            let _ = writeln!(table, "{:>10}  {resident:>12.1}  {kept:>17.1}", reading.done);
        }
        let _ = writeln!(
            table,
            "{} finished, {} given up, {:.0} s; left: {} waiting, {} running, {} bytes of keys and values",
            self.finished, self.given_up, self.seconds, self.left.waiting, self.left.running, self.left.kv_used
        );
        table
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn soak(resident: impl Fn(usize) -> u64, running: f64) -> Soak {
        Soak {
            model: "m".into(),
            place: "p".into(),
            finished: 60,
            given_up: 40,
            seconds: 1.0,
            readings: (1..=READINGS).map(|n| Reading { done: 5 * n, resident: resident(n), kept: 0 }).collect(),
            left: Levels { waiting: 0.0, running, kv_used: 0.0, kept: 0, resident: 0 },
        }
    }

    #[test]
    fn growth_after_the_warm_up_is_told_from_unrest() {
        assert!(soak(|n| 100_000_000 + if n < WARM_UP { 0 } else { 9_000_000 }, 0.0).verdict().is_ok());
        assert!(soak(|n| 100_000_000 + 20_000_000 * (n % 3 / 2) as u64, 0.0).verdict().is_ok());
        let grown = soak(|n| 100_000_000 + 500_000 * n as u64, 0.0);
        assert!(grown.verdict().unwrap_err().to_string().starts_with("memory has grown"));
        let mut kept = grown;
        kept.readings.iter_mut().for_each(|reading| reading.kept = reading.resident - 100_000_000);
        assert!(kept.verdict().is_ok(), "prefixes that are kept are no leak");
        assert!(matches!(soak(|_| 1, 1.0).verdict(), Err(CliError::Measurement(what)) if what.contains("left behind")));
        assert!(soak(|_| 0, 0.0).verdict().is_ok(), "where the system tells nothing, nothing is claimed");
    }

    #[test]
    fn both_forms_hold_every_reading() {
        let report = soak(|n| n as u64, 0.0);
        assert_eq!(report.json()["readings"].as_array().unwrap().len(), READINGS);
        assert_eq!(report.table().lines().count(), READINGS + 3);
    }
}

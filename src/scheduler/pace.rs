//! How fast the queue moves, for the estimate that whoever is refused is told.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Mean time between two admissions while somebody waits, in microseconds; 0 while unknown.
#[derive(Debug, Default)]
pub(super) struct Pace(AtomicU64);

impl Pace {
    /// Takes in the time between an admission and the one before.
    pub(super) fn note(&self, interval: Duration) {
        let new = interval.as_micros().min(u128::from(u32::MAX)) as u64;
        let mean = self.0.load(Ordering::Relaxed);
        let mean = if mean == 0 { new } else { (7 * mean + new) / 8 };
        self.0.store(mean.max(1), Ordering::Relaxed);
    }

    /// How long so many admissions take; no time while nothing is known.
    pub(super) fn time_for(&self, admissions: usize) -> Duration {
        Duration::from_micros(self.0.load(Ordering::Relaxed).saturating_mul(admissions as u64))
    }
}

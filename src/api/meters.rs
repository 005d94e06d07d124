//! Counts of the HTTP side, in the OpenMetrics text form beside the scheduler's.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Upper bounds of the duration histogram, seconds.
const BOUNDS: [f64; 10] = [0.005, 0.02, 0.1, 0.25, 1.0, 2.5, 10.0, 30.0, 120.0, 600.0];

/// Requests by route and status, and how long their heads took.
#[derive(Debug)]
pub(crate) struct Meters(Mutex<Counts>);

#[derive(Debug, Default)]
struct Counts {
    requests: BTreeMap<(&'static str, String, u16), u64>,
    durations: BTreeMap<String, Histogram>,
}

#[derive(Debug, Default)]
struct Histogram {
    within: [u64; BOUNDS.len()],
    count: u64,
    seconds: f64,
}

impl Counts {
    fn request(&mut self, method: &'static str, route: &str, status: u16) {
        *self.requests.entry((method, route.to_owned(), status)).or_default() += 1;
    }
}

impl Meters {
    pub(crate) fn new() -> Meters {
        Meters(Mutex::new(Counts::default()))
    }

    /// Counts one answered request. `route` is a route's pattern, never a client's path, so that there are few of them.
    pub(crate) fn answered(&self, method: &'static str, route: &str, status: u16, took: Duration) {
        let mut counts = self.counts();
        counts.request(method, route, status);
        let histogram = counts.durations.entry(route.to_owned()).or_default();
        let seconds = took.as_secs_f64();
        histogram.count += 1;
        histogram.seconds += seconds;
        for (bound, within) in BOUNDS.iter().zip(&mut histogram.within) {
            *within += u64::from(seconds <= *bound);
        }
    }

    /// Counts one whose client left before the head, and so has no time until it.
    pub(crate) fn left(&self, method: &'static str, route: &str, status: u16) {
        self.counts().request(method, route, status);
    }

    /// A panic while counting can at worst lose a count.
    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The counts as text.
    pub(crate) fn render(&self) -> String {
        let counts = self.counts();
        let mut text =
            String::from("# HELP canvasd_http_requests Requests answered.\n# TYPE canvasd_http_requests counter\n");
        // Writing to a string cannot fail.
        for ((method, route, status), count) in &counts.requests {
            let _ = writeln!(
                text,
                "canvasd_http_requests_total{{method=\"{method}\",route=\"{route}\",status=\"{status}\"}} {count}"
            );
        }
        text.push_str("# HELP canvasd_http_head_seconds Time until the head of the response.\n");
        text.push_str("# TYPE canvasd_http_head_seconds histogram\n");
        for (route, histogram) in &counts.durations {
            for (bound, within) in BOUNDS.iter().zip(histogram.within) {
                let _ = writeln!(text, "canvasd_http_head_seconds_bucket{{route=\"{route}\",le=\"{bound}\"}} {within}");
            }
            let Histogram { count, seconds, .. } = histogram;
            let _ = writeln!(text, "canvasd_http_head_seconds_bucket{{route=\"{route}\",le=\"+Inf\"}} {count}");
            let _ = writeln!(text, "canvasd_http_head_seconds_sum{{route=\"{route}\"}} {seconds}");
            let _ = writeln!(text, "canvasd_http_head_seconds_count{{route=\"{route}\"}} {count}");
        }
        text
    }
}

//! The signals that ask the program to stop.
//!
//! The first process of a container is not ended by a signal unless it receives it. So they are received from the start,
//! and work that may take long is waited for beside them.

use std::time::{Duration, Instant};

use super::CliError;

/// A signal that comes again so soon is the same wish delivered twice: `timeout` signals its child and then the group that
/// the child is in.
const TWICE: Duration = Duration::from_millis(500);

/// SIGTERM and ctrl-C; received instead of ending the process, from the moment this exists.
pub struct Signals {
    #[cfg(unix)]
    terminate: tokio::signal::unix::Signal,
    #[cfg(unix)]
    interrupt: tokio::signal::unix::Signal,
    last: Last,
}

/// The last one that counted, and when it came.
#[derive(Debug, Default)]
struct Last(Option<(&'static str, Instant)>);

impl Last {
    /// Whether this one counts.
    fn count(&mut self, name: &'static str, now: Instant) -> bool {
        let again = self.0.is_some_and(|(last, at)| last == name && now.saturating_duration_since(at) < TWICE);
        if !again {
            self.0 = Some((name, now));
        }
        !again
    }
}

impl Signals {
    /// Begins to receive them; needs a runtime.
    pub fn new() -> Result<Signals, CliError> {
        #[cfg(unix)]
        {
            use tokio::signal::unix::{SignalKind, signal};
            let receive = |kind| signal(kind).map_err(CliError::io("signals cannot be received"));
            Ok(Signals {
                terminate: receive(SignalKind::terminate())?,
                interrupt: receive(SignalKind::interrupt())?,
                last: Last::default(),
            })
        }
        #[cfg(not(unix))]
        Ok(Signals { last: Last::default() })
    }

    /// Waits for the next one and gives its name. What comes twice at once is one.
    pub async fn next(&mut self) -> &'static str {
        loop {
            let name = self.received().await;
            if self.last.count(name, Instant::now()) {
                return name;
            }
        }
    }

    async fn received(&mut self) -> &'static str {
        #[cfg(unix)]
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "ctrl-C",
        }
        #[cfg(not(unix))]
        {
            // Where the handler cannot be set, ctrl-C ends the process by itself.
            if tokio::signal::ctrl_c().await.is_err() {
                std::future::pending::<()>().await;
            }
            "ctrl-C"
        }
    }

    /// What work that blocks comes to, or the name of the signal that came first: the work is then left alone, and the
    /// runtime must not wait for it ([`super::block_on`] does not).
    pub async fn or<T: Send + 'static>(
        &mut self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, &'static str> {
        let working = tokio::task::spawn_blocking(work);
        tokio::select! {
            done = working => match done {
                Ok(done) => Ok(done),
                // Nobody cancels it, so it panicked, which is no less a panic here.
                Err(error) => std::panic::resume_unwind(error.into_panic()),
            },
            name = self.next() => Err(name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_delivered_twice_is_one() {
        let begun = Instant::now();
        let mut last = Last::default();
        let mut at = |name, ms| last.count(name, begun + Duration::from_millis(ms));
        assert!(at("SIGTERM", 0));
        assert!(!at("SIGTERM", 1) && !at("SIGTERM", 499));
        // Another one is another wish, and so is the same one later.
        assert!(at("ctrl-C", 499));
        assert!(at("ctrl-C", 1000));
    }
}

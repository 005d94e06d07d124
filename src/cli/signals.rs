//! The signals that ask the program to stop.
//!
//! The first process of a container is not ended by a signal unless it receives it. So they are received from the start,
//! and work that may take long is waited for beside them.

use super::CliError;

/// SIGTERM and ctrl-C; received instead of ending the process, from the moment this exists.
pub struct Signals {
    #[cfg(unix)]
    terminate: tokio::signal::unix::Signal,
    #[cfg(unix)]
    interrupt: tokio::signal::unix::Signal,
}

impl Signals {
    /// Begins to receive them; needs a runtime.
    pub fn new() -> Result<Signals, CliError> {
        #[cfg(unix)]
        {
            use tokio::signal::unix::{SignalKind, signal};
            let receive = |kind| signal(kind).map_err(CliError::io("signals cannot be received"));
            Ok(Signals { terminate: receive(SignalKind::terminate())?, interrupt: receive(SignalKind::interrupt())? })
        }
        #[cfg(not(unix))]
        Ok(Signals {})
    }

    /// Waits for the next one and gives its name.
    pub async fn next(&mut self) -> &'static str {
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

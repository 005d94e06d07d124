//! Work that takes the processor for long, off the threads that serve connections.
//!
//! Only so much of it goes on at once, and the rest waits for its turn before it holds a thread. Who leaves while waiting
//! costs nothing; what has begun cannot be stopped, and keeps its turn until it is done.

use std::sync::Arc;
use std::thread::available_parallelism;

use axum::http::StatusCode;
use tokio::sync::Semaphore;

use super::error::ApiError;

/// Fewest works that may go on at once: beside a long one there is always another.
const FEWEST: usize = 2;

/// The turns of such work.
pub(crate) struct Aside(Arc<Semaphore>);

impl Aside {
    /// As many turns as this machine has processors.
    pub(crate) fn new() -> Aside {
        Aside::of(available_parallelism().map_or(FEWEST, |processors| processors.get().max(FEWEST)))
    }

    fn of(turns: usize) -> Aside {
        Aside(Arc::new(Semaphore::new(turns)))
    }

    /// Does this work when its turn has come.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, ApiError> {
        let failed = || ApiError::of_status(StatusCode::INTERNAL_SERVER_ERROR);
        let turn = self.0.clone().acquire_owned().await.map_err(|_| failed())?;
        let done = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            work()
        });
        done.await.map_err(|_| failed())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn who_leaves_while_waiting_costs_nothing_and_what_has_begun_keeps_its_turn() {
        let aside = Aside::of(1);
        let (go_on, wait) = mpsc::channel::<()>();
        let done = Arc::new(AtomicUsize::new(0));
        let count = |done: &Arc<AtomicUsize>| {
            let done = done.clone();
            move || done.fetch_add(1, Ordering::SeqCst)
        };
        let soon = Duration::from_millis(20);
        // Its client leaves, and it goes on.
        let begun = aside.run({
            let count = count(&done);
            move || {
                let _ = wait.recv();
                count()
            }
        });
        assert!(tokio::time::timeout(soon, begun).await.is_err());
        for _ in 0..3 {
            assert!(tokio::time::timeout(soon, aside.run(count(&done))).await.is_err(), "two at once");
        }
        go_on.send(()).unwrap();
        // Its turn comes behind the first; those who left had none.
        assert_eq!(aside.run(count(&done)).await, Ok(1));
    }
}

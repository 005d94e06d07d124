//! A small thread pool: scoped parallel loops on threads of its own, apart from the async runtime's.

use std::{
    any::Any,
    cell::Cell,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    thread::JoinHandle,
};

use crate::KernelError;

/// Threads that wait for loops. The thread that calls [`Pool::run`] works too, so a pool of `n` threads starts `n − 1`.
#[derive(Debug)]
pub struct Pool {
    shared: Arc<PoolState>,
    workers: Vec<JoinHandle<()>>,
    /// One loop at a time; calls from other threads wait here.
    turn: Mutex<()>,
}

#[derive(Debug)]
struct PoolState {
    round: Mutex<Round>,
    /// Workers wait here for a round.
    started: Condvar,
    /// The caller waits here for the last worker.
    finished: Condvar,
    /// Next index of the running loop.
    next: AtomicUsize,
    /// `Round::number` for those who look without the lock.
    announced: AtomicU64,
}

#[derive(Debug)]
struct Round {
    /// Grows by one with each loop.
    number: u64,
    /// The loop that may be joined.
    job: Option<Job>,
    /// Workers inside the loop.
    busy: usize,
    panic: Option<String>,
    closing: bool,
}

/// A loop body whose lifetime is erased; valid while its round runs.
#[derive(Debug, Clone, Copy)]
struct Job {
    body: *const (dyn Fn(usize) + Sync),
    count: usize,
}

// SAFETY: the body is `Sync`, and `Pool::run` keeps it alive until every worker has left the round.
unsafe impl Send for Job {}

/// Multiply-adds below which work runs on the calling thread: waking others would cost more.
pub(super) const SMALL: usize = 1 << 17;

/// Looks at the next round before a worker sleeps: some tens of microseconds.
const SPINS: usize = 1000;

thread_local! {
    /// Set while this thread runs a loop body: a loop inside a loop runs on the spot.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

impl Pool {
    /// A pool of `threads` (at least one) threads, the caller included.
    pub fn new(threads: usize) -> Result<Pool, KernelError> {
        let threads = threads.max(1);
        let shared = Arc::new(PoolState {
            round: Mutex::new(Round { number: 0, job: None, busy: 0, panic: None, closing: false }),
            started: Condvar::new(),
            finished: Condvar::new(),
            next: AtomicUsize::new(0),
            announced: AtomicU64::new(0),
        });
        let mut pool = Pool { shared, workers: Vec::new(), turn: Mutex::new(()) };
        for index in 1..threads {
            let shared = Arc::clone(&pool.shared);
            let worker = std::thread::Builder::new()
                .name(format!("kernel-{index}"))
                .spawn(move || work(&shared))
                .map_err(|error| KernelError::Threads(error.to_string()))?;
            pool.workers.push(worker);
        }
        Ok(pool)
    }

    /// Threads that work on a loop, the caller included.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `body(0) … body(count − 1)`, each once, on any thread in any order, and returns when all are done.
    /// A panic in a body ends the loop early and comes back as an error.
    pub fn run(&self, count: usize, body: impl Fn(usize) + Sync) -> Result<(), KernelError> {
        if self.workers.is_empty() || count <= 1 || INSIDE.get() {
            return catch(|| (0..count).for_each(&body)).map_err(KernelError::Panicked);
        }
        let _turn = lock(&self.turn);
        let shared = &*self.shared;
        let body: &(dyn Fn(usize) + Sync) = &body;
        // SAFETY: only the lifetime changes; this function does not return before `busy` is back at zero, and a worker
        // touches the body only while it is counted there; none joins once `job` is taken back.
        let body = unsafe {
            std::mem::transmute::<*const (dyn Fn(usize) + Sync + '_), *const (dyn Fn(usize) + Sync + 'static)>(body)
        };
        let job = Job { body, count };
        shared.next.store(0, Ordering::Relaxed);
        {
            let mut round = lock(&shared.round);
            round.number += 1;
            round.job = Some(job);
            round.panic = None;
            shared.announced.store(round.number, Ordering::Release);
        }
        shared.started.notify_all();
        let own = share(shared, job);
        let mut round = lock(&shared.round);
        // Nobody joins from here on: a worker that wakes late does not hold the caller up.
        round.job = None;
        while round.busy > 0 {
            round = shared.finished.wait(round).unwrap_or_else(PoisonError::into_inner);
        }
        match own.err().or(round.panic.take()) {
            Some(message) => Err(KernelError::Panicked(message)),
            None => Ok(()),
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        lock(&self.shared.round).closing = true;
        self.shared.started.notify_all();
        for worker in self.workers.drain(..) {
            // A worker catches its panics, so there is nothing to learn from its result.
            let _ = worker.join();
        }
    }
}

/// A worker's life: wait for a round, take indices until none is left, report.
fn work(shared: &PoolState) {
    let mut seen = 0;
    loop {
        // Loops follow each other within microseconds during a pass: look a while before going to sleep.
        for _ in 0..SPINS {
            if shared.announced.load(Ordering::Acquire) != seen {
                break;
            }
            std::hint::spin_loop();
        }
        let mut round = lock(&shared.round);
        while round.number == seen && !round.closing {
            round = shared.started.wait(round).unwrap_or_else(PoisonError::into_inner);
        }
        if round.closing {
            return;
        }
        seen = round.number;
        let Some(job) = round.job else { continue };
        round.busy += 1;
        drop(round);
        let result = share(shared, job);
        round = lock(&shared.round);
        if let Err(message) = result {
            round.panic.get_or_insert(message);
        }
        round.busy -= 1;
        if round.busy == 0 {
            shared.finished.notify_one();
        }
    }
}

/// Runs indices of the loop until none is left.
fn share(shared: &PoolState, job: Job) -> Result<(), String> {
    INSIDE.set(true);
    let result = catch(|| {
        loop {
            let index = shared.next.fetch_add(1, Ordering::Relaxed);
            if index >= job.count {
                return;
            }
            // SAFETY: the body lives while the round runs, see `Pool::run`.
            unsafe { (*job.body)(index) };
        }
    });
    INSIDE.set(false);
    if result.is_err() {
        // The others need not go on.
        shared.next.store(job.count, Ordering::Relaxed);
    }
    result
}

fn catch(work: impl FnOnce()) -> Result<(), String> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|payload| describe(&*payload))
}

fn describe(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| payload.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".to_owned())
}

/// The state stays consistent under panics (bodies run outside the lock), so poison carries no news.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn every_index_runs_once() {
        for threads in 1..4 {
            let pool = Pool::new(threads).unwrap();
            for count in [0, 1, 2, 100] {
                let seen: Vec<AtomicUsize> = (0..count).map(|_| AtomicUsize::new(0)).collect();
                pool.run(count, |i| {
                    seen[i].fetch_add(1, Ordering::Relaxed);
                })
                .unwrap();
                assert!(seen.iter().all(|n| n.load(Ordering::Relaxed) == 1), "{threads} threads, {count} indices");
            }
        }
    }

    #[test]
    fn a_panic_is_an_error_and_the_pool_lives_on() {
        for threads in [1, 3] {
            let pool = Pool::new(threads).unwrap();
            let error = pool.run(50, |i| assert!(i != 20, "index twenty")).unwrap_err();
            assert_eq!(error, KernelError::Panicked("index twenty".into()));
            pool.run(50, |_| ()).unwrap();
        }
    }

    #[test]
    fn a_loop_inside_a_loop_runs_on_the_spot() {
        let pool = Pool::new(3).unwrap();
        let sum = AtomicUsize::new(0);
        pool.run(4, |_| {
            pool.run(5, |j| {
                sum.fetch_add(j, Ordering::Relaxed);
            })
            .unwrap();
        })
        .unwrap();
        assert_eq!(sum.load(Ordering::Relaxed), 40);
    }
}

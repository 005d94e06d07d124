//! Where the time of a pass goes: one stopwatch per operation, stopped while nobody asks.

use std::cell::Cell;
use std::time::{Duration, Instant};

/// A part of a pass that is timed by itself. Together they are everything but the planning of the pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Operation {
    /// Tokens to rows.
    Embed,
    /// The MLP that mixes the last step's soft embedding in.
    SelfConditioning,
    /// Queries, keys, values and the output of attention.
    Projections,
    /// Keys and values to their pages.
    Cache,
    /// Scores, softmax and weighted values.
    Attention,
    /// The choice of experts.
    Router,
    /// The chosen experts.
    Experts,
    /// The dense MLP.
    Mlp,
    /// Logits, their statistics and the draw.
    Head,
    /// The next step's soft embedding.
    SoftEmbedding,
    /// Norms, rotations, residuals and scalars.
    Elementwise,
}

impl Operation {
    /// Every operation, in the order in which a pass meets them first.
    pub const ALL: [Operation; 11] = [
        Operation::Embed,
        Operation::SelfConditioning,
        Operation::Elementwise,
        Operation::Projections,
        Operation::Cache,
        Operation::Attention,
        Operation::Router,
        Operation::Experts,
        Operation::Mlp,
        Operation::Head,
        Operation::SoftEmbedding,
    ];

    /// Its name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Operation::Embed => "embed",
            Operation::SelfConditioning => "self_conditioning",
            Operation::Projections => "projections",
            Operation::Cache => "cache",
            Operation::Attention => "attention",
            Operation::Router => "router",
            Operation::Experts => "experts",
            Operation::Mlp => "mlp",
            Operation::Head => "head",
            Operation::SoftEmbedding => "soft_embedding",
            Operation::Elementwise => "elementwise",
        }
    }

    fn place(self) -> usize {
        self as usize
    }
}

const COUNT: usize = Operation::ALL.len();

/// Something of each operation.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Splits<T>([T; COUNT]);

impl<T> Splits<T> {
    /// What belongs to an operation.
    pub fn of(&self, operation: Operation) -> &T {
        &self.0[operation.place()]
    }

    /// The same, to change it.
    pub fn of_mut(&mut self, operation: Operation) -> &mut T {
        &mut self.0[operation.place()]
    }
}

/// The stopwatches of one pass.
#[derive(Debug, Default)]
pub(super) struct Clock {
    running: bool,
    spent: Cell<[Duration; COUNT]>,
}

impl Clock {
    /// Does nothing but call `work`.
    pub fn stopped() -> Clock {
        Clock::default()
    }

    pub fn running() -> Clock {
        Clock { running: true, ..Clock::default() }
    }

    pub fn is_running(&self) -> bool {
        self.running
    }

    /// Calls `work`, and counts its time for `operation`.
    pub fn time<R>(&self, operation: Operation, work: impl FnOnce() -> R) -> R {
        if !self.running {
            return work();
        }
        let begun = Instant::now();
        let result = work();
        self.add(operation, begun.elapsed());
        result
    }

    pub fn add(&self, operation: Operation, time: Duration) {
        let mut spent = self.spent.get();
        spent[operation.place()] += time;
        self.spent.set(spent);
    }

    /// Takes time that turned out to belong to another operation from one.
    pub fn shift(&self, from: Operation, to: Operation, time: Duration) {
        let mut spent = self.spent.get();
        let moved = time.min(spent[from.place()]);
        spent[from.place()] -= moved;
        spent[to.place()] += moved;
        self.spent.set(spent);
    }

    pub fn splits(&self) -> Splits<Duration> {
        Splits(self.spent.get())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_operation_has_a_place_of_its_own() {
        let mut seen = [false; COUNT];
        for operation in Operation::ALL {
            assert!(!std::mem::replace(&mut seen[operation.place()], true), "{}", operation.name());
        }
    }

    #[test]
    fn time_is_counted_where_it_belongs_and_only_while_running() {
        let clock = Clock::running();
        assert_eq!(clock.time(Operation::Mlp, || 7), 7);
        clock.add(Operation::Head, Duration::from_millis(5));
        clock.shift(Operation::Head, Operation::SoftEmbedding, Duration::from_millis(2));
        clock.shift(Operation::Head, Operation::SoftEmbedding, Duration::from_secs(9));
        let splits = clock.splits();
        assert!(*splits.of(Operation::Mlp) > Duration::ZERO);
        assert_eq!(*splits.of(Operation::Head), Duration::ZERO);
        assert_eq!(*splits.of(Operation::SoftEmbedding), Duration::from_millis(5));
        let stopped = Clock::stopped();
        stopped.time(Operation::Mlp, || ());
        assert_eq!(stopped.splits(), Splits::default());
    }
}

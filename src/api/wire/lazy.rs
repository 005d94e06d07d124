//! Lists that are made while they are written down.

use std::fmt;
use std::sync::Arc;

use serde::{Serialize, Serializer};

/// A list whose items are made one by one when it is written: all at once they take many times the memory of what they are
/// made from.
pub struct Lazy<T> {
    length: usize,
    item: Arc<dyn Fn(usize) -> T + Send + Sync>,
}

impl<T> Lazy<T> {
    /// One item of each source.
    pub fn of<S: Send + Sync + 'static>(sources: Vec<S>, item: impl Fn(&S) -> T + Send + Sync + 'static) -> Lazy<T> {
        Lazy { length: sources.len(), item: Arc::new(move |at| item(&sources[at])) }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }
}

impl<T> Clone for Lazy<T> {
    fn clone(&self) -> Lazy<T> {
        Lazy { length: self.length, item: self.item.clone() }
    }
}

impl<T> fmt::Debug for Lazy<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lazy").field("length", &self.length).finish_non_exhaustive()
    }
}

impl<T: Serialize> Serialize for Lazy<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq((0..self.length).map(|at| (self.item)(at)))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// Counts how many of its kind there are.
    #[derive(Serialize)]
    struct Item(usize);

    static ALIVE: AtomicUsize = AtomicUsize::new(0);

    impl Drop for Item {
        fn drop(&mut self) {
            ALIVE.fetch_sub(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn there_is_never_more_than_one_item() {
        let list = Lazy::of(vec![1, 2, 3], |source| {
            assert_eq!(ALIVE.fetch_add(1, Ordering::SeqCst), 0);
            Item(source * 2)
        });
        assert!(!list.is_empty());
        assert_eq!(serde_json::to_string(&list.clone()).unwrap(), "[2,4,6]");
        assert_eq!(ALIVE.load(Ordering::SeqCst), 0);
    }
}

//! What the program logs on a test's own thread, caught for as long as the test looks.

use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};

use tracing::level_filters::LevelFilter;
use tracing::subscriber::DefaultGuard;

/// The lines of the log.
pub struct Caught {
    lines: Lines,
    _guard: DefaultGuard,
}

/// Catches what is logged from now on.
pub fn catch() -> Caught {
    let lines = Lines::default();
    let writer = lines.clone();
    let log = tracing_subscriber::fmt().with_ansi(false).with_max_level(LevelFilter::TRACE);
    let log = log.with_writer(move || writer.clone()).finish();
    Caught { lines, _guard: tracing::subscriber::set_default(log) }
}

impl Caught {
    /// The lines so far that hold `word`.
    pub fn with(&self, word: &str) -> Vec<String> {
        let bytes = self.lines.0.lock().unwrap_or_else(PoisonError::into_inner);
        let text = String::from_utf8_lossy(&bytes);
        text.lines().filter(|line| line.contains(word)).map(str::to_owned).collect()
    }
}

#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

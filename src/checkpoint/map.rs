//! Bytes of a weight file: mapped from disk, or part of this program.
//!
//! The only place in this room with `unsafe`: a file can be mapped only on trust that nobody shortens it meanwhile.

use std::fs::File;
use std::ops::{Deref, Range};
use std::path::Path;

use memmap2::{Advice, Mmap};

use super::error::CheckpointError;

/// A whole file, readable as a slice.
#[derive(Debug)]
pub(crate) enum Bytes {
    /// A file on disk, mapped read-only; pages come when touched and go when memory is short.
    Mapped(Mmap),
    /// Data compiled into the program.
    Embedded(&'static [u8]),
}

impl Bytes {
    /// Maps a regular file.
    ///
    /// # Errors
    /// Where the system refuses, and for anything but a regular file (a folder, a pipe, a device).
    #[allow(unsafe_code)]
    pub(crate) fn map(path: &Path) -> Result<Self, CheckpointError> {
        let refused = |source| CheckpointError::Read { path: path.to_owned(), source };
        let file = File::open(path).map_err(refused)?;
        let meta = file.metadata().map_err(refused)?;
        if !meta.is_file() {
            return Err(refused(std::io::Error::new(std::io::ErrorKind::InvalidInput, "not a regular file")));
        }
        if meta.len() == 0 {
            return Ok(Self::Embedded(&[]));
        }
        // SAFETY: the mapping is private and read-only. Rust's rules ask that the file is not changed while it is
        // mapped; every program that maps weights relies on that, and docs/checkpoints.md says so to the user.
        let map = unsafe { Mmap::map(&file) }.map_err(refused)?;
        Ok(Self::Mapped(map))
    }

    /// Asks the system to read a range ahead of its use, so that a cold file streams instead of faulting page by page.
    pub(crate) fn prefetch(&self, range: Range<usize>) {
        if let Self::Mapped(map) = self {
            // Advice only: a system that cannot follow it still gives the right bytes.
            let _ = map.advise_range(Advice::WillNeed, range.start, range.len());
        }
    }

    /// Lets go of the pages that lie wholly inside a range; reading them again is slow, not wrong.
    #[allow(unsafe_code)]
    pub(crate) fn release(&self, range: Range<usize>) {
        #[cfg(unix)]
        if let Self::Mapped(map) = self {
            const PAGE: usize = 4096;
            let (start, end) = (range.start.next_multiple_of(PAGE), range.end / PAGE * PAGE);
            if start < end {
                // SAFETY: the mapping is read-only and never written, so dropping its pages loses nothing: the next
                // read brings the same bytes from the file.
                let _ = unsafe { map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, start, end - start) };
            }
        }
        #[cfg(not(unix))]
        let _ = range;
    }
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map,
            Self::Embedded(bytes) => bytes,
        }
    }
}

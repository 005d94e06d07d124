//! Which parts of a half-downloaded file are on disk.
//!
//! Beside the data lies a text file: a line with size and block length, then one line per finished block. A line is added
//! after its bytes are written, so a killed process loses no more than the block that each of its connections was in.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// Bytes asked for at a time; the last piece of a file is shorter.
pub(crate) const PIECE: u64 = 8 << 20;
/// Bytes that are noted at a time; a piece is a whole number of blocks.
pub(crate) const BLOCK: u64 = 1 << 20;

/// A file being downloaded.
#[derive(Debug)]
pub(crate) struct Journal {
    data: PathBuf,
    record: PathBuf,
    size: u64,
    finished: BTreeSet<u64>,
    /// `None` until [`Journal::begin`].
    log: Option<File>,
}

impl Journal {
    /// Looks for an earlier attempt at `blob`; writes nothing.
    pub(crate) fn look(blob: &Path, size: u64) -> Self {
        let beside = |ending: &str| {
            let mut name = blob.as_os_str().to_owned();
            name.push(ending);
            PathBuf::from(name)
        };
        let (data, record) = (beside(".canvasd-part"), beside(".canvasd-pieces"));
        let earlier = std::fs::read_to_string(&record).unwrap_or_default();
        let finished = match earlier.strip_prefix(&head(size)) {
            // A line that was cut off has no end and is not counted.
            Some(lines) if data.metadata().is_ok_and(|meta| meta.len() == size) => {
                let whole = lines.rsplit_once('\n').map_or("", |(whole, _)| whole);
                let blocks = whole.lines().filter_map(|line| line.parse().ok());
                blocks.filter(|block| *block < size.div_ceil(BLOCK)).collect()
            }
            _ => BTreeSet::new(),
        };
        Self { data, record, size, finished, log: None }
    }

    /// Makes the files ready to be written to: those of an earlier attempt, or new ones.
    pub(crate) fn begin(&mut self) -> io::Result<()> {
        if self.finished.is_empty() {
            File::create(&self.data)?.set_len(self.size)?;
        }
        // Written anew: a last line that was cut off ("1" of "12") must never be taken for a whole one.
        let mut text = head(self.size);
        self.finished.iter().for_each(|block| text.push_str(&format!("{block}\n")));
        let new = self.record.with_extension("canvasd-new");
        std::fs::write(&new, text)?;
        std::fs::rename(&new, &self.record)?;
        self.log = Some(OpenOptions::new().append(true).open(&self.record)?);
        Ok(())
    }

    /// Pieces still to come, as `(start, end)`; each start is a block's.
    pub(crate) fn missing(&self) -> Vec<(u64, u64)> {
        let mut pieces: Vec<(u64, u64)> = Vec::new();
        for block in (0..self.size.div_ceil(BLOCK)).filter(|block| !self.finished.contains(block)) {
            let (start, end) = (block * BLOCK, ((block + 1) * BLOCK).min(self.size));
            match pieces.last_mut() {
                Some((first, last)) if *last == start && end - *first <= PIECE => *last = end,
                _ => pieces.push((start, end)),
            }
        }
        pieces
    }

    /// Bytes that are there.
    pub(crate) fn present(&self) -> u64 {
        let length = |block: &u64| BLOCK.min(self.size.saturating_sub(block * BLOCK));
        self.finished.iter().map(length).sum()
    }

    /// Where the bytes go.
    pub(crate) fn data(&self) -> &Path {
        &self.data
    }

    /// Notes the blocks that lie wholly between `start`, where one begins, and `position`; gives the start of the one after
    /// them.
    pub(crate) fn note(&mut self, start: u64, position: u64) -> io::Result<u64> {
        let mut lines = String::new();
        let mut at = start;
        while at < position && (at + BLOCK).min(self.size) <= position {
            let block = at / BLOCK;
            self.finished.insert(block);
            lines.push_str(&format!("{block}\n"));
            at = (at + BLOCK).min(self.size);
        }
        match &mut self.log {
            Some(log) if !lines.is_empty() => log.write_all(lines.as_bytes()).map(|()| at),
            _ => Ok(at),
        }
    }

    /// Gives the complete file its name. The bytes go to the disk first: from then on the name stands for them, and a
    /// machine that loses its power must not find holes under it.
    pub(crate) fn keep(self, blob: &Path) -> io::Result<()> {
        OpenOptions::new().write(true).open(&self.data)?.sync_all()?;
        std::fs::rename(&self.data, blob)?;
        std::fs::remove_file(&self.record)
    }

    /// Throws away what there is.
    pub(crate) fn discard(self) -> io::Result<()> {
        std::fs::remove_file(&self.record)?;
        std::fs::remove_file(&self.data)
    }
}

fn head(size: u64) -> String {
    format!("{size} {BLOCK}\n")
}

/// Why a copy ended early.
#[derive(Debug)]
pub(crate) enum Cut {
    /// The sender stopped; asking again may help.
    Source(io::Error),
    /// The disk takes no more.
    Disk(io::Error),
    /// The caller wanted it.
    Stopped,
}

/// Copies a stream to `at` in the data file, up to `end`; `reached` is told each position and says whether to go on.
///
/// # Errors
/// With the position reached, so that the caller can go on from there.
pub(crate) fn copy(
    mut from: impl Read,
    data: &Path,
    at: u64,
    end: u64,
    mut reached: impl FnMut(u64) -> io::Result<bool>,
) -> Result<(), (u64, Cut)> {
    let mut position = at;
    let open = OpenOptions::new().write(true).open(data);
    let seek = |mut file: File| file.seek(SeekFrom::Start(at)).map(|_| file);
    let mut file = open.and_then(seek).map_err(|error| (position, Cut::Disk(error)))?;
    let mut block = vec![0; 128 << 10];
    while position < end {
        let most = block.len().min(usize::try_from(end - position).unwrap_or(usize::MAX));
        let count = match from.read(&mut block[..most]) {
            Ok(0) => {
                let cut = io::Error::new(io::ErrorKind::UnexpectedEof, "the connection was cut");
                return Err((position, Cut::Source(cut)));
            }
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err((position, Cut::Source(error))),
        };
        file.write_all(&block[..count]).map_err(|error| (position, Cut::Disk(error)))?;
        position += count as u64;
        match reached(position) {
            Ok(true) => {}
            Ok(false) => return Err((position, Cut::Stopped)),
            Err(error) => return Err((position, Cut::Disk(error))),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_noted_is_found_again() {
        let folder = tempfile::tempdir().unwrap();
        let blob = folder.path().join("blob");
        let size = 3 * PIECE + 5;
        let mut journal = Journal::look(&blob, size);
        assert!(!journal.data().exists() && journal.present() == 0);
        assert_eq!(journal.missing(), [(0, PIECE), (PIECE, 2 * PIECE), (2 * PIECE, 3 * PIECE), (3 * PIECE, size)]);
        journal.begin().unwrap();
        assert_eq!(journal.note(PIECE, PIECE + 2 * BLOCK + 7).unwrap(), PIECE + 2 * BLOCK);
        assert_eq!(journal.note(PIECE + 2 * BLOCK, PIECE + 3 * BLOCK - 1).unwrap(), PIECE + 2 * BLOCK);
        assert_eq!(journal.note(3 * PIECE, size).unwrap(), size, "the last block is shorter");
        drop(journal);
        let mut again = Journal::look(&blob, size);
        assert_eq!(again.present(), 2 * BLOCK + 5);
        assert_eq!(again.missing()[1], (PIECE + 2 * BLOCK, 2 * PIECE + 2 * BLOCK));
        assert!(again.missing().iter().all(|(start, end)| end - start <= PIECE && start.is_multiple_of(BLOCK)));
        // A line that was being written when the process died is not counted, and does not spoil the next.
        std::fs::write(&again.record, format!("{}9\n1", head(size))).unwrap();
        again = Journal::look(&blob, size);
        assert_eq!(again.present(), BLOCK);
        again.begin().unwrap();
        again.note(0, BLOCK).unwrap();
        drop(again);
        again = Journal::look(&blob, size);
        assert_eq!(again.finished, BTreeSet::from([0, 9]));
        // Another size is another file.
        assert_eq!(Journal::look(&blob, size + 1).present(), 0);
        // Data without its record, or the other way round, is nothing.
        std::fs::remove_file(folder.path().join("blob.canvasd-part")).unwrap();
        assert_eq!(Journal::look(&blob, size).present(), 0);
    }
}

//! Which pieces of a half-downloaded file are on disk.
//!
//! Beside the data lies a text file: a line with size and piece length, then one line per finished piece. A line is added
//! after its bytes are written, so a killed process loses no more than the pieces it was on.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// Bytes of a piece; the last one of a file is shorter.
pub(crate) const PIECE: u64 = 8 << 20;

/// A file being downloaded.
#[derive(Debug)]
pub(crate) struct Journal {
    data: PathBuf,
    record: PathBuf,
    size: u64,
    finished: BTreeSet<u64>,
    log: File,
}

impl Journal {
    /// Takes up an earlier attempt at `blob`, or starts anew. Nothing is written for a file of another size.
    pub(crate) fn open(blob: &Path, size: u64) -> io::Result<Self> {
        let beside = |ending: &str| {
            let mut name = blob.as_os_str().to_owned();
            name.push(ending);
            PathBuf::from(name)
        };
        let (data, record) = (beside(".canvasd-part"), beside(".canvasd-pieces"));
        let head = format!("{size} {PIECE}\n");
        let earlier = std::fs::read_to_string(&record).unwrap_or_default();
        let finished = match earlier.strip_prefix(&head) {
            // A line that was cut off has no end and is not counted.
            Some(lines) if data.metadata().is_ok_and(|meta| meta.len() == size) => {
                let whole = lines.rsplit_once('\n').map_or("", |(whole, _)| whole);
                whole
                    .lines()
                    .filter_map(|line| line.parse().ok())
                    .filter(|piece| *piece < size.div_ceil(PIECE))
                    .collect()
            }
            _ => {
                File::create(&data)?.set_len(size)?;
                std::fs::write(&record, &head)?;
                BTreeSet::new()
            }
        };
        let log = OpenOptions::new().append(true).open(&record)?;
        // If the last line was cut off, the next must not be glued to it.
        if !finished.is_empty() {
            (&log).write_all(b"\n")?;
        }
        Ok(Self { data, record, size, finished, log })
    }

    /// Pieces still to come, as `(start, end)`.
    pub(crate) fn missing(&self) -> Vec<(u64, u64)> {
        let pieces = (0..self.size.div_ceil(PIECE)).filter(|piece| !self.finished.contains(piece));
        pieces.map(|piece| (piece * PIECE, ((piece + 1) * PIECE).min(self.size))).collect()
    }

    /// Bytes that are there.
    pub(crate) fn present(&self) -> u64 {
        self.size - self.missing().iter().map(|(start, end)| end - start).sum::<u64>()
    }

    /// Where the bytes go.
    pub(crate) fn data(&self) -> &Path {
        &self.data
    }

    /// Notes that the piece at `start` is written.
    pub(crate) fn finish(&mut self, start: u64) -> io::Result<()> {
        self.finished.insert(start / PIECE);
        self.log.write_all(format!("{}\n", start / PIECE).as_bytes())
    }

    /// Gives the complete file its name.
    pub(crate) fn keep(self, blob: &Path) -> io::Result<()> {
        std::fs::rename(&self.data, blob)?;
        std::fs::remove_file(&self.record)
    }

    /// Throws away what there is.
    pub(crate) fn discard(self) -> io::Result<()> {
        std::fs::remove_file(&self.record)?;
        std::fs::remove_file(&self.data)
    }
}

/// Copies a stream to `at` in the data file, up to `end`, telling after each block how much came.
///
/// # Errors
/// With the position reached, so that the caller can go on from there.
pub(crate) fn copy(
    mut from: impl Read,
    data: &Path,
    at: u64,
    end: u64,
    mut came: impl FnMut(u64) -> bool,
) -> Result<(), (u64, io::Error)> {
    let mut position = at;
    let open = OpenOptions::new().write(true).open(data);
    let seek = |mut file: File| file.seek(SeekFrom::Start(at)).map(|_| file);
    let mut file = open.and_then(seek).map_err(|error| (position, error))?;
    let mut block = vec![0; 128 << 10];
    while position < end {
        let most = block.len().min(usize::try_from(end - position).unwrap_or(usize::MAX));
        let count = match from.read(&mut block[..most]) {
            Ok(0) => return Err((position, io::Error::new(io::ErrorKind::UnexpectedEof, "the connection was cut"))),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err((position, error)),
        };
        file.write_all(&block[..count]).map_err(|error| (position, error))?;
        position += count as u64;
        if !came(count as u64) {
            return Err((position, io::Error::new(io::ErrorKind::Interrupted, "stopped")));
        }
    }
    Ok(())
}

//! Downloads a checkpoint's files into the cache: several connections, piece by piece, checked at the end.

use std::collections::{HashSet, VecDeque};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::super::error::CheckpointError;
use super::super::folder::{Folder, INDEX};
use super::super::source::{HubName, Source};
use super::cache::{Repo, has_length};
use super::client::{Client, Failure, FileInfo, Listing};
use super::journal::{self, Cut, Journal};
use super::select::{Choice, Chosen};
use super::sum::{Sum, agrees};
use super::{Hub, Phase, Progress, Trust, refused, select};

/// Connections at a time.
const WORKERS: usize = 4;
/// Attempts without a single byte of progress before giving up.
const ATTEMPTS: u32 = 5;
/// Disk space that is left free.
const SPARE: u64 = 64 << 20;
/// Shortest time between two reports.
const REPORT_EVERY: Duration = Duration::from_millis(100);

/// One file on its way.
struct Download {
    info: FileInfo,
    blob: PathBuf,
    /// `None` once the file is complete.
    journal: Mutex<Option<Journal>>,
}

/// A piece of a file: index of the download, first byte, end.
type Piece = (usize, u64, u64);

/// Everything the workers share.
struct Shared<'a> {
    client: &'a Client<'a>,
    name: &'a HubName,
    downloads: &'a [Download],
    queue: Mutex<VecDeque<Piece>>,
    failed: Mutex<Option<CheckpointError>>,
    stop: AtomicBool,
    meter: Meter<'a>,
}

/// Counts bytes and reports them.
struct Meter<'a> {
    report: &'a (dyn Fn(&Progress) + Sync),
    done: AtomicU64,
    total: u64,
    resumed: u64,
    begun_at: u64,
    last: Mutex<Instant>,
}

impl Meter<'_> {
    fn add(&self, bytes: u64) {
        self.done.fetch_add(bytes, Ordering::Relaxed);
        // Whoever finds the clock taken leaves the report to the one who has it.
        if let Ok(mut last) = self.last.try_lock()
            && last.elapsed() >= REPORT_EVERY
        {
            *last = Instant::now();
            self.say(Phase::Transfer);
        }
    }

    fn say(&self, phase: Phase) {
        let done = self.done.load(Ordering::Relaxed);
        (self.report)(&Progress { done, total: self.total, resumed: self.resumed, begun_at: self.begun_at, phase });
    }
}

/// See [`Hub::fetch`] and [`Hub::mend`].
pub(super) fn fetch(
    hub: &Hub,
    name: &HubName,
    trust: Trust,
    report: &(dyn Fn(&Progress) + Sync),
) -> Result<Source, CheckpointError> {
    let client = Client::new(hub, name);
    let listing = patiently(name, || client.listing())?;
    let repo = Repo::of(&hub.cache, &name.repo);
    let chosen = chosen(&client, name, &repo, &listing)?;
    let cache = |error: std::io::Error| on_disk(name, &hub.cache, &error);
    repo.create().map_err(cache)?;
    let _lock = lock(&repo, name)?;

    let mut infos = Vec::new();
    for file in &chosen.files {
        infos.push(patiently(name, || client.file_info(&listing.commit, file))?);
    }
    if trust == Trust::Sum {
        weed(name, &repo, &listing.commit, &infos, report)?;
    }
    warn_of_no_sums(&infos);
    let downloads = downloads(&repo, &listing.commit, &infos);
    let link = |wanted: &dyn Fn(&str) -> bool| {
        let mut wanted = infos.iter().filter(|info| wanted(&info.name));
        wanted.try_for_each(|info| repo.link(&listing.commit, &info.name, &info.blob, info.size)).map_err(cache)
    };
    let snapshot = repo.snapshot(&listing.commit);
    // A GGUF file is described by itself alone.
    let described = || match chosen.source(&snapshot) {
        Source::Folder(folder) => {
            link(&|file| !select::is_weights(file))?;
            super::super::described(&Folder::Disk(folder)).map(|_| ())
        }
        _ => Ok(()),
    };
    transfer(hub, name, &client, &infos, &downloads, &described, report)?;
    link(&|_| true)?;
    // Two files of one sum and two lengths, or another index than the one that was asked first.
    if !(infos.iter().all(|info| has_length(&snapshot.join(&info.name), info.size)) && chosen.complete(&snapshot)) {
        let why = "what the hub says of its files does not fit together, so they cannot be used; do not trust";
        return Err(refused(name, format!("{why} {}", hub.endpoint)));
    }
    repo.remember(&name.revision, &listing.commit).map_err(cache)?;
    if name.file.is_none() {
        repo.note_meaning(&listing.commit, &chosen.files).map_err(cache)?;
    }
    Ok(chosen.source(&snapshot))
}

/// Which files to have, with the shards that an index names.
fn chosen(client: &Client<'_>, name: &HubName, repo: &Repo, listing: &Listing) -> Result<Chosen, CheckpointError> {
    let because = |(Choice::Nothing(why) | Choice::Several(why))| refused(name, why);
    let mut chosen = select::choose(name, &listing.files).map_err(because)?;
    if chosen.sharded() {
        let index = index(client, name, repo, &listing.commit)?;
        chosen.add_shards(&index, &listing.files).map_err(because)?;
    }
    Ok(chosen)
}

/// The list of shards, from the cache where it is there.
fn index(client: &Client<'_>, name: &HubName, repo: &Repo, commit: &str) -> Result<Vec<u8>, CheckpointError> {
    let info = patiently(name, || client.file_info(commit, INDEX))?;
    let blob = repo.blob(&info.blob);
    let read = |source| CheckpointError::Read { path: blob.clone(), source };
    if has_length(&blob, info.size) && agrees(&blob, &info.etag, info.size).map_err(read)? {
        return std::fs::read(&blob).map_err(read);
    }
    patiently(name, || client.whole(&info))
}

/// Says of which files nobody will know whether their bytes are the right ones.
fn warn_of_no_sums(infos: &[FileInfo]) {
    for info in infos.iter().filter(|info| Sum::of(&info.etag).is_none()) {
        tracing::warn!(file = info.name, "the hub tells no sum of this file; its length is all that is checked");
    }
}

/// Deletes what the cache has of these files with other bytes than their sums promise.
fn weed(
    name: &HubName,
    repo: &Repo,
    commit: &str,
    infos: &[FileInfo],
    report: &(dyn Fn(&Progress) + Sync),
) -> Result<(), CheckpointError> {
    let total = infos.iter().fold(0, |total: u64, info| total.saturating_add(info.size));
    let mut done = 0;
    for info in infos {
        report(&Progress { done, total, resumed: 0, begun_at: 0, phase: Phase::Verify });
        // A snapshot has links, or files of its own where links are not to be had.
        for path in [repo.blob(&info.blob), repo.snapshot(commit).join(&info.name)] {
            if !path.symlink_metadata().is_ok_and(|meta| meta.is_file()) {
                continue;
            }
            let read = |source| CheckpointError::Read { path: path.clone(), source };
            if !agrees(&path, &info.etag, info.size).map_err(read)? {
                tracing::warn!(file = info.name, "the cached copy is damaged; it is fetched anew");
                std::fs::remove_file(&path).map_err(|error| on_disk(name, &path, &error))?;
            }
        }
        done = done.saturating_add(info.size);
    }
    Ok(())
}

/// The error for a file of the cache that cannot be written.
fn on_disk(name: &HubName, path: &Path, error: &std::io::Error) -> CheckpointError {
    let advice = match error.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
            "; make room and start again, and it goes on from here"
        }
        std::io::ErrorKind::PermissionDenied | std::io::ErrorKind::ReadOnlyFilesystem => {
            "; set HF_HUB_CACHE to a folder that can be written, or HF_HUB_OFFLINE=1 to use what is there as it is"
        }
        _ => "",
    };
    refused(name, format!("{} cannot be written: {error}{advice}", path.display()))
}

/// One download into a repository's folder at a time; the lock ends with the process.
fn lock(repo: &Repo, name: &HubName) -> Result<File, CheckpointError> {
    let path = repo.lock();
    let file = File::create(&path).map_err(|error| on_disk(name, &path, &error))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => {
            Err(refused(name, "another process is downloading it; wait for that one"))
        }
        // A file system without locks (some network shares): better unguarded than not at all.
        Err(std::fs::TryLockError::Error(_)) => Ok(file),
    }
}

/// The files that are not yet in the cache, each once.
fn downloads(repo: &Repo, commit: &str, infos: &[FileInfo]) -> Vec<Download> {
    let mut seen = HashSet::new();
    let mut list = Vec::new();
    for info in infos.iter().filter(|info| seen.insert(&info.blob)) {
        let blob = repo.blob(&info.blob);
        // Another program names the blob otherwise where the etag is no sum: then the commit's own file is what tells.
        let linked = Sum::of(&info.etag).is_none() && has_length(&repo.snapshot(commit).join(&info.name), info.size);
        if linked || has_length(&blob, info.size) {
            continue;
        }
        let journal = Mutex::new(Some(Journal::look(&blob, info.size)));
        list.push(Download { info: info.clone(), blob, journal });
    }
    list
}

/// Brings the files that say what the model is, and the weights only if `described` finds that it can be served.
fn transfer(
    hub: &Hub,
    name: &HubName,
    client: &Client<'_>,
    infos: &[FileInfo],
    downloads: &[Download],
    described: &dyn Fn() -> Result<(), CheckpointError>,
    report: &(dyn Fn(&Progress) + Sync),
) -> Result<(), CheckpointError> {
    let partial: u64 =
        downloads.iter().filter_map(|download| held(&download.journal).as_ref().map(Journal::present)).sum();
    let total = infos.iter().fold(0, |total: u64, info| total.saturating_add(info.size));
    let missing = downloads.iter().fold(0, |total: u64, download| total.saturating_add(download.info.size));
    let needed = missing.saturating_sub(partial);
    // Before anything is written, or listed piece by piece: a size is what somebody says.
    check_space(hub, name, needed)?;
    let meter = Meter {
        report,
        done: AtomicU64::new(total.saturating_sub(needed)),
        total,
        resumed: partial,
        begun_at: total.saturating_sub(needed),
        last: Mutex::new(Instant::now()),
    };
    meter.say(Phase::Transfer);
    let stop = AtomicBool::new(false);
    let (queue, failed) = (Mutex::new(VecDeque::new()), Mutex::new(None));
    let shared = Shared { client, name, downloads, queue, failed, stop, meter };
    let weights = |download: &Download| select::is_weights(&download.info.name);
    shared.bring(|download| !weights(download))?;
    if downloads.iter().any(weights) {
        described()?;
        shared.bring(weights)?;
    }
    shared.meter.say(Phase::Done);
    Ok(())
}

/// Refuses a download that the disk cannot hold.
fn check_space(hub: &Hub, name: &HubName, needed: u64) -> Result<(), CheckpointError> {
    #[cfg(unix)]
    if let Ok(disk) = rustix::fs::statvfs(&hub.cache) {
        let free = disk.f_bavail.saturating_mul(disk.f_frsize);
        if needed.saturating_add(SPARE) > free && needed > 0 {
            let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
            let why = format!(
                "{:.2} GiB are to be downloaded, and {} has {:.2} GiB free; make room, or set HF_HUB_CACHE to another disk",
                gib(needed),
                hub.cache.display(),
                gib(free)
            );
            return Err(refused(name, why));
        }
    }
    #[cfg(not(unix))]
    let _ = (hub, name, needed);
    Ok(())
}

impl Shared<'_> {
    /// Brings some of the files.
    fn bring(&self, wanted: impl Fn(&Download) -> bool) -> Result<(), CheckpointError> {
        for (index, download) in self.downloads.iter().enumerate().filter(|(_, download)| wanted(download)) {
            let mut journal = held(&download.journal);
            let Some(begun) = journal.as_mut() else { continue };
            begun.begin().map_err(|error| on_disk(self.name, &download.blob, &error))?;
            held(&self.queue).extend(begun.missing().into_iter().map(|(start, end)| (index, start, end)));
            drop(journal);
            // A file that was complete but for its last step (or is empty) has no piece to set it off.
            self.conclude(download)?;
        }
        std::thread::scope(|scope| {
            for _ in 0..WORKERS {
                scope.spawn(|| self.work());
            }
        });
        held(&self.failed).take().map_or(Ok(()), Err)
    }

    /// Takes pieces until none are left or something went wrong.
    fn work(&self) {
        while !self.stop.load(Ordering::Relaxed) {
            let Some(piece) = held(&self.queue).pop_front() else { return };
            if let Err(error) = self.piece(piece) {
                self.stop.store(true, Ordering::Relaxed);
                held(&self.failed).get_or_insert(error);
                return;
            }
        }
    }

    /// Fetches one piece, going on after cuts, and finishes the file if it was the last.
    fn piece(&self, (index, start, end): Piece) -> Result<(), CheckpointError> {
        let download = &self.downloads[index];
        let Some(data) = held(&download.journal).as_ref().map(|journal| journal.data().to_owned()) else {
            return Ok(());
        };
        let (mut at, mut noted, mut attempt) = (start, start, 0);
        while at < end {
            let (reached, why, wait) = match self.client.range(&download.info, at, end) {
                Err(Failure::Final(error)) => return Err(error),
                Err(Failure::Passing(why, wait)) => (at, why, wait),
                Ok(body) => {
                    let mut last = at;
                    let copied = journal::copy(body, &data, at, end, |position| {
                        self.meter.add(position - std::mem::replace(&mut last, position));
                        if let Some(journal) = held(&download.journal).as_mut() {
                            noted = journal.note(noted, position)?;
                        }
                        Ok(!self.stop.load(Ordering::Relaxed))
                    });
                    match copied {
                        Ok(()) => break,
                        Err((_, Cut::Stopped)) => return Ok(()),
                        Err((_, Cut::Disk(error))) => return Err(on_disk(self.name, &data, &error)),
                        Err((reached, Cut::Source(error))) => {
                            (reached, format!("{}: {error}", download.info.name), None)
                        }
                    }
                }
            };
            attempt = if reached > at { 1 } else { attempt + 1 };
            at = reached;
            if attempt >= ATTEMPTS {
                return Err(refused(self.name, format!("{why}; start again, and it goes on from here")));
            }
            tracing::debug!(file = download.info.name, at, %why, "a connection broke; trying again");
            self.pause(wait.unwrap_or(Duration::from_millis(250) * 2u32.pow(attempt)));
        }
        self.conclude(download)
    }

    /// Waits, but not past the end of the whole.
    fn pause(&self, time: Duration) {
        let until = Instant::now() + time;
        while Instant::now() < until && !self.stop.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Checks a file whose pieces are all there, and gives it its name.
    fn conclude(&self, download: &Download) -> Result<(), CheckpointError> {
        let Some(journal) = held(&download.journal).take_if(|journal| journal.missing().is_empty()) else {
            return Ok(());
        };
        self.meter.say(Phase::Verify);
        let data = journal.data().to_owned();
        let read = |source| CheckpointError::Read { path: data.clone(), source };
        let FileInfo { name, etag, size, .. } = &download.info;
        if !agrees(&data, etag, *size).map_err(read)? {
            journal.discard().map_err(read)?;
            let why = format!("the checksum of {name} does not agree; the damaged copy was deleted, fetch it again");
            return Err(refused(self.name, why));
        }
        journal.keep(&download.blob).map_err(read)
    }
}

/// Asks again while failures may pass.
fn patiently<T>(name: &HubName, mut ask: impl FnMut() -> Result<T, Failure>) -> Result<T, CheckpointError> {
    let mut attempt = 0;
    loop {
        match ask() {
            Ok(value) => return Ok(value),
            Err(Failure::Final(error)) => return Err(error),
            Err(Failure::Passing(why, wait)) => {
                attempt += 1;
                if attempt >= 3 {
                    return Err(CheckpointError::Unreachable { name: name.to_string(), why });
                }
                std::thread::sleep(wait.unwrap_or(Duration::from_millis(250) * 2u32.pow(attempt)));
            }
        }
    }
}

/// A lock's content. A worker that panicked has not left it half-changed: every critical section is one step.
fn held<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

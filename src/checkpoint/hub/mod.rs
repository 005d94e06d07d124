//! Repositories on the model hub: the standard local cache, and downloads into it.
//!
//! Cache layout and environment variables are those of the hub's own Python client, so that either finds what the other has
//! downloaded. The transfer is built on `ureq` and not on the `hf-hub` crate: its 1.0 brings some 290 crates and a C build
//! of its own, and its 0.x neither checks sums, nor asks for disk space, nor downloads in parallel without an async stack.

mod cache;
#[cfg(feature = "hub")]
mod client;
#[cfg(feature = "hub")]
mod journal;
mod select;
#[cfg(feature = "hub")]
mod sum;
#[cfg(feature = "hub")]
mod transfer;

use std::path::PathBuf;

use super::error::CheckpointError;
use super::source::{HubName, Source};

/// Where the hub is, where its files are kept, and who asks.
#[derive(Clone)]
pub struct Hub {
    /// Address without a slash at its end (`HF_ENDPOINT`).
    endpoint: String,
    /// The cache (`HF_HUB_CACHE`, or `hub` below `HF_HOME`).
    cache: PathBuf,
    /// Access token (`HF_TOKEN`, or the file that a login writes).
    token: Option<String>,
    /// Whether the network must not be used (`HF_HUB_OFFLINE`).
    offline: bool,
}

impl std::fmt::Debug for Hub {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let token = self.token.as_ref().map(|_| "(secret)");
        let Self { endpoint, cache, offline, .. } = self;
        f.debug_struct("Hub")
            .field("endpoint", endpoint)
            .field("cache", cache)
            .field("token", &token)
            .field("offline", offline)
            .finish()
    }
}

/// How far a download is; given to the caller's report function, from several threads, a few times a second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Bytes that are on disk, those of earlier attempts included.
    pub done: u64,
    /// Bytes of all files.
    pub total: u64,
    /// Bytes of half-done files that earlier attempts had left.
    pub resumed: u64,
    /// `done` as it was when this attempt began.
    pub begun_at: u64,
    /// What is going on.
    pub phase: Phase,
}

/// What a download is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Bytes arrive.
    Transfer,
    /// A file is complete and its checksum is being computed.
    Verify,
    /// Everything is in place.
    Done,
}

impl Hub {
    /// The hub as the environment describes it.
    pub fn from_env() -> Self {
        Self::from_vars(|name| std::env::var(name).ok().filter(|value| !value.is_empty()))
    }

    /// As [`Hub::from_env`], with the variables given by a function.
    pub fn from_vars(var: impl Fn(&str) -> Option<String>) -> Self {
        let home = || var("HOME").or_else(|| var("USERPROFILE")).map_or_else(|| PathBuf::from("."), PathBuf::from);
        let hf_home = var("HF_HOME").map(PathBuf::from).unwrap_or_else(|| {
            let caches = var("XDG_CACHE_HOME").map_or_else(|| home().join(".cache"), PathBuf::from);
            caches.join("huggingface")
        });
        let cache = var("HF_HUB_CACHE").or_else(|| var("HUGGINGFACE_HUB_CACHE"));
        let token = var("HF_TOKEN").or_else(|| var("HUGGING_FACE_HUB_TOKEN")).or_else(|| {
            let path = var("HF_TOKEN_PATH").map_or_else(|| hf_home.join("token"), PathBuf::from);
            std::fs::read_to_string(path).ok()
        });
        let yes = |value: String| matches!(value.to_ascii_uppercase().as_str(), "1" | "ON" | "YES" | "TRUE");
        let endpoint = var("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".to_owned());
        Self {
            endpoint: endpoint.trim_end_matches('/').to_owned(),
            cache: cache.map_or_else(|| hf_home.join("hub"), PathBuf::from),
            token: token.map(|token| token.trim().to_owned()).filter(|token| !token.is_empty()),
            offline: var("HF_HUB_OFFLINE").is_some_and(yes),
        }
    }

    /// The local checkpoint of a name: from the cache where it is complete, otherwise downloaded. A hub that does not answer
    /// is done without, with a warning, where a whole checkpoint lies in the cache.
    ///
    /// # Errors
    /// As [`Hub::fetch`]; offline, where the cache has not all of it.
    pub fn locate(&self, name: &HubName, report: &(dyn Fn(&Progress) + Sync)) -> Result<Source, CheckpointError> {
        if let Some(found) = self.cached(name)? {
            return Ok(found);
        }
        match self.fetch(name, report) {
            Err(CheckpointError::Unreachable { name: asked, why }) => match self.lying(name) {
                Ok(Some(found)) => {
                    tracing::warn!("{asked}: {why}; meanwhile what lies in the cache is used, unchecked");
                    Ok(found)
                }
                _ => Err(CheckpointError::Unreachable { name: asked, why }),
            },
            fetched => fetched,
        }
    }

    /// The checkpoint as far as the cache has it whole; never uses the network. A name without a file is known once it has
    /// been fetched; where the hub cannot be asked, it means what lies in the cache.
    ///
    /// # Errors
    /// Where the cache holds several files that the name could mean.
    pub fn cached(&self, name: &HubName) -> Result<Option<Source>, CheckpointError> {
        match self.fetched(name) {
            None if name.file.is_some() || !self.can_ask() => self.lying(name),
            known => Ok(known),
        }
    }

    /// What a fetch has brought for a name without a file, as far as all of it is still there.
    fn fetched(&self, name: &HubName) -> Option<Source> {
        let repo = cache::Repo::of(&self.cache, &name.repo);
        let commit = repo.commit(&name.revision).filter(|_| name.file.is_none())?;
        let (chosen, snapshot) = (select::Chosen { files: repo.meaning(&commit)? }, repo.snapshot(&commit));
        chosen.complete(&snapshot).then(|| chosen.source(&snapshot))
    }

    /// What a name means among the files that lie in the cache, however they came there: a part of the repository, perhaps,
    /// such as one file that was asked for or another program's choice. `None` where they do not make a checkpoint.
    fn lying(&self, name: &HubName) -> Result<Option<Source>, CheckpointError> {
        let repo = cache::Repo::of(&self.cache, &name.repo);
        let Some(commit) = repo.commit(&name.revision) else { return Ok(None) };
        let snapshot = repo.snapshot(&commit);
        match select::choose(name, &cache::files(&snapshot)) {
            Ok(chosen) if chosen.suffices(&snapshot) => Ok(Some(chosen.source(&snapshot))),
            Ok(_) | Err(select::Choice::Nothing(_)) => Ok(None),
            Err(select::Choice::Several(why)) => Err(refused(name, why)),
        }
    }

    /// Whether the hub may, and can, be asked.
    fn can_ask(&self) -> bool {
        cfg!(feature = "hub") && !self.offline
    }

    /// Downloads what is missing of a checkpoint and gives its place in the cache. A download that was cut off, or whose
    /// process was killed, goes on where it stopped.
    ///
    /// # Errors
    /// [`CheckpointError::Hub`] saying what to do: no such repository, no access, no space, damaged data; always in a build
    /// without the feature `hub`. [`CheckpointError::Unreachable`] where the hub does not answer.
    pub fn fetch(&self, name: &HubName, report: &(dyn Fn(&Progress) + Sync)) -> Result<Source, CheckpointError> {
        self.bring(name, Trust::Length, report)
    }

    /// As [`Hub::fetch`], and reads what the cache has of the checkpoint already: a file whose bytes are not those that its
    /// sum promises is deleted and fetched anew.
    ///
    /// # Errors
    /// As [`Hub::fetch`].
    pub fn mend(&self, name: &HubName, report: &(dyn Fn(&Progress) + Sync)) -> Result<Source, CheckpointError> {
        self.bring(name, Trust::Sum, report)
    }

    #[cfg(feature = "hub")]
    fn bring(
        &self,
        name: &HubName,
        trust: Trust,
        report: &(dyn Fn(&Progress) + Sync),
    ) -> Result<Source, CheckpointError> {
        if self.offline {
            return Err(refused(
                name,
                format!("it is not (wholly) in {}, and HF_HUB_OFFLINE forbids downloading it", self.cache.display()),
            ));
        }
        transfer::fetch(self, name, trust, report)
    }

    /// Without the feature `hub` nothing can be downloaded.
    #[cfg(not(feature = "hub"))]
    fn bring(&self, name: &HubName, _: Trust, _: &(dyn Fn(&Progress) + Sync)) -> Result<Source, CheckpointError> {
        let Self { endpoint, cache, .. } = self;
        let why = "this program was built without downloads (feature hub)";
        Err(refused(name, format!("it is not in {}, and {why}; download it from {endpoint} first", cache.display())))
    }
}

/// What a file in the cache is taken to be whole by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trust {
    /// Its length: it got its name when its sum had been checked.
    Length,
    /// The sum of its bytes, computed anew.
    Sum,
}

fn refused(name: &HubName, why: impl Into<String>) -> CheckpointError {
    CheckpointError::Hub { name: name.to_string(), why: why.into() }
}

#[cfg(test)]
mod tests;

//! The hub's HTTP protocol: list a repository, ask for a file's etag, read a range of it.

use std::io::Read;
use std::time::Duration;

use serde::Deserialize;
use sha2::Digest;
use ureq::http::{HeaderMap, Response, StatusCode};
use ureq::{Agent, Body};

use super::super::error::{CheckpointError, shown};
use super::super::source::HubName;
use super::cache::{is_commit, stays_inside};
use super::sum::Sum;
use super::{Hub, refused};

/// A listing of thousands of files stays below this.
const LONGEST_LISTING: u64 = 64 << 20;
/// Lists of shards name each tensor, of which there are some thousands.
const LONGEST_INDEX: u64 = 64 << 20;
/// Redirects within the hub (renamed repositories); one more leads to where the bytes are.
const MOST_REDIRECTS: usize = 5;

/// Talks to one hub about one checkpoint.
pub(crate) struct Client<'a> {
    hub: &'a Hub,
    name: &'a HubName,
    agent: Agent,
}

/// A repository at one commit.
#[derive(Debug)]
pub(crate) struct Listing {
    pub(crate) commit: String,
    pub(crate) files: Vec<String>,
}

/// What the hub says about a file.
#[derive(Debug, Clone)]
pub(crate) struct FileInfo {
    pub(crate) name: String,
    /// The SHA-256 of a large file, the git blob's SHA-1 of a small one; mirrors have others, which say nothing of the bytes.
    pub(crate) etag: String,
    /// The name of the blob that holds it.
    pub(crate) blob: String,
    pub(crate) size: u64,
    /// Where to ask for the bytes.
    pub(crate) url: String,
}

/// Why a request brought nothing.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Trying again may help; after so long, if the server said.
    Passing(String, Option<Duration>),
    /// It will not.
    Final(CheckpointError),
}

#[derive(Deserialize)]
struct Answer {
    sha: String,
    #[serde(default)]
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
}

impl<'a> Client<'a> {
    pub(crate) fn new(hub: &'a Hub, name: &'a HubName) -> Self {
        let config = Agent::config_builder()
            .http_status_as_error(false)
            // Redirects are followed by hand: the token must not go to another host, and the hub's own headers come with
            // the redirect, not with what it leads to.
            .max_redirects(0)
            .max_redirects_will_error(false)
            .user_agent(concat!("canvasd/", env!("CARGO_PKG_VERSION")))
            .timeout_connect(Some(Duration::from_secs(15)))
            .timeout_recv_response(Some(Duration::from_secs(60)))
            .timeout_per_read(Some(Duration::from_secs(60)));
        Self { hub, name, agent: config.build().into() }
    }

    /// The repository's files at the wanted revision.
    pub(crate) fn listing(&self) -> Result<Listing, Failure> {
        let revision = self.name.revision.replace('/', "%2F");
        let url = format!("{}/api/models/{}/revision/{revision}", self.hub.endpoint, self.name.repo);
        let (mut response, _) = self.follow("GET", url)?;
        if response.status() != StatusCode::OK {
            return Err(self.status(&response, "the repository"));
        }
        let body = response.body_mut().with_config().limit(LONGEST_LISTING).read_to_vec();
        let body = body.map_err(|error| self.unreachable(&error))?;
        let answer: Answer = serde_json::from_slice(&body)
            .map_err(|error| self.final_error(format!("the hub's listing cannot be read: {error}")))?;
        if !is_commit(&answer.sha) {
            return Err(self.final_error("the hub's listing names no commit".to_owned()));
        }
        let files: Vec<String> = answer.siblings.into_iter().map(|file| file.rfilename).collect();
        if let Some(outside) = files.iter().find(|file| !stays_inside(file)) {
            let why = format!("the hub's listing names {}, which leads out of the repository's folder", shown(outside));
            return Err(self.final_error(format!("{why}; nothing was written: do not trust {}", self.hub.endpoint)));
        }
        Ok(Listing { commit: answer.sha, files })
    }

    /// A file's etag and size at a commit.
    pub(crate) fn file_info(&self, commit: &str, file: &str) -> Result<FileInfo, Failure> {
        let asked = format!("{}/{}/resolve/{commit}/{}", self.hub.endpoint, self.name.repo, escaped(file));
        let (response, url) = self.follow("HEAD", asked)?;
        if !(response.status().is_success() || response.status().is_redirection()) {
            return Err(self.status(&response, file));
        }
        let headers = response.headers();
        let etag = text(headers, "x-linked-etag").or_else(|| text(headers, "etag")).map(bare).unwrap_or_default();
        if etag.is_empty()
            || etag.len() > 128
            || !etag.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
        {
            return Err(self.final_error(format!("the hub gives no usable etag for {file}")));
        }
        let size = text(headers, "x-linked-size").or_else(|| text(headers, "content-length"));
        let size = size.and_then(|size| size.parse().ok());
        let size = size.ok_or_else(|| self.final_error(format!("the hub does not tell the size of {file}")))?;
        let blob = blob_name(commit, file, etag);
        Ok(FileInfo { name: file.to_owned(), etag: etag.to_owned(), blob, size, url })
    }

    /// All of a small file.
    pub(crate) fn whole(&self, file: &FileInfo) -> Result<Vec<u8>, Failure> {
        if file.size > LONGEST_INDEX {
            return Err(self.final_error(format!("{} has {} bytes, more than any has", file.name, file.size)));
        }
        let mut bytes = Vec::new();
        let read = match file.size {
            0 => Ok(0),
            size => self.range(file, 0, size)?.take(size).read_to_end(&mut bytes),
        };
        let broken = |why| Failure::Passing(format!("{}: {why}", file.name), None);
        match read {
            Ok(count) if count as u64 == file.size => Ok(bytes),
            Ok(_) => Err(broken("the connection broke".to_owned())),
            Err(error) => Err(broken(error.to_string())),
        }
    }

    /// Bytes of a file from `start` to the end of the range; the answer is checked to be that range.
    pub(crate) fn range(&self, file: &FileInfo, start: u64, end: u64) -> Result<impl Read + use<>, Failure> {
        let mut url = file.url.clone();
        let whole = start == 0 && end == file.size;
        for _ in 0..=MOST_REDIRECTS {
            let mut request = self.agent.get(&url);
            if let Some(token) = self.hub.token.as_ref().filter(|_| self.is_hub(&url)) {
                request = request.header("authorization", format!("Bearer {token}"));
            }
            if !whole {
                request = request.header("range", format!("bytes={start}-{}", end - 1));
            }
            let response = request.call().map_err(|error| self.unreachable(&error))?;
            match response.status() {
                status if status.is_redirection() => url = self.location(&url, response.headers())?,
                StatusCode::OK if whole => return Ok(response.into_body().into_with_config().limit(u64::MAX).reader()),
                StatusCode::PARTIAL_CONTENT => {
                    let wanted = format!("bytes {start}-{}/{}", end - 1, file.size);
                    match text(response.headers(), "content-range") {
                        Some(found) if found == wanted => {
                            return Ok(response.into_body().into_with_config().limit(u64::MAX).reader());
                        }
                        found => {
                            let found = found.unwrap_or("none");
                            return Err(
                                self.final_error(format!("{}: {wanted} was asked for, {found} came", file.name))
                            );
                        }
                    }
                }
                StatusCode::OK => {
                    let why = "the server sends whole files only, so the download cannot be split or resumed";
                    return Err(self.final_error(format!("{}: {why}; is there a proxy in between?", file.name)));
                }
                _ => return Err(self.status(&response, &file.name)),
            }
        }
        Err(self.final_error(format!("{}: redirects without end", file.name)))
    }

    /// Sends a request and follows redirects that stay on the hub.
    fn follow(&self, method: &str, mut url: String) -> Result<(Response<Body>, String), Failure> {
        for _ in 0..=MOST_REDIRECTS {
            let mut request = if method == "HEAD" { self.agent.head(&url) } else { self.agent.get(&url) };
            if let Some(token) = &self.hub.token {
                request = request.header("authorization", format!("Bearer {token}"));
            }
            let response = request.call().map_err(|error| self.unreachable(&error))?;
            if !response.status().is_redirection() {
                return Ok((response, url));
            }
            let next = self.location(&url, response.headers())?;
            if text(response.headers(), "x-linked-etag").is_some() || !self.is_hub(&next) {
                return Ok((response, url));
            }
            url = next;
        }
        Err(self.final_error("redirects without end".to_owned()))
    }

    fn is_hub(&self, url: &str) -> bool {
        url.strip_prefix(&self.hub.endpoint).is_some_and(|rest| rest.starts_with('/'))
    }

    /// A redirect's goal as a whole address.
    fn location(&self, from: &str, headers: &HeaderMap) -> Result<String, Failure> {
        let goal = text(headers, "location").ok_or_else(|| self.final_error("a redirect without a goal".to_owned()))?;
        if goal.starts_with("http://") || goal.starts_with("https://") {
            return Ok(goal.to_owned());
        }
        let host = from.find("://").map(|at| at + 3).and_then(|at| from[at..].find('/').map(|end| at + end));
        match (goal.starts_with('/') && !goal.starts_with("//"), host) {
            (true, Some(end)) => Ok(format!("{}{goal}", &from[..end])),
            _ => Err(self.final_error("a redirect to nowhere".to_owned())),
        }
    }

    fn final_error(&self, why: String) -> Failure {
        Failure::Final(refused(self.name, why))
    }

    fn unreachable(&self, error: &ureq::Error) -> Failure {
        let hint = "check the network; what is in the cache already can be used with HF_HUB_OFFLINE=1";
        Failure::Passing(format!("{} cannot be reached ({error}); {hint}", self.hub.endpoint), None)
    }

    /// What a status other than success means for the user.
    fn status(&self, response: &Response<Body>, what: &str) -> Failure {
        let (endpoint, repo) = (&self.hub.endpoint, &self.name.repo);
        let status = response.status();
        let code = text(response.headers(), "x-error-code").unwrap_or_default();
        let token = match self.hub.token {
            Some(_) => "the access token in use does not give access to it",
            None => "no access token is set (HF_TOKEN)",
        };
        let why = match (status.as_u16(), code) {
            (401 | 403, "GatedRepo") => {
                format!("access must be asked for: accept the terms at {endpoint}/{repo}, then set HF_TOKEN; {token}")
            }
            (401 | 404, "RepoNotFound") => format!("there is no such repository, or it is private: {token}"),
            (404, "RevisionNotFound") => format!("the repository has no revision {}", self.name.revision),
            (404, "EntryNotFound") => format!("the repository has no file {what}"),
            (401 | 403, _) => format!("access was refused (status {status}): {token}"),
            (404, _) => format!("{what} was not found; is the name right?"),
            (429 | 500.., _) => {
                let after = text(response.headers(), "retry-after").and_then(|seconds| seconds.parse().ok());
                let why = format!("the hub answers {status}; try again later");
                return Failure::Passing(why, after.map(|seconds: u64| Duration::from_secs(seconds.min(60))));
            }
            _ => format!("the hub answers {status} for {what}"),
        };
        self.final_error(why)
    }
}

fn text<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    headers.get(name)?.to_str().ok()
}

/// The etag, where it is a sum. Any other may be that of many files, and of this one after it has changed.
fn blob_name(commit: &str, file: &str, etag: &str) -> String {
    match Sum::of(etag) {
        Some(_) => etag.to_owned(),
        None => {
            let place = sha2::Sha256::digest(format!("{commit}/{file}"));
            let place: String = place.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
            format!("{etag}-{place}")
        }
    }
}

/// An etag without its quotes and the mark of a weak one.
fn bare(etag: &str) -> &str {
    etag.strip_prefix("W/").unwrap_or(etag).trim_matches('"')
}

/// A file's name inside an address.
fn escaped(file: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~' | b'/');
    file.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

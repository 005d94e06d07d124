//! A local server that speaks the hub's protocol, and downloads from it.

#![cfg(feature = "hub")]

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use sha2::Digest;

use super::*;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
/// Two and a bit pieces.
const LARGE: usize = 17 << 20;

/// One request as the server saw it.
#[derive(Debug, Clone)]
struct Seen {
    method: String,
    path: String,
    /// First and last byte asked for.
    range: Option<(u64, u64)>,
    token: bool,
    /// Which name of this machine was used.
    host: String,
}

/// What the server does; changed by tests while it runs.
#[derive(Default)]
struct Behaviour {
    files: HashMap<String, Vec<u8>>,
    /// Cut so many answers with a file's bytes after half of them.
    cut: usize,
    /// Refuse to give bytes of large files beyond this position.
    until: Option<u64>,
    /// Answer everything with this status and error code.
    refuse: Option<(u16, &'static str)>,
    /// Send other bytes than the etag promises.
    spoil: bool,
    /// Ignore ranges.
    whole: bool,
    /// Answer so many requests with 503 first.
    busy: usize,
    seen: Vec<Seen>,
}

#[derive(Clone)]
struct Server {
    port: u16,
    behaviour: Arc<Mutex<Behaviour>>,
}

impl Server {
    fn start(files: &[(&str, Vec<u8>)]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let files = files.iter().map(|(name, bytes)| ((*name).to_owned(), bytes.clone())).collect();
        let behaviour = Arc::new(Mutex::new(Behaviour { files, ..Behaviour::default() }));
        let server = Self { port: listener.local_addr().unwrap().port(), behaviour };
        let serving = server.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let server = serving.clone();
                std::thread::spawn(move || while server.answer(&stream).is_some() {});
            }
        });
        server
    }

    fn set(&self, change: impl FnOnce(&mut Behaviour)) {
        change(&mut self.behaviour.lock().unwrap());
    }

    fn seen(&self) -> Vec<Seen> {
        std::mem::take(&mut self.behaviour.lock().unwrap().seen)
    }

    /// Answers one request; `None` when the connection is over.
    fn answer(&self, stream: &TcpStream) -> Option<()> {
        let mut lines = BufReader::new(stream.try_clone().ok()?).lines();
        let first = lines.next()?.ok()?;
        let mut words = first.split(' ');
        let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
        let mut seen = Seen { method, path, range: None, token: false, host: String::new() };
        for line in lines.map_while(Result::ok).take_while(|line| !line.is_empty()) {
            let (key, value) = line.split_once(": ")?;
            match key.to_ascii_lowercase().as_str() {
                "range" => {
                    let (start, last) = value.strip_prefix("bytes=")?.split_once('-')?;
                    seen.range = Some((start.parse().ok()?, last.parse().ok()?));
                }
                "authorization" => seen.token = value == "Bearer secret",
                "host" => seen.host = value.to_owned(),
                _ => {}
            }
        }
        let mut behaviour = self.behaviour.lock().unwrap();
        behaviour.seen.push(seen.clone());
        let (head, body) = self.respond(&mut behaviour, &seen);
        let cut = seen.path.starts_with("/stored/") && !body.is_empty() && behaviour.cut > 0;
        behaviour.cut -= usize::from(cut);
        drop(behaviour);
        let mut stream = stream;
        stream.write_all(head.as_bytes()).ok()?;
        if cut {
            stream.write_all(&body[..body.len() / 2]).ok()?;
            stream.shutdown(std::net::Shutdown::Both).ok()?;
            return None;
        }
        stream.write_all(&body).ok()
    }

    fn respond(&self, behaviour: &mut Behaviour, seen: &Seen) -> (String, Vec<u8>) {
        let status =
            |code: u16, more: String| (format!("HTTP/1.1 {code} X\r\ncontent-length: 0\r\n{more}\r\n"), Vec::new());
        if let Some((code, error)) = behaviour.refuse {
            return status(code, format!("x-error-code: {error}\r\n"));
        }
        if behaviour.busy > 0 {
            behaviour.busy -= 1;
            return status(503, "retry-after: 0\r\n".to_owned());
        }
        if let Some(rest) = seen.path.strip_prefix("/api/models/old/name/") {
            return status(307, format!("location: /api/models/own/er/{rest}\r\n"));
        }
        if seen.path.starts_with("/api/models/own/er/revision/") {
            let names: Vec<_> = behaviour.files.keys().map(|name| serde_json::json!({"rfilename": name})).collect();
            let body = serde_json::json!({"sha": COMMIT, "siblings": names, "private": false}).to_string();
            return (format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len()), body.into_bytes());
        }
        let (file, stored) = if let Some(file) = seen.path.strip_prefix(&format!("/own/er/resolve/{COMMIT}/")) {
            (file, false)
        } else if let Some(file) = seen.path.strip_prefix("/stored/") {
            (file, true)
        } else {
            return status(404, "x-error-code: RepoNotFound\r\n".to_owned());
        };
        let Some(bytes) = behaviour.files.get(file) else {
            return status(404, "x-error-code: EntryNotFound\r\n".to_owned());
        };
        let large = file.ends_with(".safetensors") || file.ends_with(".gguf");
        if large && !stored {
            let sum = hex(&sha2::Sha256::digest(bytes));
            let size = bytes.len();
            // Another name of this machine stands for the store that the hub sends large files from.
            return status(
                302,
                format!(
                    "location: http://localhost:{}/stored/{file}\r\nx-linked-size: {size}\r\nx-linked-etag: \"{sum}\"\r\n\
                     x-repo-commit: {COMMIT}\r\netag: \"other\"\r\n",
                    self.port
                ),
            );
        }
        let mut bytes = bytes.clone();
        let etag =
            hex(&sha1::Sha1::new().chain_update(format!("blob {}\0", bytes.len())).chain_update(&bytes).finalize());
        if behaviour.spoil {
            bytes[0] ^= 1;
        }
        let etag = format!("etag: W/\"{etag}\"\r\n");
        let length = bytes.len();
        if seen.method == "HEAD" {
            return (format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n{etag}\r\n"), Vec::new());
        }
        match seen.range.filter(|_| !behaviour.whole) {
            Some((_, last)) if behaviour.until.is_some_and(|until| last >= until) => status(403, String::new()),
            Some((start, last)) => {
                let body = bytes[start as usize..=last as usize].to_vec();
                let range = format!("content-range: bytes {start}-{last}/{length}\r\n");
                (format!("HTTP/1.1 206 X\r\ncontent-length: {}\r\n{range}{etag}\r\n", body.len()), body)
            }
            None => (format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n{etag}\r\n"), bytes),
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn noise(size: usize, seed: u64) -> Vec<u8> {
    let mut state = seed;
    let next = |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 56) as u8
    };
    (0..size).map(next).collect()
}

fn hub(server: &Server, cache: &tempfile::TempDir) -> Hub {
    let (endpoint, cache) = (format!("http://127.0.0.1:{}", server.port), cache.path().to_str().unwrap().to_owned());
    Hub::from_vars(|name| match name {
        "HF_ENDPOINT" => Some(endpoint.clone()),
        "HF_HUB_CACHE" => Some(cache.clone()),
        "HF_TOKEN" => Some("secret".to_owned()),
        _ => None,
    })
}

fn name(text: &str) -> HubName {
    match Source::parse(Some(text)).unwrap() {
        Source::Hub(name) => name,
        other => panic!("{other:?}"),
    }
}

fn quiet(_: &Progress) {}

fn sharded() -> Vec<(&'static str, Vec<u8>)> {
    let index = serde_json::json!({"weight_map": {"a": "model-1-of-2.safetensors", "b": "model-2-of-2.safetensors"}});
    vec![
        ("README.md", b"not wanted".to_vec()),
        ("config.json", b"{}".to_vec()),
        ("tokenizer.json", noise(70_000, 1)),
        ("model.safetensors.index.json", index.to_string().into_bytes()),
        ("model-1-of-2.safetensors", noise(LARGE, 2)),
        ("model-2-of-2.safetensors", noise(5, 3)),
    ]
}

#[test]
fn a_sharded_checkpoint_arrives_whole() {
    let (server, cache) = (Server::start(&sharded()), tempfile::tempdir().unwrap());
    let hub = hub(&server, &cache);
    assert_eq!(hub.cached(&name("own/er")).unwrap(), None);
    let reports = Mutex::new(Vec::new());
    let found = hub.locate(&name("own/er"), &|progress| reports.lock().unwrap().push(*progress)).unwrap();
    let snapshot = cache.path().join("models--own--er/snapshots").join(COMMIT);
    assert_eq!(found, Source::Folder(snapshot.clone()));
    for (file, bytes) in &sharded()[1..] {
        assert!(std::fs::read(snapshot.join(file)).unwrap() == *bytes, "{file}");
    }
    assert!(!snapshot.join("README.md").exists());
    assert_eq!(std::fs::read_to_string(cache.path().join("models--own--er/refs/main")).unwrap(), COMMIT);
    let left = std::fs::read_dir(cache.path().join("models--own--er/blobs")).unwrap().count();
    assert_eq!(left, 5, "blobs only, no half-done files");
    let last = *reports.lock().unwrap().last().unwrap();
    assert_eq!((last.done, last.phase, last.resumed), (last.total, Phase::Done, 0));

    let seen = server.seen();
    assert!(seen.iter().all(|seen| seen.token == seen.host.starts_with("127.0.0.1")), "the token is for the hub alone");
    assert!(seen.iter().filter(|seen| seen.path.starts_with("/stored/model-1")).count() >= 3, "in pieces");
    // What is there is used without asking anybody, and by its commit too.
    assert_eq!(hub.locate(&name("own/er"), &quiet).unwrap(), found);
    assert_eq!(hub.cached(&name(&format!("own/er@{COMMIT}"))).unwrap(), Some(found.clone()));
    assert!(server.seen().is_empty());
    // Fetching again asks what is new and transfers nothing.
    assert_eq!(hub.fetch(&name("own/er"), &quiet).unwrap(), found);
    assert!(
        server
            .seen()
            .iter()
            .all(|seen| !seen.path.starts_with("/stored/") && (seen.method == "HEAD" || seen.path.starts_with("/api")))
    );
}

#[test]
fn a_gguf_file_by_its_quantization_and_an_old_name() {
    let files = [("m-Q4_K_M.gguf", noise(100, 1)), ("m-Q8_0.gguf", noise(100, 2))];
    let (server, cache) = (Server::start(&files), tempfile::tempdir().unwrap());
    let hub = hub(&server, &cache);
    let found = hub.fetch(&name("own/er@refs/pr/1:q8_0"), &quiet).unwrap();
    let Source::Gguf(path) = &found else { panic!("{found:?}") };
    assert!(path.ends_with("m-Q8_0.gguf") && std::fs::read(path).unwrap() == files[1].1);
    assert!(server.seen()[0].path.ends_with("/revision/refs%2Fpr%2F1"));
    assert_eq!(hub.cached(&name("own/er@refs/pr/1:q8_0")).unwrap(), Some(found));
    assert_eq!(hub.cached(&name("own/er@refs/pr/1:Q4_K_M")).unwrap(), None);
    let error = hub.fetch(&name("own/er"), &quiet).unwrap_err().to_string();
    assert!(
        error.contains(":m-Q4_K_M.gguf, :m-Q8_0.gguf") || error.contains(":m-Q8_0.gguf, :m-Q4_K_M.gguf"),
        "{error}"
    );
    // A renamed repository: the listing redirects within the hub.
    let renamed = hub.fetch(&name("old/name:Q8_0"), &quiet).unwrap_err().to_string();
    assert!(renamed.contains("no such repository"), "{renamed}");
}

#[test]
fn cut_connections_are_taken_up_where_they_broke() {
    let files = [("m.gguf", noise(LARGE, 4))];
    let (server, cache) = (Server::start(&files), tempfile::tempdir().unwrap());
    server.set(|behaviour| (behaviour.cut, behaviour.busy) = (3, 1));
    let Source::Gguf(path) = hub(&server, &cache).fetch(&name("own/er"), &quiet).unwrap() else { panic!() };
    assert!(std::fs::read(path).unwrap() == files[0].1);
    let starts: Vec<u64> = server.seen().iter().filter_map(|seen| seen.range).map(|(start, _)| start).collect();
    assert!(starts.iter().any(|start| start % journal::PIECE != 0), "{starts:?}");
}

#[test]
fn a_download_that_ended_early_goes_on() {
    let files = [("m.gguf", noise(LARGE, 5))];
    let (server, cache) = (Server::start(&files), tempfile::tempdir().unwrap());
    let hub = hub(&server, &cache);
    server.set(|behaviour| behaviour.until = Some(journal::PIECE));
    let error = hub.fetch(&name("own/er"), &quiet).unwrap_err().to_string();
    assert!(error.contains("access was refused"), "{error}");
    assert_eq!(hub.cached(&name("own/er")).unwrap(), None);
    server.set(|behaviour| behaviour.until = None);
    server.seen();
    let blob = cache::Repo::of(cache.path(), "own/er").blob(&hex(&sha2::Sha256::digest(&files[0].1)));
    // The first piece may have been stopped on its way by the failure of another: then it is written here.
    let mut journal = journal::Journal::open(&blob, LARGE as u64).unwrap();
    let before = journal.missing();
    if before.first().is_some_and(|(start, _)| *start == 0) {
        journal::copy(&files[0].1[..], journal.data(), 0, journal::PIECE, |_| true).unwrap();
        journal.finish(0).unwrap();
    }
    drop(journal);
    let reports = Mutex::new(Vec::new());
    let Source::Gguf(path) = hub.fetch(&name("own/er"), &|progress| reports.lock().unwrap().push(*progress)).unwrap()
    else {
        panic!()
    };
    assert!(std::fs::read(path).unwrap() == files[0].1);
    assert!(server.seen().iter().filter_map(|seen| seen.range).all(|(start, _)| start >= journal::PIECE));
    assert_eq!(reports.lock().unwrap()[0].resumed, journal::PIECE);
}

#[test]
fn damaged_data_is_deleted() {
    for files in [
        [("config.json", b"{}".to_vec()), ("model.safetensors", noise(9, 1))],
        [("m.gguf", noise(90, 1)), ("x", vec![1])],
    ] {
        let (server, cache) = (Server::start(&files), tempfile::tempdir().unwrap());
        let hub = hub(&server, &cache);
        server.set(|behaviour| behaviour.spoil = true);
        let error = hub.fetch(&name("own/er"), &quiet).unwrap_err().to_string();
        assert!(error.contains("checksum"), "{error}");
        server.set(|behaviour| behaviour.spoil = false);
        hub.fetch(&name("own/er"), &quiet).unwrap();
    }
}

#[test]
fn refusals_say_what_to_do() {
    let (server, cache) = (Server::start(&[("m.gguf", noise(LARGE, 1))]), tempfile::tempdir().unwrap());
    let hub = hub(&server, &cache);
    for (refusal, what) in [
        ((401, "GatedRepo"), "/own/er, then set HF_TOKEN"),
        ((403, "GatedRepo"), "accept the terms at http://127.0.0.1"),
        ((401, "RepoNotFound"), "no such repository, or it is private"),
        ((404, "RepoNotFound"), "no such repository"),
        ((404, "RevisionNotFound"), "has no revision main"),
        ((403, ""), "access token in use"),
        ((404, ""), "is the name right"),
        ((503, ""), "try again later"),
        ((418, ""), "answers 418"),
    ] {
        server.set(|behaviour| behaviour.refuse = Some(refusal));
        let error = hub.fetch(&name("own/er"), &quiet).unwrap_err().to_string();
        assert!(error.starts_with("own/er: ") && error.contains(what), "{what}: {error}");
        assert!(!error.contains("secret"));
    }
    server.set(|behaviour| (behaviour.refuse, behaviour.whole) = (None, true));
    let error = hub.fetch(&name("own/er"), &quiet).unwrap_err().to_string();
    assert!(error.contains("whole files only"), "{error}");
    let nobody = Server { port: 1, ..server.clone() };
    let error = self::hub(&nobody, &cache).fetch(&name("own/er"), &quiet).unwrap_err().to_string();
    assert!(error.contains("cannot be reached") && error.contains("HF_HUB_OFFLINE=1"), "{error}");
    let offline = Hub { offline: true, ..hub };
    let error = offline.locate(&name("own/er"), &quiet).unwrap_err().to_string();
    assert!(error.contains("HF_HUB_OFFLINE forbids"), "{error}");
}

#[test]
fn one_download_at_a_time() {
    let (server, cache) = (Server::start(&[("m.gguf", noise(9, 1))]), tempfile::tempdir().unwrap());
    let repo = cache::Repo::of(cache.path(), "own/er");
    repo.create().unwrap();
    let other = std::fs::File::create(repo.lock()).unwrap();
    other.lock().unwrap();
    let error = hub(&server, &cache).fetch(&name("own/er"), &quiet).unwrap_err().to_string();
    assert!(error.contains("another process"), "{error}");
}

#[test]
fn variables() {
    let with = |pairs: &[(&str, &str)]| {
        let vars: HashMap<String, String> =
            pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        Hub::from_vars(|name| vars.get(name).cloned())
    };
    let plain = with(&[("HOME", "/h")]);
    assert_eq!(
        (plain.endpoint.as_str(), plain.token.as_deref(), plain.offline),
        ("https://huggingface.co", None, false)
    );
    assert_eq!(plain.cache, PathBuf::from("/h/.cache/huggingface/hub"));
    assert_eq!(with(&[("XDG_CACHE_HOME", "/x")]).cache, PathBuf::from("/x/huggingface/hub"));
    assert_eq!(with(&[("HF_HOME", "/f"), ("HOME", "/h")]).cache, PathBuf::from("/f/hub"));
    assert_eq!(with(&[("HF_HOME", "/f"), ("HF_HUB_CACHE", "/c")]).cache, PathBuf::from("/c"));
    assert!(with(&[("HF_HUB_OFFLINE", "true")]).offline && !with(&[("HF_HUB_OFFLINE", "0")]).offline);
    assert_eq!(with(&[("HF_ENDPOINT", "http://mirror/")]).endpoint, "http://mirror");
    let home = tempfile::tempdir().unwrap();
    std::fs::write(home.path().join("token"), "from-login\n").unwrap();
    let hub = with(&[("HF_HOME", home.path().to_str().unwrap())]);
    assert_eq!(hub.token.as_deref(), Some("from-login"));
    assert!(!format!("{hub:?}").contains("from-login"));
    assert_eq!(with(&[("HF_TOKEN", "  ")]).token, None);
}

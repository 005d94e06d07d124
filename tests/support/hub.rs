//! A local server that speaks the hub's protocol: listings, redirects to another host, ranges, etags, the headers of large
//! files; and that can misbehave.

#![allow(dead_code)] // Each test uses its own part.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use sha2::Digest;

/// The commit that every revision stands for.
pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
/// Two and a bit of the pieces in which large files are asked for.
pub const LARGE: usize = 17 << 20;

/// One request as the server saw it.
#[derive(Debug, Clone)]
pub struct Seen {
    pub method: String,
    pub path: String,
    /// First and last byte asked for.
    pub range: Option<(u64, u64)>,
    pub token: bool,
    /// Which name of this machine was used.
    pub host: String,
}

/// What the server does; changed by tests while it runs.
#[derive(Default)]
pub struct Behaviour {
    pub files: HashMap<String, Vec<u8>>,
    /// Cut so many answers with a file's bytes after half of them.
    pub cut: usize,
    /// Refuse to give bytes of large files beyond this position.
    pub until: Option<u64>,
    /// Answer everything with this status and error code.
    pub refuse: Option<(u16, &'static str)>,
    /// Send other bytes than the etag promises.
    pub spoil: bool,
    /// Give etags that are no sums.
    pub unsummed: bool,
    /// Give every file this etag.
    pub etag: Option<String>,
    /// Ignore ranges.
    pub whole: bool,
    /// Answer so many requests with 503 first.
    pub busy: usize,
    /// Say that large files have this size.
    pub claim: Option<u64>,
    /// Send nothing more once so many bytes of large files are sent, until this is taken back.
    pub hold: Option<u64>,
    /// Bytes of large files that were sent.
    pub sent: u64,
    seen: Vec<Seen>,
}

impl Behaviour {
    /// The etag of a file with this sum.
    fn etag(&self, sum: String) -> String {
        match &self.etag {
            Some(etag) => etag.clone(),
            None if self.unsummed => format!("v-{}", &sum[..8]),
            None => sum,
        }
    }
}

#[derive(Clone)]
pub struct Server {
    pub port: u16,
    behaviour: Arc<Mutex<Behaviour>>,
}

impl Server {
    pub fn start(files: &[(&str, Vec<u8>)]) -> Self {
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

    pub fn set(&self, change: impl FnOnce(&mut Behaviour)) {
        change(&mut self.behaviour.lock().unwrap());
    }

    /// What was asked for since the last call.
    pub fn seen(&self) -> Vec<Seen> {
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
        if !seen.path.starts_with("/stored/") {
            return stream.write_all(&body).ok();
        }
        body.chunks(64 << 10).try_for_each(|part| {
            while self.held(part.len() as u64) {
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
            stream.write_all(part).ok()
        })
    }

    /// Whether so many bytes more must wait; counts them if not.
    fn held(&self, bytes: u64) -> bool {
        let mut behaviour = self.behaviour.lock().unwrap();
        let held = behaviour.hold.is_some_and(|hold| behaviour.sent + bytes > hold);
        behaviour.sent += if held { 0 } else { bytes };
        held
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
        let resolved = seen.path.strip_prefix(&format!("/own/er/resolve/{COMMIT}/"));
        let small = resolved.filter(|file| behaviour.files.contains_key(*file) && !is_large(file));
        if let Some(file) = small {
            // Small files are kept in another place on the same host.
            return status(307, format!("location: /api/resolve-cache/models/own/er/{COMMIT}/{file}\r\n"));
        }
        let cached = seen.path.strip_prefix(&format!("/api/resolve-cache/models/own/er/{COMMIT}/"));
        let (file, stored) = if let Some(file) = resolved.or(cached) {
            (file, false)
        } else if let Some(file) = seen.path.strip_prefix("/stored/") {
            (file, true)
        } else {
            return status(404, "x-error-code: RepoNotFound\r\n".to_owned());
        };
        let Some(bytes) = behaviour.files.get(file) else {
            return status(404, "x-error-code: EntryNotFound\r\n".to_owned());
        };
        if is_large(file) && !stored {
            let sum = behaviour.etag(hex(&sha2::Sha256::digest(bytes)));
            let size = behaviour.claim.unwrap_or(bytes.len() as u64);
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
        let etag = format!("etag: W/\"{}\"\r\n", behaviour.etag(etag));
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

/// Whether the hub keeps a file in its store for large ones.
fn is_large(file: &str) -> bool {
    file.ends_with(".safetensors") || file.ends_with(".gguf")
}

/// Bytes in hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Bytes that look random.
pub fn noise(size: usize, seed: u64) -> Vec<u8> {
    let mut state = seed;
    let next = |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 56) as u8
    };
    (0..size).map(next).collect()
}

//! The program itself against a hub: names, errors, what a terminal and a log show, and a download that is killed.

#![cfg(all(feature = "hub", unix))]

use std::io::Read;
use std::os::fd::FromRawFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

#[path = "support/hub.rs"]
mod hub;

use hub::{COMMIT, Server, noise};

/// A hub and an empty cache.
struct Place {
    server: Server,
    cache: tempfile::TempDir,
}

impl Place {
    fn new(files: &[(&str, Vec<u8>)]) -> Self {
        Self { server: Server::start(files), cache: tempfile::tempdir().unwrap() }
    }

    /// The program, which knows this hub alone.
    fn canvasd(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_canvasd"));
        let ours = |name: &str| name.starts_with("HF_") || name.starts_with("CANVASD_") || name.ends_with("_PROXY");
        for (name, _) in std::env::vars().filter(|(name, _)| ours(&name.to_ascii_uppercase())) {
            command.env_remove(name);
        }
        command
            .args(arguments)
            .env("HF_ENDPOINT", format!("http://127.0.0.1:{}", self.server.port))
            .env("HF_HOME", self.cache.path())
            .env("HF_TOKEN", "secret")
            .stdin(Stdio::null());
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.canvasd(arguments).output().unwrap()
    }

    /// What the program says when it refuses, with this exit code.
    fn refused(&self, arguments: &[&str], code: i32) -> String {
        let output = self.run(arguments);
        let text = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {text}");
        assert!(!text.contains("panicked") && !text.contains("secret"), "{text}");
        text
    }

    fn repository(&self) -> PathBuf {
        self.cache.path().join("hub/models--own--er")
    }

    fn snapshot(&self, file: &str) -> PathBuf {
        self.repository().join("snapshots").join(COMMIT).join(file)
    }

    /// Blocks that the record of a half-done download lists.
    fn recorded(&self) -> usize {
        let blobs = std::fs::read_dir(self.repository().join("blobs")).into_iter().flatten().flatten();
        let record = blobs.map(|entry| entry.path()).find(|path| path.to_string_lossy().ends_with(".canvasd-pieces"));
        let text = record.and_then(|path| std::fs::read_to_string(path).ok()).unwrap_or_default();
        text.lines().skip(1).count()
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The shipped model's files, as a repository.
fn demo() -> Vec<(&'static str, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo");
    let read = |name: &'static str| (name, std::fs::read(folder.join(name)).unwrap());
    ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"]
        .into_iter()
        .chain(["model.safetensors"])
        .map(read)
        .collect()
}

#[test]
fn a_killed_download_goes_on_where_it_stopped() {
    const MEBI: u64 = 1 << 20;
    // Three pieces, none of which is complete when the server falls silent.
    let bytes = noise(24 << 20, 7);
    let place = Place::new(&[("m.gguf", bytes.clone())]);
    // After 5 MiB no piece of 8 MiB can be complete, and some have a part.
    place.server.set(|behaviour| behaviour.hold = Some(5 * MEBI));
    let mut child = place.canvasd(&["fetch", "own/er"]).stderr(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
    let begun = Instant::now();
    while place.recorded() < 3 {
        assert!(begun.elapsed() < Duration::from_secs(120), "3 whole MiB should be among 5 on three connections");
        std::thread::sleep(Duration::from_millis(10));
    }
    // SIGKILL: nothing can be tidied up.
    child.kill().unwrap();
    child.wait().unwrap();
    let had = place.recorded() as u64;
    assert!((3..=5).contains(&had), "{had} MiB recorded");
    assert!(!place.snapshot("m.gguf").exists(), "half a file has no name yet");

    place.server.set(|behaviour| behaviour.hold = None);
    place.server.seen();
    let output = place.run(&["fetch", "own/er"]);
    let log = text(&output.stderr);
    assert!(output.status.success(), "{log}");
    assert!(log.contains(&format!("{had}.0 MiB of it from before")), "{log}");
    // Each range is asked for at the hub, which redirects to its store.
    let seen = place.server.seen();
    let stored = seen.iter().filter(|seen| seen.path.starts_with("/stored/"));
    let ranges: Vec<(u64, u64)> = stored.filter_map(|seen| seen.range).collect();
    let asked: u64 = ranges.iter().map(|(start, last)| last + 1 - start).sum();
    assert_eq!(asked, bytes.len() as u64 - had * MEBI, "what was there is not asked for again: {ranges:?}");
    assert!(ranges.iter().any(|(start, _)| start % (8 * MEBI) != 0), "it goes on inside a piece: {ranges:?}");
    assert!(std::fs::read(place.snapshot("m.gguf")).unwrap() == bytes);
    let left = std::fs::read_dir(place.repository().join("blobs")).unwrap().count();
    assert_eq!(left, 1, "the blob alone");

    // The third time everything is there.
    let output = place.run(&["fetch", "own/er"]);
    assert_eq!(text(&output.stdout).trim(), place.snapshot("m.gguf").to_string_lossy());
    assert!(place.server.seen().iter().all(|seen| seen.range.is_none()));
}

#[test]
fn a_stopped_quantization_leaves_nothing() {
    let (place, out) = (Place::new(&demo()), tempfile::tempdir().unwrap());
    let names = || std::fs::read_dir(out.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect::<Vec<_>>();
    let path = out.path().join("small.gguf");
    let foreign = out.path().join("small.gguf.part");
    std::fs::write(&foreign, "theirs").unwrap();
    place.server.set(|behaviour| behaviour.hold = Some(0));
    let mut command = place.canvasd(&["quantize", "own/er", path.to_str().unwrap()]);
    let mut child = command.stderr(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
    let begun = Instant::now();
    while !place.server.seen().iter().any(|seen| seen.path.starts_with("/stored/")) {
        assert!(begun.elapsed() < Duration::from_secs(120), "the weights should be asked for");
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(names().len(), 2, "the file is begun before the model is there");
    assert!(!path.exists(), "half a file has no name yet");
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert_eq!(names(), ["small.gguf.part"]);
    assert_eq!(std::fs::read(&foreign).unwrap(), b"theirs");
}

#[test]
fn bytes_that_were_spoilt_on_disk_are_found_by_their_sum() {
    let bytes = noise(9 << 20, 8);
    let place = Place::new(&[("m.gguf", bytes)]);
    place.server.set(|behaviour| behaviour.hold = Some(4 << 20));
    let mut child = place.canvasd(&["fetch", "own/er"]).stderr(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
    let begun = Instant::now();
    while place.recorded() < 1 {
        assert!(begun.elapsed() < Duration::from_secs(120));
        std::thread::sleep(Duration::from_millis(10));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let blobs = std::fs::read_dir(place.repository().join("blobs")).unwrap().flatten().map(|entry| entry.path());
    let part = blobs.into_iter().find(|path| path.to_string_lossy().ends_with(".canvasd-part")).unwrap();
    let mut data = std::fs::read(&part).unwrap();
    // Every place that may have been recorded.
    data.iter_mut().for_each(|byte| *byte ^= 1);
    std::fs::write(&part, data).unwrap();
    place.server.set(|behaviour| behaviour.hold = None);
    let error = place.refused(&["fetch", "own/er"], 3);
    assert!(error.contains("the checksum of m.gguf does not agree"), "{error}");
    assert!(place.run(&["fetch", "own/er"]).status.success(), "a fresh start mends it");
}

#[test]
fn what_is_fetched_can_be_described_served_from_the_cache_and_used_offline() {
    let place = Place::new(&demo());
    let output = place.run(&["fetch", "own/er"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let folder = place.repository().join("snapshots").join(COMMIT);
    assert_eq!(text(&output.stdout).trim(), folder.to_string_lossy());
    place.server.seen();
    for arguments in [
        vec!["inspect", "own/er"],
        vec!["inspect", &format!("own/er@{COMMIT}")],
        vec!["generate", "--model", "own/er", "--max-tokens", "3", "--seed", "1", "Hello"],
    ] {
        let output = place.run(&arguments);
        assert!(output.status.success() && !output.stdout.is_empty(), "{arguments:?}: {}", text(&output.stderr));
    }
    assert!(place.server.seen().is_empty(), "the cache needs no hub");
    let mut offline = place.canvasd(&["inspect", "own/er"]);
    let offline = offline.env("HF_HUB_OFFLINE", "1").env("HF_ENDPOINT", "http://127.0.0.1:1").output().unwrap();
    assert!(offline.status.success() && text(&offline.stdout).contains("own/er"));
    // A file of the repository that is no model.
    let error = place.refused(&["inspect", "own/er:Q4_K_M"], 3);
    assert!(error.contains("own/er:Q4_K_M: it holds no .gguf file"), "{error}");
}

#[test]
fn a_log_gets_plain_lines_and_a_terminal_a_bar() {
    let files = [("m.gguf", noise(5 << 20, 9))];
    let place = Place::new(&files);
    let log = text(&place.run(&["fetch", "own/er"]).stderr);
    assert!(!log.contains(['\r', '\x1b']), "{log:?}");
    let lines: Vec<&str> = log.lines().collect();
    assert!(lines.len() >= 2 && lines.len() <= 14, "{log}");
    assert!(lines.iter().all(|line| line.contains("MiB")) && log.ends_with("5.0 MiB complete\n"), "{log}");

    let place = Place::new(&files);
    let shown = on_terminal(place.canvasd(&["fetch", "own/er"]));
    assert!(shown.contains('[') && shown.contains("] ") && shown.contains("\r\x1b[K"), "{shown:?}");
    assert!(shown.contains("5.0 MiB complete"), "{shown:?}");

    // An error after the bar begins on a line of its own.
    let place = Place::new(&[("m.gguf", noise(9 << 20, 9))]);
    place.server.set(|behaviour| behaviour.until = Some(0));
    let shown = on_terminal(place.canvasd(&["fetch", "own/er"]));
    assert!(shown.contains("\ncanvasd: the model cannot be fetched"), "{shown:?}");
}

#[test]
fn beside_a_log_a_download_is_an_event_of_the_log() {
    let answer = |environment: &[(&str, &str)]| {
        let place = Place::new(&demo());
        let mut command =
            place.canvasd(&["generate", "--model", "own/er", "--max-tokens", "3", "--seed", "1", "Hello"]);
        let output = command.envs(environment.iter().copied()).output().unwrap();
        assert!(output.status.success() && !output.stdout.is_empty(), "{}", text(&output.stderr));
        text(&output.stderr)
    };
    let json = answer(&[("CANVASD_LOG", "info"), ("CANVASD_LOG_FORMAT", "json")]);
    let events = json.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).expect(line));
    let told: Vec<_> = events.filter(|event| event["model"] == "own/er").collect();
    assert!(told.len() >= 2 && told.len() <= 14, "{json}");
    let last = told.last().unwrap();
    assert!(last["message"] == "downloaded" && last["done_mib"] == last["total_mib"], "{json}");
    assert!(answer(&[("CANVASD_LOG", "info")]).contains("downloading"));
    assert_eq!(answer(&[("CANVASD_LOG", "off")]), "");
    // On a terminal a person reads along, unless the log is for a machine.
    let shown = |format: &str| {
        let place = Place::new(&demo());
        let mut command = place.canvasd(&["generate", "--model", "own/er", "--plain", "--max-tokens", "3", "Hello"]);
        command.env("CANVASD_LOG_FORMAT", format);
        on_terminal(command)
    };
    assert!(shown("text").contains("\r\x1b[K"));
    assert!(!shown("json").contains('\x1b'));
}

/// Runs a command whose output is a terminal of 80 columns, and gives what it showed.
fn on_terminal(mut command: Command) -> String {
    let (mut outer, mut inner) = (0, 0);
    let size = libc::winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: both numbers and the size are alive during the call; name and attributes may be null.
    let opened = unsafe { libc::openpty(&mut outer, &mut inner, std::ptr::null_mut(), std::ptr::null(), &size) };
    assert_eq!(opened, 0, "a terminal can be opened");
    // SAFETY: openpty has just given both descriptors, and nobody else owns them.
    let (mut outer, inner) = unsafe { (std::fs::File::from_raw_fd(outer), std::fs::File::from_raw_fd(inner)) };
    let other = inner.try_clone().unwrap();
    let mut child = command.stdout(inner).stderr(other).spawn().unwrap();
    // The command keeps copies of its own.
    drop(command);
    let mut shown = Vec::new();
    let mut part = [0; 4096];
    // The read fails when the last writer is gone.
    while let Ok(count @ 1..) = outer.read(&mut part) {
        shown.extend_from_slice(&part[..count]);
    }
    child.wait().unwrap();
    text(&shown)
}

#[test]
fn a_file_that_cannot_be_checked_is_named() {
    let place = Place::new(&[("m.gguf", noise(9, 1))]);
    let told = |arguments: &[&str]| {
        let output = place.run(arguments);
        let log = text(&output.stderr);
        assert!(output.status.success(), "{log}");
        log.lines().filter(|line| line.contains("no sum") && line.contains("m.gguf")).count()
    };
    place.server.set(|behaviour| behaviour.unsummed = true);
    assert_eq!(told(&["fetch", "own/er"]), 1);
    assert_eq!(told(&["fetch", "--verify", "own/er"]), 1);
    place.server.set(|behaviour| behaviour.unsummed = false);
    assert_eq!(told(&["fetch", "--verify", "own/er"]), 0);
}

#[test]
fn every_refusal_says_what_to_do() {
    let place = Place::new(&[("m-Q8_0.gguf", noise(9, 1)), ("m-Q4_K_M.gguf", noise(9, 2))]);
    let fetch = |name: &str| place.refused(&["fetch", name], 3);
    for (refusal, what) in [
        ((401, "GatedRepo"), "accept the terms at http://127.0.0.1"),
        ((403, "GatedRepo"), "accept the terms at http://127.0.0.1"),
        ((401, "RepoNotFound"), "no such repository, or it is private"),
        ((404, "RepoNotFound"), "no such repository"),
        ((404, "RevisionNotFound"), "has no revision main"),
        ((401, ""), "access was refused"),
    ] {
        place.server.set(|behaviour| behaviour.refuse = Some(refusal));
        let error = fetch("own/er");
        assert!(error.contains("own/er: ") && error.contains(what), "{error}");
    }
    place.server.set(|behaviour| behaviour.refuse = None);
    let several = fetch("own/er");
    assert!(several.contains("several .gguf files") && several.contains(":m-Q8_0.gguf"), "{several}");
    let unknown = fetch("own/er:Q5_K_M");
    assert!(unknown.contains("no file for Q5_K_M; there are") && unknown.contains(":m-Q4_K_M.gguf"), "{unknown}");
    let nowhere = fetch("other/one");
    assert!(nowhere.contains("no such repository"), "{nowhere}");
    // The same through a command that needs the model.
    let serve = place.refused(&["serve", "--port", "0", "--model", "other/one"], 3);
    assert!(serve.contains("no such repository"), "{serve}");

    let say = |arguments: &[&str], environment: &[(&str, &str)], code: i32| {
        let output = place.canvasd(arguments).envs(environment.iter().copied()).output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{}", text(&output.stderr));
        text(&output.stderr)
    };
    let error = say(&["fetch", "own/er:Q8_0"], &[("HF_ENDPOINT", "http://127.0.0.1:1")], 3);
    assert!(error.contains("http://127.0.0.1:1 cannot be reached") && error.contains("HF_HUB_OFFLINE=1"), "{error}");
    let error = say(&["fetch", "own/er:Q8_0"], &[("HF_HUB_OFFLINE", "1")], 3);
    assert!(error.contains("HF_HUB_OFFLINE forbids"), "{error}");
}

#[test]
fn what_this_machine_cannot_do_is_told_before_anything_is_fetched() {
    let place = Place::new(&demo());
    let say = |arguments: &[&str], path: &str| {
        let output = place.canvasd(arguments).env("CANVASD_CPU_PATH", path).output().unwrap();
        (output.status.code(), text(&output.stderr))
    };
    let serve = ["serve", "--port", "0", "--model", "own/er"];
    for (device, feature) in [("cuda", cfg!(feature = "cuda")), ("metal:1", cfg!(feature = "metal"))] {
        if !feature {
            let (code, error) = say(&[&serve[..], &["--device", device]].concat(), "");
            assert!(error.contains("the model own/er cannot be loaded") && error.contains("build with"), "{error}");
            assert_eq!(code, Some(3), "{error}");
        }
    }
    for path in ["avx2", "avx512", "amx"] {
        // The model inside the program tells what the processor lacks.
        if say(&["generate", "--max-tokens", "1", "Hello"], path).0 == Some(3) {
            let (code, error) = say(&serve, path);
            assert!(code == Some(3) && error.contains("the device cannot be used"), "{error}");
        }
    }
    assert!(place.server.seen().is_empty());
}

#[test]
fn names_that_are_none() {
    let place = Place::new(&[]);
    for (name, what) in [
        ("", "the name is empty"),
        ("word", "neither an existing folder"),
        ("a/b,c/d", "one server serves one model"),
        ("a/b c/d", "one server serves one model"),
        ("./nowhere", "no such file"),
        ("nowhere.gguf", "no such file"),
    ] {
        let error = place.refused(&["serve", "--port", "0", "--model", name], 3);
        assert!(error.contains(what), "{name}: {error}");
    }
    let twice = place.refused(&["serve", "--model", "a/b", "--model", "c/d"], 3);
    assert!(twice.contains("one server serves one model"), "{twice}");
    // Advice is for those who can follow it.
    let advice = "name no model to use the small one inside the program";
    assert!(place.refused(&["inspect", "word"], 3).contains(advice));
    for command in [&["fetch", "word"][..], &["quantize", "word", "out.gguf"], &["quantize", ".", "out.gguf"]] {
        let error = place.refused(command, 3);
        assert!(!error.contains(advice), "{error}");
    }
    let local = place.refused(&["fetch", "."], 2);
    assert!(local.contains("is here already"), "{local}");
    assert!(place.server.seen().is_empty());
}

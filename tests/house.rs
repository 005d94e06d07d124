//! The house rules that a compiler does not know: which room may use which, where `unsafe` and candle may stand, how
//! long a file may grow, and under which licences the dependencies come.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// The rooms and the rooms they may use; `cli` and `main` wire everything. The same table stands in `src/lib.rs`.
const ARROWS: [(&str, &[&str]); 11] = [
    ("api", &["prompt", "scheduler"]),
    ("prompt", &["scheduler"]),
    ("scheduler", &["diffusion", "pass"]),
    ("diffusion", &[]),
    ("pass", &[]),
    ("model", &["pass", "kernels"]),
    ("kernels", &[]),
    ("checkpoint", &["model", "kernels"]),
    ("telemetry", &["config"]),
    ("config", &[]),
    (
        "cli",
        &["api", "prompt", "scheduler", "diffusion", "pass", "model", "kernels", "checkpoint", "telemetry", "config"],
    ),
];

/// Arrows that are open for some names only: `prompt` may know the scheduler's commit gate and nothing of its loop,
/// `checkpoint` how tensors are stored and nothing of how they are multiplied.
const NARROW: [(&str, &str, &[&str]); 2] = [
    ("prompt", "scheduler", &["CommitGate", "Verdict", "FinishReason", "Structure", "StructureError"]),
    ("checkpoint", "kernels", &["ElementType"]),
];

/// External crates that belong to some rooms only.
const CONFINED: [(&str, &[&str]); 10] = [
    // Under its name in the house alone, so that the arrows see it.
    ("canvasd_kernels", &[]),
    // The other way round the compiler would refuse, but not in tests.
    ("canvasd", &["cli"]),
    ("candle_core", &["model", "checkpoint"]),
    ("candle_nn", &["model", "checkpoint"]),
    ("axum", &["api", "cli"]),
    ("tower_http", &["api"]),
    ("utoipa", &["api"]),
    ("clap", &["cli"]),
    ("minijinja", &["prompt"]),
    ("llguidance", &["prompt"]),
];

/// Where `unsafe` may stand: the kernels, and the one place that maps a file into memory. That each block says why it is
/// sound is held by clippy (`undocumented_unsafe_blocks` in Cargo.toml).
const UNSAFE: [&str; 2] = ["src/kernels/", "src/checkpoint/map.rs"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every Rust file below `folder`, with its path relative to the repository.
fn sources(folder: &str) -> Vec<(String, String)> {
    let mut files = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        for entry in entries {
            let path: PathBuf = entry.expect("a folder that can be listed").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let name = path.strip_prefix(root()).expect("below the root").to_string_lossy().replace('\\', "/");
                files.push((name, fs::read_to_string(&path).expect("a file that can be read")));
            }
        }
    }
    files.sort();
    files
}

fn room_of(file: &str) -> &str {
    let inside = file.strip_prefix("src/").expect("a file below src/");
    inside.split('/').next().map(|first| first.trim_end_matches(".rs")).expect("a first part")
}

/// The code without line comments and without the contents of simple string literals.
fn code(text: &str) -> String {
    let mut code = String::new();
    for line in text.lines() {
        let mut rest = line.trim_start();
        if rest.starts_with("//") {
            continue;
        }
        // Strings first: a `//` inside one is no comment, and a path inside one is no use.
        let mut quoted = false;
        let mut previous = ' ';
        while let Some(character) = rest.chars().next() {
            if !quoted && rest.starts_with("//") {
                break;
            }
            if character == '"' && previous != '\\' && !(previous == '\'' && rest[1..].starts_with('\'')) {
                quoted = !quoted;
            }
            if !quoted {
                code.push(character);
            }
            previous = if previous == '\\' && character == '\\' { ' ' } else { character };
            rest = &rest[character.len_utf8()..];
        }
        code.push('\n');
    }
    code
}

/// The paths that follow `prefix` in the code, braces resolved: `crate::{a::{b, c}, d}` gives `a::b`, `a::c`, `d`.
fn paths_after(code: &str, prefix: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (at, _) in code.match_indices(prefix) {
        let before = code[..at].chars().next_back().unwrap_or(' ');
        if !before.is_alphanumeric() && before != '_' && before != ':' {
            expand(&code[at + prefix.len()..], "", &mut found);
        }
    }
    found
}

/// Reads one path tree at the start of `code`, appends its leaves to `found`, and returns what follows it.
fn expand<'a>(code: &'a str, head: &str, found: &mut Vec<String>) -> &'a str {
    let code = code.trim_start();
    if let Some(mut rest) = code.strip_prefix('{') {
        loop {
            rest = rest.trim_start_matches(|c: char| c.is_whitespace() || c == ',');
            if rest.is_empty() {
                return rest;
            }
            if let Some(after) = rest.strip_prefix('}') {
                return after;
            }
            let after = expand(rest, head, found);
            // A name we cannot read (`as _`, a macro's `$name`): step over one character.
            rest = if after.len() == rest.len() {
                rest.split_at(rest.chars().next().map_or(0, char::len_utf8)).1
            } else {
                after
            };
        }
    }
    let end = code.find(|c: char| !(c.is_alphanumeric() || c == '_' || c == '*')).unwrap_or(code.len());
    let (name, rest) = code.split_at(end);
    let path = if head.is_empty() { name.to_owned() } else { format!("{head}::{name}") };
    match rest.strip_prefix("::") {
        Some(rest) if !name.is_empty() => expand(rest, &path, found),
        _ => {
            if !name.is_empty() {
                found.push(path);
            }
            rest
        }
    }
}

/// How many modules deep the file's own module lies: `src/pass.rs` is 1, `src/model/kv/pages.rs` is 3.
fn depth(file: &str) -> usize {
    let parts = file.trim_start_matches("src/").trim_end_matches(".rs").split('/');
    parts.filter(|part| *part != "mod" && *part != "lib").count()
}

/// Wrong arrows of one file, in words.
fn wrong_arrows(file: &str, text: &str) -> Vec<String> {
    let room = room_of(file);
    if room == "lib" || room == "main" {
        return Vec::new();
    }
    let Some((_, allowed)) = ARROWS.iter().find(|(name, _)| *name == room) else {
        return vec![format!("{file}: {room} is no room of the house")];
    };
    let code = code(text);
    let mut wrong = BTreeSet::new();
    let up = "super::".repeat(depth(file));
    let paths = paths_after(&code, "crate::").into_iter().chain(paths_after(&code, &up));
    for path in paths {
        let target = path.split("::").next().expect("a first part");
        if target == room || !ARROWS.iter().any(|(name, _)| *name == target) {
            continue;
        }
        if !allowed.contains(&target) {
            wrong.insert(format!("{file}: {room} must not use {target} ({path})"));
        } else if let Some((_, _, names)) = NARROW.iter().find(|narrow| (narrow.0, narrow.1) == (room, target)) {
            let name = path.split("::").nth(1).unwrap_or("*");
            if !names.contains(&name) {
                wrong.insert(format!("{file}: {room} may use {names:?} of {target}, not {path}"));
            }
        }
    }
    for (krate, rooms) in CONFINED {
        if !rooms.contains(&room) && (!paths_after(&code, &format!("{krate}::")).is_empty()) {
            wrong.insert(format!("{file}: {room} must not know {krate}"));
        }
    }
    wrong.into_iter().collect()
}

#[test]
fn arrows_point_the_right_way() {
    let wrong: Vec<_> = sources("src").iter().flat_map(|(file, text)| wrong_arrows(file, text)).collect();
    assert!(wrong.is_empty(), "wrong arrows:\n{}", wrong.join("\n"));
}

#[test]
fn the_table_in_the_documentation_is_the_same() {
    let text = fs::read_to_string(root().join("src/lib.rs")).expect("src/lib.rs");
    let rows = text.lines().filter_map(|line| line.strip_prefix("//! | [`")?.split_once('`'));
    let told: BTreeMap<&str, BTreeSet<&str>> = rows
        .map(|(room, rest)| {
            let uses = rest.rsplit('|').nth(1).expect("a last column").trim();
            let all = ARROWS.iter().map(|(name, _)| *name).filter(|name| *name != room);
            (room, if uses == "all" { all.collect() } else { uses.split('`').skip(1).step_by(2).collect() })
        })
        .collect();
    let held: BTreeMap<_, _> = ARROWS.iter().map(|(room, uses)| (*room, uses.iter().copied().collect())).collect();
    assert_eq!(told, held);
}

#[test]
fn a_wrong_arrow_is_found_however_it_is_written() {
    for (file, text) in [
        ("src/model/mod.rs", "use crate::scheduler::Job;"),
        ("src/model/kv.rs", "use crate::{pass::Row, scheduler::{Job, Event}};"),
        ("src/model/kv.rs", "fn f() { let _ = crate::api::router(); }"),
        ("src/pass.rs", "use super::diffusion::Sampler;"),
        ("src/kernels/cpu/mod.rs", "use super::super::pass::Row;"),
        ("src/scheduler/mod.rs", "use candle_core::Tensor;"),
        ("src/kernels/cpu/tests.rs", "use canvasd::model::Model;"),
        ("src/scheduler/mod.rs", "use canvasd_kernels::cpu::Cpu;"),
        ("src/prompt/mod.rs", "use crate::scheduler::{CommitGate, Job};"),
        ("src/prompt/mod.rs", "use crate::scheduler::*;"),
        ("src/attic.rs", ""),
    ] {
        assert!(!wrong_arrows(file, text).is_empty(), "{file}: {text}");
    }
    for (file, text) in [
        ("src/model/mod.rs", "// use crate::scheduler::Job;\nuse crate::{kernels, pass::{self, Row}};"),
        ("src/model/mod.rs", "let words = \"crate::scheduler::Job // no\"; use crate::pass::Row;"),
        ("src/prompt/mod.rs", "use crate::scheduler::{CommitGate, FinishReason, Verdict};"),
        ("src/cli/mod.rs", "use crate::{api, model, scheduler};"),
    ] {
        assert_eq!(wrong_arrows(file, text), Vec::<String>::new(), "{file}: {text}");
    }
}

#[test]
fn unsafe_stands_in_the_kernels_and_the_memory_map_alone() {
    for (file, text) in sources("src") {
        let found = code(&text).split(|c: char| !(c.is_alphanumeric() || c == '_')).any(|word| word == "unsafe");
        let allowed = UNSAFE.iter().any(|place| file.starts_with(place));
        assert!(allowed || !found, "{file}: unsafe belongs to {UNSAFE:?}");
    }
}

#[test]
fn every_file_of_src_says_what_it_is_for() {
    for (file, text) in sources("src") {
        if !file.ends_with("/tests.rs") {
            assert!(text.starts_with("//! "), "{file} begins without saying what it is for");
        }
    }
}

#[test]
fn long_files_are_reported() {
    for (file, text) in ["src", "tests", "benches"].into_iter().flat_map(sources) {
        let lines = text.lines().count();
        if lines > 500 {
            println!("{file} has {lines} lines: does it still do one thing?");
        }
        assert!(lines <= 1000, "{file} has {lines} lines: split it");
    }
}

/// Whether a licence expression can be satisfied from the allowed ones. Knows `OR`, `AND`, `WITH`, parentheses and the
/// old `MIT/Apache-2.0`.
fn satisfied(expression: &str, allowed: &BTreeSet<String>) -> bool {
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ").replace(" WITH ", "-WITH-");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let (value, rest) = any(&words, allowed);
    value && rest.is_empty()
}

fn any<'a, 'b>(words: &'a [&'b str], allowed: &BTreeSet<String>) -> (bool, &'a [&'b str]) {
    let (mut value, mut rest) = all(words, allowed);
    while let Some(("OR", after)) = rest.split_first().map(|(word, after)| (*word, after)) {
        let (next, after) = all(after, allowed);
        (value, rest) = (value | next, after);
    }
    (value, rest)
}

fn all<'a, 'b>(words: &'a [&'b str], allowed: &BTreeSet<String>) -> (bool, &'a [&'b str]) {
    let (mut value, mut rest) = one(words, allowed);
    while let Some(("AND", after)) = rest.split_first().map(|(word, after)| (*word, after)) {
        let (next, after) = one(after, allowed);
        (value, rest) = (value & next, after);
    }
    (value, rest)
}

fn one<'a, 'b>(words: &'a [&'b str], allowed: &BTreeSet<String>) -> (bool, &'a [&'b str]) {
    match words.split_first() {
        None => (false, words),
        Some((&"(", rest)) => {
            let (value, rest) = any(rest, allowed);
            (value, rest.split_first().map_or(rest, |(_, after)| after))
        }
        Some((name, rest)) => (allowed.contains(*name), rest),
    }
}

/// The licences that `deny.toml` allows.
fn allowed_licences() -> BTreeSet<String> {
    let deny: toml::Table = fs::read_to_string(root().join("deny.toml")).expect("deny.toml").parse().expect("TOML");
    let list = deny["licenses"]["allow"].as_array().expect("a list").iter();
    list.map(|name| name.as_str().expect("a name").replace(" WITH ", "-WITH-")).collect()
}

#[test]
fn dependencies_come_under_allowed_licences_and_from_the_registry() {
    // This platform's default build: what is certain to be at hand without a network. `cargo deny` sees the rest.
    let output = std::process::Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--locked", "--offline", "--filter-platform", &host()])
        .current_dir(root())
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let allowed = allowed_licences();
    let mut refused = BTreeMap::new();
    let packages = metadata["packages"].as_array().expect("packages");
    assert!(packages.len() > 50, "only {} packages seen", packages.len());
    for package in packages {
        let name = package["name"].as_str().expect("a name");
        let licence = package["license"].as_str().unwrap_or("none");
        if !satisfied(licence, &allowed) {
            refused.insert(name, format!("licence {licence}"));
        }
        let source = package["source"].as_str().unwrap_or("registry+");
        if !source.starts_with("registry+") && !source.starts_with("sparse+") {
            refused.insert(name, format!("source {source}"));
        }
    }
    assert!(refused.is_empty(), "not allowed by deny.toml: {refused:#?}");
}

/// The triple of the machine that runs the tests.
fn host() -> String {
    let output = std::process::Command::new("rustc").arg("-vV").output().expect("rustc runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.lines().find_map(|line| line.strip_prefix("host: ")).expect("a host line").to_owned()
}

#[test]
fn licence_expressions_are_understood() {
    let allowed: BTreeSet<String> = ["MIT", "Apache-2.0", "Unicode-3.0"].map(str::to_owned).into();
    for good in ["MIT", "MIT OR GPL-3.0", "GPL-3.0/MIT", "(MIT OR Apache-2.0) AND Unicode-3.0", "MIT AND Apache-2.0"] {
        assert!(satisfied(good, &allowed), "{good}");
    }
    for bad in ["GPL-3.0", "MIT AND GPL-3.0", "", "none", "(MIT OR Apache-2.0) AND GPL-2.0", "MIT MIT"] {
        assert!(!satisfied(bad, &allowed), "{bad}");
    }
}

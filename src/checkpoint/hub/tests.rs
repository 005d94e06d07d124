//! Downloads from a local server that speaks the hub's protocol.

#![cfg(feature = "hub")]

use std::collections::HashMap;
use std::path::Path;
use std::sync::Mutex;

use sha2::Digest;

use super::*;
use server::{COMMIT, LARGE, Server, hex, noise};

#[path = "../../../tests/support/hub.rs"]
mod server;

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

/// A config.json of a model that can be served.
fn config() -> Vec<u8> {
    super::super::demo::FILES[0].1.to_vec()
}

fn sharded() -> Vec<(&'static str, Vec<u8>)> {
    let index = serde_json::json!({"weight_map": {"a": "model-1-of-2.safetensors", "b": "model-2-of-2.safetensors"}});
    vec![
        ("README.md", b"not wanted".to_vec()),
        ("config.json", config()),
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
fn shards_may_have_any_name() {
    let index =
        serde_json::json!({"weight_map": {"a": "model.safetensors-1-of-2.safetensors", "b": "rest.safetensors"}});
    let mut files = vec![
        ("config.json", config()),
        ("model.safetensors.index.json", index.to_string().into_bytes()),
        ("model.safetensors-1-of-2.safetensors", noise(9, 2)),
        ("model-1-of-1.safetensors", b"of an older index".to_vec()),
        ("rest.safetensors", noise(5, 3)),
    ];
    let (server, cache) = (Server::start(&files), tempfile::tempdir().unwrap());
    let hub = hub(&server, &cache);
    let Source::Folder(snapshot) = hub.fetch(&name("own/er"), &quiet).unwrap() else { panic!() };
    assert!(!snapshot.join("model-1-of-1.safetensors").exists(), "not asked for");
    for (file, bytes) in files.iter().filter(|(file, _)| *file != "model-1-of-1.safetensors") {
        assert!(std::fs::read(snapshot.join(file)).unwrap() == *bytes, "{file}");
    }
    files.retain(|(file, _)| *file != "rest.safetensors");
    let server = Server::start(&files);
    server.seen();
    let cache = tempfile::tempdir().unwrap();
    let error = self::hub(&server, &cache).fetch(&name("own/er"), &quiet).unwrap_err().to_string();
    assert!(error.contains("names rest.safetensors, which the repository does not have"), "{error}");
    assert!(server.seen().iter().all(|seen| !seen.path.starts_with("/stored/")), "no byte of the weights");
}

#[test]
fn files_of_one_etag_that_is_no_sum_are_kept_apart() {
    // Two shards of one length, as mirrors that name files by time and length have them.
    let mut files = sharded();
    files[4].1 = noise(5, 2);
    for etag in ["v-1", "5f1e2d3c-5"] {
        let (server, cache) = (Server::start(&files), tempfile::tempdir().unwrap());
        server.set(|behaviour| behaviour.etag = Some(etag.to_owned()));
        let hub = hub(&server, &cache);
        let whole = |snapshot: &Path| {
            for (file, bytes) in &files[1..] {
                assert!(std::fs::read(snapshot.join(file)).unwrap() == *bytes, "{etag}: {file}");
            }
        };
        let Source::Folder(snapshot) = hub.fetch(&name("own/er"), &quiet).unwrap() else { panic!() };
        whole(&snapshot);
        // What is there is not fetched again, also where another program has named the blob by the etag alone.
        let own = snapshot.join("tokenizer.json");
        std::fs::remove_file(own.canonicalize().unwrap()).unwrap();
        std::fs::remove_file(own).unwrap();
        let theirs = snapshot.join("../../blobs").join(etag);
        std::fs::write(&theirs, &files[2].1).unwrap();
        std::fs::copy(&theirs, snapshot.join("tokenizer.json")).unwrap();
        server.seen();
        hub.mend(&name("own/er"), &quiet).unwrap();
        assert!(server.seen().iter().all(|seen| seen.method == "HEAD" || seen.path.starts_with("/api")));
        whole(&snapshot);
        // A name that leads to another file's bytes is set right.
        std::fs::remove_file(snapshot.join("model-1-of-2.safetensors")).unwrap();
        std::fs::copy(&theirs, snapshot.join("model-1-of-2.safetensors")).unwrap();
        hub.fetch(&name("own/er"), &quiet).unwrap();
        whole(&snapshot);
    }
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
fn a_plain_name_means_what_the_repository_offers() {
    let files = [
        ("config.json", config()),
        ("model.safetensors", noise(30, 1)),
        ("tokenizer.json", noise(20, 2)),
        ("m-Q4_K_M.gguf", noise(100, 3)),
        ("m-Q8_0.gguf", noise(100, 4)),
    ];
    let (server, cache) = (Server::start(&files), tempfile::tempdir().unwrap());
    let hub = hub(&server, &cache);
    let offline = Hub { offline: true, ..hub.clone() };
    let plain = name("own/er");
    let one = hub.fetch(&name("own/er:Q8_0"), &quiet).unwrap();
    // The one file in the cache is not what the plain name means, unless nobody can be asked.
    assert_eq!(hub.cached(&plain).unwrap(), None);
    assert_eq!(offline.cached(&plain).unwrap(), Some(one));
    let snapshot = cache.path().join("models--own--er/snapshots").join(COMMIT);
    let folder = Source::Folder(snapshot.clone());
    assert_eq!(hub.locate(&plain, &quiet).unwrap(), folder);
    hub.fetch(&name("own/er:Q4_K_M"), &quiet).unwrap();
    server.seen();
    assert_eq!(hub.locate(&plain, &quiet).unwrap(), folder);
    assert_eq!(offline.locate(&plain, &quiet).unwrap(), folder);
    assert!(server.seen().is_empty(), "what a fetch has found out is not asked again");
    // Another tool's choice of files, as good as it is: completed where the hub can be asked.
    std::fs::remove_dir_all(cache.path().join("models--own--er/.canvasd.files")).unwrap();
    std::fs::remove_file(snapshot.join("tokenizer.json")).unwrap();
    let error = offline.locate(&plain, &quiet).unwrap_err().to_string();
    assert!(error.contains("(wholly)"), "{error}");
    assert_eq!(hub.locate(&plain, &quiet).unwrap(), folder);
    assert!(std::fs::read(snapshot.join("tokenizer.json")).unwrap() == files[2].1);
}

#[test]
fn a_cache_that_is_whole_serves_while_the_hub_is_away() {
    let files = [("config.json", config()), ("model.safetensors", noise(30, 1)), ("tokenizer.json", noise(20, 2))];
    let (server, cache) = (Server::start(&files), tempfile::tempdir().unwrap());
    let hub = hub(&server, &cache);
    let plain = name("own/er");
    let folder = hub.fetch(&plain, &quiet).unwrap();
    let Source::Folder(snapshot) = &folder else { panic!("{folder:?}") };
    // As another program would have filled it.
    std::fs::remove_dir_all(cache.path().join("models--own--er/.canvasd.files")).unwrap();
    let away = || server.set(|behaviour| behaviour.busy = 3);
    away();
    assert_eq!(hub.locate(&plain, &quiet).unwrap(), folder);
    away();
    let error = hub.fetch(&plain, &quiet).unwrap_err();
    assert!(matches!(error, CheckpointError::Unreachable { .. }), "a fetch says that it has not fetched: {error}");
    // A hub that answers is believed.
    server.set(|behaviour| behaviour.refuse = Some((404, "RepoNotFound")));
    let error = hub.locate(&plain, &quiet).unwrap_err().to_string();
    assert!(error.contains("no such repository"), "{error}");
    server.set(|behaviour| behaviour.refuse = None);
    std::fs::remove_file(snapshot.join("tokenizer.json")).unwrap();
    away();
    let error = hub.locate(&plain, &quiet).unwrap_err().to_string();
    assert!(error.contains("try again later"), "a part of a checkpoint does not serve: {error}");
}

#[test]
fn a_listing_cannot_write_outside_of_its_folder() {
    for file in ["../../../outside.gguf", "/tmp/canvasd-outside.gguf", "a/./m.gguf", "..\\m.gguf"] {
        let (server, folder) = (Server::start(&[(file, noise(9, 1))]), tempfile::tempdir().unwrap());
        let hub = Hub { cache: folder.path().join("cache"), ..hub(&server, &folder) };
        let error = hub.fetch(&name("own/er"), &quiet).unwrap_err().to_string();
        assert!(error.contains("leads out of the repository's folder"), "{file}: {error}");
        assert!(server.seen().iter().all(|seen| seen.path.starts_with("/api/")), "{file}: only listed");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "{file}: nothing was written");
    }
}

#[test]
fn what_went_bad_in_the_cache_is_mended() {
    let files = [("config.json", config()), ("model.safetensors", noise(LARGE, 6))];
    let (server, cache) = (Server::start(&files), tempfile::tempdir().unwrap());
    let hub = hub(&server, &cache);
    let Source::Folder(snapshot) = hub.fetch(&name("own/er"), &quiet).unwrap() else { panic!() };
    for spoilt in [1, 0] {
        let (file, bytes) = &files[spoilt];
        let blob = snapshot.join(file).canonicalize().unwrap();
        // Of the right length, which is all that a fetch looks at.
        std::fs::write(&blob, vec![0; bytes.len()]).unwrap();
        hub.fetch(&name("own/er"), &quiet).unwrap();
        assert!(std::fs::read(&blob).unwrap() != *bytes);
        server.seen();
        hub.mend(&name("own/er"), &quiet).unwrap();
        assert!(std::fs::read(snapshot.join(file)).unwrap() == *bytes, "{file}");
        let other = files[1 - spoilt].0;
        let asked = server.seen();
        assert!(asked.iter().all(|seen| seen.method == "HEAD" || !seen.path.ends_with(other)), "{other} was good");
    }
}

#[test]
fn what_cannot_be_served_is_refused_before_its_weights_are_asked_for() {
    let mut foreign: serde_json::Value = serde_json::from_slice(&config()).unwrap();
    foreign["quantization_config"] = serde_json::json!({"quant_method": "bitsandbytes"});
    for (file, text, what) in [
        ("config.json", r#"{"model_type": "llama", "text_config": {}}"#.to_owned(), "DiffusionGemma only"),
        ("config.json", foreign.to_string(), "(bitsandbytes)"),
        ("hf_quant_config.json", r#"{"quantization": {"quant_algo": "FP8"}}"#.to_owned(), "(FP8)"),
        ("generation_config.json", r#"{"t_min": 2}"#.to_owned(), "t_min"),
    ] {
        let (server, cache) = (Server::start(&sharded()), tempfile::tempdir().unwrap());
        server.set(|behaviour| drop(behaviour.files.insert(file.to_owned(), text.into_bytes())));
        let hub = hub(&server, &cache);
        let error = hub.locate(&name("own/er"), &quiet).unwrap_err().to_string();
        assert!(error.starts_with(file) && error.contains(what), "{file}: {error}");
        let asked = server.seen();
        assert!(asked.iter().all(|seen| !seen.path.starts_with("/stored/")), "{file}: no byte of the weights");
        let blobs = std::fs::read_dir(cache.path().join("models--own--er/blobs")).unwrap().flatten();
        assert!(blobs.into_iter().all(|entry| entry.metadata().unwrap().len() < LARGE as u64), "nor room for them");
        assert_eq!(hub.cached(&name("own/er")).unwrap(), None);
        assert_eq!(hub.cached(&name(&format!("own/er@{COMMIT}"))).unwrap(), None);
    }
}

#[test]
fn cut_connections_are_taken_up_where_they_broke() {
    let files = [("m.gguf", noise(LARGE, 4))];
    let (server, cache) = (Server::start(&files), tempfile::tempdir().unwrap());
    server.set(|behaviour| (behaviour.cut, behaviour.busy) = (3, 1));
    let Source::Gguf(path) = hub(&server, &cache).fetch(&name("own/er"), &quiet).unwrap() else { panic!() };
    assert!(std::fs::read(path).unwrap() == files[0].1);
    let seen = server.seen();
    let starts: Vec<u64> = seen.iter().filter_map(|seen| seen.range).map(|(start, _)| start).collect();
    assert!(starts.iter().any(|start| start % journal::PIECE != 0), "{starts:?}");
    // What was there before a cut is not sent again.
    let stored = seen.iter().filter(|seen| seen.path.starts_with("/stored/"));
    let asked: u64 = stored.filter_map(|seen| seen.range).map(|(start, last)| last + 1 - start).sum();
    assert!(asked < (LARGE as u64) * 2, "{asked} bytes asked for");
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
    let mut journal = journal::Journal::look(&blob, LARGE as u64);
    if journal.present() < journal::PIECE {
        journal.begin().unwrap();
        journal::copy(&files[0].1[..], journal.data(), 0, journal::PIECE, |_| Ok(true)).unwrap();
        journal.note(0, journal::PIECE).unwrap();
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
    for files in
        [[("config.json", config()), ("model.safetensors", noise(9, 1))], [("m.gguf", noise(90, 1)), ("x", vec![1])]]
    {
        let (server, cache) = (Server::start(&files), tempfile::tempdir().unwrap());
        let hub = hub(&server, &cache);
        server.set(|behaviour| behaviour.spoil = true);
        let error = hub.fetch(&name("own/er"), &quiet).unwrap_err().to_string();
        assert!(error.contains("checksum"), "{error}");
        server.set(|behaviour| behaviour.spoil = false);
        // A second spoilt file that had arrived whole is found, and deleted, by the next attempt.
        if let Err(error) = hub.fetch(&name("own/er"), &quiet) {
            assert!(error.to_string().contains("checksum"), "{error}");
            hub.fetch(&name("own/er"), &quiet).unwrap();
        }
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
    let mut nobody = server.clone();
    nobody.port = 1;
    let error = self::hub(&nobody, &cache).fetch(&name("own/er"), &quiet).unwrap_err().to_string();
    assert!(error.contains("cannot be reached") && error.contains("HF_HUB_OFFLINE=1"), "{error}");
    let offline = Hub { offline: true, ..hub };
    let error = offline.locate(&name("own/er"), &quiet).unwrap_err().to_string();
    assert!(error.contains("HF_HUB_OFFLINE forbids"), "{error}");
}

#[test]
fn what_does_not_fit_on_the_disk_is_not_begun() {
    let (server, cache) = (Server::start(&[("m.gguf", noise(9, 1))]), tempfile::tempdir().unwrap());
    server.set(|behaviour| behaviour.claim = Some(1 << 60));
    let error = hub(&server, &cache).fetch(&name("own/er"), &quiet).unwrap_err().to_string();
    assert!(error.contains("1073741824.00 GiB are to be downloaded") && error.contains("free; make room"), "{error}");
    assert!(server.seen().iter().all(|seen| !seen.path.starts_with("/stored/")), "nothing was asked for");
    let blobs = std::fs::read_dir(cache.path().join("models--own--er/blobs")).unwrap().count();
    assert_eq!(blobs, 0, "nothing was written");
}

#[test]
#[cfg(unix)]
fn a_cache_that_cannot_be_written_is_named() {
    let (server, folder) = (Server::start(&[("m.gguf", noise(9, 1))]), tempfile::tempdir().unwrap());
    // A file where the cache should be stops even those whom permissions do not stop.
    let cache = folder.path().join("cache");
    std::fs::write(&cache, "").unwrap();
    let hub = Hub { cache: cache.clone(), ..hub(&server, &folder) };
    let error = hub.fetch(&name("own/er"), &quiet).unwrap_err().to_string();
    assert!(error.contains(&format!("{} cannot be written", cache.display())), "{error}");
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

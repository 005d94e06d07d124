//! Replays the committed corpus: each file gives its error and allocates no more than its size warrants.

use std::collections::BTreeMap;
use std::path::Path;

use super::checkpoint::{Bench, PARTS};
use super::heap;

/// What opening may allocate whatever a file says (a tokenizer, a small model), and per byte of the file.
pub const MOST: usize = 24 << 20;
pub const PER_BYTE: usize = 64;

#[test]
fn every_file_of_the_corpus() {
    let _alone = heap::alone();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/damaged/corpus");
    let expected = std::fs::read(root.join("expected.json")).expect("expected.json");
    let expected: BTreeMap<String, String> = serde_json::from_slice(&expected).expect("names and errors");
    let bench = Bench::new();
    let (mut wrong, mut seen, mut highest) = (Vec::new(), 0, (0, String::new()));
    for part in PARTS {
        let mut files: Vec<_> =
            std::fs::read_dir(root.join(part.folder())).expect("a folder of the corpus").flatten().collect();
        files.sort_by_key(std::fs::DirEntry::file_name);
        for file in files {
            let name = format!("{}/{}", part.folder(), file.file_name().to_string_lossy());
            let bytes = std::fs::read(file.path()).expect("a file of the corpus");
            let (found, allocated) = heap::peak(|| bench.attempt(part, &bytes));
            seen += 1;
            highest = highest.max((allocated, name.clone()));
            if allocated > MOST + PER_BYTE * bytes.len() {
                wrong.push(format!("{name}: {allocated} bytes were allocated"));
            }
            match (expected.get(&name).map(String::as_str), found) {
                (None, _) => wrong.push(format!("{name} is not in expected.json")),
                (Some("?"), Err(error)) if error.is_empty() => wrong.push(format!("{name}: an error without words")),
                (Some("?"), _) | (Some(""), Ok(_)) => {}
                (Some(wanted), Err(error)) if !wanted.is_empty() && error.contains(wanted) => {
                    // A message is for people: short, and in one piece whatever the file's names hold.
                    if error.len() > 1500 || error.contains(['\0', '\u{1b}']) {
                        wrong.push(format!("{name}: {} bytes of error", error.len()));
                    }
                }
                (Some(wanted), found) => wrong.push(format!("{name}: {wanted:?} was expected, not {found:.300?}")),
            }
        }
    }
    println!("{seen} files; most allocated: {} KiB by {}", highest.0 >> 10, highest.1);
    assert_eq!(seen, expected.len(), "files and expectations");
    assert!(wrong.is_empty(), "{} of {seen}:\n{}", wrong.len(), wrong.join("\n"));
}

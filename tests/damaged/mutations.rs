//! Damages the corpus further, at random: whatever a file becomes, opening it gives an error or a model, in bounded memory.

use std::path::Path;
use std::sync::LazyLock;

use proptest::prelude::*;
use proptest::test_runner::{RngAlgorithm, TestRng, TestRunner};

use super::checkpoint::{Bench, PARTS, Part, fixture};
use super::corpus::{MOST, PER_BYTE};
use super::heap;

/// One change of a file; places are reduced to its length.
#[derive(Debug, Clone)]
enum Change {
    Cut(usize),
    Byte(usize, u8),
    /// A number that programs stumble over, in so many bytes.
    Number(usize, u64, usize),
    Remove(usize, usize),
    Repeat(usize, usize),
    /// The n-th number of a JSON text becomes this.
    Json(usize, &'static str),
}

const NUMBERS: [u64; 10] = [0, 1, 0x7f, 0xffff, 1 << 31, (1 << 32) - 1, 1 << 32, 1 << 62, 1 << 63, u64::MAX];
const VALUES: [&str; 14] = [
    "0",
    "-1",
    "1",
    "3",
    "4294967295",
    "2147483648",
    "9223372036854775808",
    "18446744073709551616",
    "1.5",
    "1e300",
    "null",
    "\"4\"",
    "[]",
    "{}",
];

fn change() -> impl Strategy<Value = Change> {
    let at = 0usize..1 << 20;
    prop_oneof![
        1 => at.clone().prop_map(Change::Cut),
        4 => (at.clone(), any::<u8>()).prop_map(|(at, byte)| Change::Byte(at, byte)),
        4 => (at.clone(), prop::sample::select(&NUMBERS[..]), prop::sample::select(&[4usize, 8][..]))
            .prop_map(|(at, number, width)| Change::Number(at, number, width)),
        1 => (at.clone(), 1usize..40).prop_map(|(at, length)| Change::Remove(at, length)),
        1 => (at.clone(), 1usize..40).prop_map(|(at, length)| Change::Repeat(at, length)),
        4 => (at, prop::sample::select(&VALUES[..])).prop_map(|(at, value)| Change::Json(at, value)),
    ]
}

fn apply(mut bytes: Vec<u8>, changes: &[Change]) -> Vec<u8> {
    for change in changes {
        let length = bytes.len().max(1);
        match *change {
            Change::Cut(at) => bytes.truncate(at % length),
            Change::Byte(at, byte) => bytes.iter_mut().skip(at % length).take(1).for_each(|place| *place = byte),
            Change::Number(at, number, width) => {
                let number = number.to_le_bytes();
                let places = bytes.iter_mut().skip(at % length);
                places.zip(&number[..width]).for_each(|(place, byte)| *place = *byte);
            }
            Change::Remove(at, count) => {
                let at = at % length;
                bytes.drain(at.min(bytes.len())..(at + count).min(bytes.len()));
            }
            Change::Repeat(at, count) => {
                let at = (at % length).min(bytes.len());
                let again = bytes[at..(at + count).min(bytes.len())].to_vec();
                bytes.splice(at..at, again);
            }
            Change::Json(nth, value) => replace_number(&mut bytes, nth, value),
        }
    }
    bytes
}

fn replace_number(bytes: &mut Vec<u8>, nth: usize, value: &str) {
    let digit = |byte: &u8| byte.is_ascii_digit() || matches!(byte, b'.' | b'-');
    let starts: Vec<usize> =
        (0..bytes.len()).filter(|&i| digit(&bytes[i]) && (i == 0 || b" [:,".contains(&bytes[i - 1]))).collect();
    if let Some(&start) = starts.get(nth % starts.len().max(1)) {
        let length = bytes[start..].iter().take_while(|byte| digit(byte)).count();
        bytes.splice(start..start + length, value.bytes());
    }
}

/// The sound file of a part, and every file of its corpus.
fn seeds(part: Part) -> Vec<Vec<u8>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/damaged/corpus").join(part.folder());
    let mut paths: Vec<_> = std::fs::read_dir(root).expect("a folder").flatten().map(|entry| entry.path()).collect();
    paths.sort();
    let mut seeds: Vec<_> = paths.iter().map(|path| std::fs::read(path).expect("a file")).collect();
    // Much of what is found hides behind the first check, so that sound files are worth more than damaged ones.
    let sound = match part {
        Part::Gguf => seeds[paths.iter().position(|path| path.ends_with("whole.gguf")).expect("a whole file")].clone(),
        Part::Safetensors => std::fs::read(fixture().join("model.safetensors")).expect("weights"),
        Part::Index => br#"{"metadata": {}, "weight_map": {"a": "model.safetensors"}}"#.to_vec(),
        Part::Config => std::fs::read(fixture().join("config.json")).expect("a file"),
        Part::Generation => std::fs::read(fixture().join("generation_config.json")).expect("a file"),
        Part::Tokenizer => std::fs::read(fixture().join("tokenizer.json")).expect("a file"),
        Part::TokenizerConfig => std::fs::read(fixture().join("tokenizer_config.json")).expect("a file"),
    };
    let count = seeds.len();
    seeds.extend(std::iter::repeat_n(sound, count.max(1)));
    seeds
}

static BENCH: LazyLock<Bench> = LazyLock::new(Bench::new);

fn damaged(part: Part, cases: u32) {
    let _alone = heap::alone();
    let seeds = seeds(part);
    let config = ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() };
    // The same cases in every run, unless somebody goes hunting.
    let mut runner = match std::env::var("CANVASD_DAMAGED_CASES") {
        Ok(_) => TestRunner::new(config),
        Err(_) => TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha)),
    };
    // Changes of headers find more than changes of data, which is checked by nobody: places are drawn near the beginning.
    let strategy = (0..seeds.len(), prop::collection::vec(change(), 1..4));
    let result = runner.run(&strategy, |(seed, changes)| {
        let bytes = apply(seeds[seed].clone(), &changes);
        let (found, allocated) = heap::peak(|| BENCH.attempt(part, &bytes));
        prop_assert!(allocated <= MOST + PER_BYTE * bytes.len(), "{allocated} bytes for a file of {}", bytes.len());
        if let Err(error) = found {
            prop_assert!(!error.is_empty() && error.len() < 4000, "{} bytes of error", error.len());
        }
        Ok(())
    });
    result.unwrap_or_else(|error| panic!("{part:?}: {error}"));
}

/// More cases, and others every time, where somebody asks for them: `CANVASD_DAMAGED_CASES=100000 cargo test --test damaged`.
fn cases(usual: u32) -> u32 {
    std::env::var("CANVASD_DAMAGED_CASES").ok().and_then(|count| count.parse().ok()).unwrap_or(usual)
}

#[test]
fn damaged_gguf_files() {
    damaged(Part::Gguf, cases(600));
}

#[test]
fn damaged_safetensors_files() {
    damaged(Part::Safetensors, cases(400));
}

#[test]
fn damaged_json_files() {
    for part in PARTS {
        if !matches!(part, Part::Gguf | Part::Safetensors) {
            damaged(part, cases(150));
        }
    }
}

//! Any bytes as a checkpoint's config file.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;

#[allow(dead_code)]
#[path = "../../tests/damaged/checkpoint.rs"]
mod checkpoint;

static BENCH: LazyLock<checkpoint::Bench> = LazyLock::new(checkpoint::Bench::new);

fuzz_target!(|bytes: &[u8]| {
    let _ = BENCH.attempt(checkpoint::Part::Config, bytes);
});

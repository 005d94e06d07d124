//! What is written down in two rooms that do not know each other is the same in both.

use std::time::Instant;

use serde_json::json;

use super::{kv_share, load, sampler, settings};
use crate::checkpoint::GenerationDefaults;
use crate::cli::CliError;
use crate::config::{Bytes, Config, LEAST_ENCODE_ROWS};
use crate::diffusion::Sampler;
use crate::model::PAGE_TOKENS;
use crate::pass::{Denoiser, Limits};
use crate::scheduler::{Core, Settings, StartError};

#[test]
fn a_checkpoint_that_says_nothing_is_sampled_as_the_sampler_does_by_itself() {
    assert_eq!(sampler(&GenerationDefaults::default()), Sampler::default());
}

/// Whether the sampler takes these settings, and whether a checkpoint may say them.
fn taken(given: Sampler) -> (bool, bool) {
    let file = json!({
        "max_denoising_steps": given.max_steps, "t_min": given.t_min, "t_max": given.t_max,
        "stability_threshold": given.stability_threshold, "confidence_threshold": given.confidence_threshold,
        "sampler_config": {"entropy_bound": given.entropy_bound},
    });
    let read = GenerationDefaults::from_json("generation_config.json", Some(&file), &json!({}), 100);
    if let Ok(read) = &read {
        assert_eq!(sampler(read), given);
    }
    (given.validate().is_ok(), read.is_ok())
}

#[test]
fn a_checkpoint_may_say_what_the_sampler_takes() {
    let own = Sampler::default();
    let least = f32::MIN_POSITIVE;
    for good in [
        Sampler { max_steps: 1, ..own },
        Sampler { max_steps: 10_000, ..own },
        Sampler { t_min: 0.0, t_max: least, ..own },
        Sampler { t_max: f32::MAX, ..own },
        Sampler { entropy_bound: least, ..own },
        Sampler { entropy_bound: f32::MAX, ..own },
        Sampler { confidence_threshold: least, ..own },
        Sampler { stability_threshold: 0, ..own },
        Sampler { stability_threshold: 10_000, ..own },
    ] {
        assert_eq!(taken(good), (true, true), "{good:?}");
    }
    for bad in [
        Sampler { max_steps: 0, ..own },
        Sampler { max_steps: Sampler::MAX_STEPS + 1, ..own },
        Sampler { t_min: -least, ..own },
        Sampler { t_min: own.t_max, ..own },
        Sampler { entropy_bound: 0.0, ..own },
        Sampler { entropy_bound: -1.0, ..own },
        Sampler { confidence_threshold: 0.0, ..own },
        Sampler { confidence_threshold: -1.0, ..own },
    ] {
        assert_eq!(taken(bad), (false, false), "{bad:?}");
    }
    // A slip in a file, if not in arithmetic.
    assert_eq!(taken(Sampler { max_steps: 10_001, ..own }), (true, false));
}

fn limits() -> Limits {
    Limits {
        canvas: 256,
        vocabulary: 1000,
        context: 4096,
        window: 1024,
        page_tokens: 64,
        full_page_bytes: 1 << 10,
        sliding_page_bytes: 1 << 12,
        slot_bytes: 1 << 20,
        row_bytes: 1 << 10,
    }
}

#[test]
fn the_configuration_s_defaults_are_the_scheduler_s() {
    let limits = limits();
    let configured = settings(&Config::default(), &limits);
    // Memory is this machine's.
    let (kv_bytes, working_bytes) = (configured.kv_bytes, configured.working_bytes);
    assert_eq!(configured, Settings { kv_bytes, working_bytes, ..Settings::default() });

    // Not because they are handed on from there.
    let other = Config { encode_rows: 64, max_running: 3, queue: 5, ..Config::default() };
    let configured = settings(&other, &limits);
    assert_eq!((configured.encode_rows, configured.max_running, configured.queue), (64, 3, 5));
}

/// Where memory is no matter, nobody's context is cut by what is taken of it unasked.
#[test]
fn the_default_share_holds_whatever_is_encoded_at_once() {
    for encode_rows in [64, 256, 1024, 4096, 16_384] {
        for max_running in [1, 2, 8] {
            let config = Config { encode_rows, max_running, ..Config::default() };
            let kv_bytes = kv_share(&config, &limits(), Some(1 << 40));
            let settings = Settings { kv_bytes, working_bytes: None, ..settings(&config, &limits()) };
            let (core, _) = Core::new(&limits(), &settings, Instant::now()).expect("it starts");
            assert_eq!(core.front().limits().context, limits().context, "{encode_rows} rows, {max_running} running");
        }
    }
}

#[test]
fn the_least_that_is_encoded_is_a_page() {
    assert_eq!(LEAST_ENCODE_ROWS, PAGE_TOKENS);
}

/// A large model takes minutes to load, and what is wrong with the configuration is no matter of the model's.
#[test]
fn settings_with_which_nothing_starts_are_refused_before_a_weight_is_read() {
    let small = Config { threads: Some(1), ..Config::default() };
    let refused = |config: &Config| match load(config, 1) {
        Err(error @ CliError::Start(_)) => (error.exit_code(), error),
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("loaded"),
    };
    let (code, error) = refused(&Config { encode_rows: 64, max_rows_per_pass: Some(100), ..small.clone() });
    assert!(code == 2 && matches!(error, CliError::Start(StartError::TooSmall { setting: "max_rows_per_pass", .. })));
    let (code, error) = refused(&Config { kv_memory: Some(Bytes(1024)), ..small.clone() });
    assert!(code == 2 && matches!(error, CliError::Start(StartError::KvMemory { given: 1024, .. })));
    // It is judged by what the model will be.
    let checkpoint = crate::checkpoint::open(&super::Source::parse(None).unwrap()).unwrap();
    let (options, (model, _)) = (super::options(&small, 1), load(&small, 1).unwrap());
    let told = super::DiffusionGemma::limits_of(&checkpoint.config, checkpoint.weights.as_ref(), &options).unwrap();
    assert_eq!(&told, model.limits());
}

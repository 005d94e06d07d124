//! What is written down in two rooms that do not know each other is the same in both.

use std::time::Duration;

use serde_json::json;

use super::{sampler, settings};
use crate::checkpoint::GenerationDefaults;
use crate::config::Config;
use crate::diffusion::Sampler;
use crate::pass::Limits;
use crate::scheduler::Settings;

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

#[test]
fn the_configuration_s_defaults_are_the_scheduler_s() {
    let limits = Limits {
        canvas: 256,
        vocabulary: 1000,
        context: 4096,
        window: 1024,
        page_tokens: 64,
        full_page_bytes: 1 << 20,
        sliding_page_bytes: 1 << 20,
        slot_bytes: 1 << 20,
        row_bytes: 1 << 10,
    };
    let configured = settings(&Config::default(), &limits);
    // Memory is this machine's.
    let (kv_bytes, working_bytes) = (configured.kv_bytes, configured.working_bytes);
    assert_eq!(configured, Settings { kv_bytes, working_bytes, ..Settings::default() });

    // Not because they are handed on from there.
    let other = Config { encode_rows: 64, max_running: 3, queue: 5, stall_timeout_seconds: 7, ..Config::default() };
    let configured = settings(&other, &limits);
    let told = (configured.encode_rows, configured.max_running, configured.queue, configured.stall_timeout);
    assert_eq!(told, (64, 3, 5, Duration::from_secs(7)));
}

//! Named trades of quality for speed, relative to the checkpoint's own settings.
//!
//! What each costs and gives on the demo model is measured by `canvasd bench --efforts` and written down in `docs/api.md`.

use super::sampler::Sampler;

/// A trade of quality for speed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Effort {
    /// Fewer steps: more is accepted per step, and less confidence is wanted.
    Fast,
    /// The checkpoint's own settings.
    Balanced,
    /// More steps: less is accepted per step, and a canvas has to hold still for longer.
    Quality,
}

impl Effort {
    /// All of them, the fastest first.
    pub const ALL: [Effort; 3] = [Effort::Fast, Effort::Balanced, Effort::Quality];

    /// Its name in requests.
    pub fn word(self) -> &'static str {
        match self {
            Effort::Fast => "fast",
            Effort::Balanced => "balanced",
            Effort::Quality => "quality",
        }
    }

    /// The checkpoint's settings, changed by this effort.
    pub fn apply(self, checkpoint: Sampler) -> Sampler {
        match self {
            Effort::Fast => Sampler {
                max_steps: checkpoint.max_steps.div_ceil(3),
                entropy_bound: checkpoint.entropy_bound * 3.0,
                confidence_threshold: checkpoint.confidence_threshold * 4.0,
                ..checkpoint
            },
            Effort::Balanced => checkpoint,
            Effort::Quality => Sampler {
                entropy_bound: checkpoint.entropy_bound / 2.0,
                confidence_threshold: checkpoint.confidence_threshold / 2.0,
                stability_threshold: checkpoint.stability_threshold.saturating_add(1),
                ..checkpoint
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn efforts_are_valid_and_in_order() {
        let [fast, balanced, quality] = Effort::ALL.map(|effort| effort.apply(Sampler::default()));
        assert_eq!(balanced, Sampler::default());
        for sampler in [fast, balanced, quality] {
            assert_eq!(sampler.validate(), Ok(()));
        }
        assert!(fast.max_steps < balanced.max_steps && balanced.max_steps <= quality.max_steps);
        assert!(fast.entropy_bound > balanced.entropy_bound && balanced.entropy_bound > quality.entropy_bound);
        assert!(fast.confidence_threshold > balanced.confidence_threshold);
        assert!(balanced.confidence_threshold > quality.confidence_threshold);
        assert!(balanced.stability_threshold < quality.stability_threshold);
    }

    #[test]
    fn a_single_step_stays_a_step() {
        let one = Sampler { max_steps: 1, ..Sampler::default() };
        assert_eq!(Effort::Fast.apply(one).max_steps, 1);
    }
}

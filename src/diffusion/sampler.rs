//! How a canvas is denoised: the checkpoint's sampler settings, their ranges, and the temperature schedule.

/// How canvases are denoised; the checkpoint's generation_config.json gives the defaults.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampler {
    /// Most denoising steps per canvas, `≥ 1`.
    pub max_steps: usize,
    /// Temperature approached at the last step, `0 ≤ t_min < t_max`.
    pub t_min: f32,
    /// Temperature of the first step.
    pub t_max: f32,
    /// Nats of entropy that may be accepted per step, `> 0`.
    pub entropy_bound: f32,
    /// Equal argmax canvases in a row wanted before a canvas may stop.
    pub stability_threshold: usize,
    /// Mean entropy in nats below which a canvas may stop, `> 0`.
    pub confidence_threshold: f32,
}

/// A sampler setting out of its range.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
pub enum SamplerError {
    /// No canvas can be denoised in that many steps.
    #[error("max_denoising_steps must be between 1 and {max}, got {given}", max = Sampler::MAX_STEPS)]
    Steps {
        /// What was asked for.
        given: usize,
    },
    /// The temperatures are not finite or not in order.
    #[error("the temperatures must satisfy 0 <= t_min < t_max, got t_min {t_min} and t_max {t_max}")]
    Temperatures {
        /// The lower one given.
        t_min: f32,
        /// The upper one given.
        t_max: f32,
    },
    /// The entropy bound is not a finite positive number.
    #[error("entropy_bound must be a finite number above 0, got {given}")]
    EntropyBound {
        /// What was asked for.
        given: f32,
    },
    /// The confidence threshold is not a finite positive number.
    #[error("confidence_threshold must be a finite number above 0, got {given}")]
    Confidence {
        /// What was asked for.
        given: f32,
    },
}

impl Default for Sampler {
    /// What the published checkpoint uses; the reference's own fallback (section 1.2).
    fn default() -> Self {
        Sampler {
            max_steps: 48,
            t_min: 0.4,
            t_max: 0.8,
            entropy_bound: 0.1,
            stability_threshold: 1,
            confidence_threshold: 0.005,
        }
    }
}

impl Sampler {
    /// Most steps a sampler may ask for; keeps a step inside its field of the random counter. Whoever takes steps from outside
    /// has a lower limit with a reason of its own.
    pub const MAX_STEPS: usize = 1 << 20;

    /// Checks every range.
    pub fn validate(&self) -> Result<(), SamplerError> {
        if self.max_steps == 0 || self.max_steps > Self::MAX_STEPS {
            return Err(SamplerError::Steps { given: self.max_steps });
        }
        let (t_min, t_max) = (self.t_min, self.t_max);
        if !(t_min >= 0.0 && t_min < t_max && t_max.is_finite()) {
            return Err(SamplerError::Temperatures { t_min, t_max });
        }
        if !(self.entropy_bound > 0.0 && self.entropy_bound.is_finite()) {
            return Err(SamplerError::EntropyBound { given: self.entropy_bound });
        }
        if !(self.confidence_threshold > 0.0 && self.confidence_threshold.is_finite()) {
            return Err(SamplerError::Confidence { given: self.confidence_threshold });
        }
        Ok(())
    }

    /// Temperature of a step, counted from 0: `t_min + (t_max − t_min) · rem/N` with `rem = N − step`, every operation
    /// in f32 as the reference does it (section 5.1; it subtracts the bounds as f64, which can differ by one unit in the
    /// last place where their f32 difference is inexact). Steps beyond the last one keep its temperature.
    pub fn temperature(&self, step: usize) -> f32 {
        let remaining = self.max_steps.saturating_sub(step).max(1);
        self.t_min + (self.t_max - self.t_min) * (remaining as f32 / self.max_steps.max(1) as f32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_valid() {
        assert_eq!(Sampler::default().validate(), Ok(()));
    }

    #[test]
    fn every_range_is_checked() {
        let good = Sampler::default();
        let bad = [
            Sampler { max_steps: 0, ..good },
            Sampler { max_steps: Sampler::MAX_STEPS + 1, ..good },
            Sampler { t_min: -0.1, ..good },
            Sampler { t_min: 0.8, ..good },
            Sampler { t_min: f32::NAN, ..good },
            Sampler { t_max: f32::INFINITY, ..good },
            Sampler { entropy_bound: 0.0, ..good },
            Sampler { entropy_bound: f32::NAN, ..good },
            Sampler { confidence_threshold: -1.0, ..good },
            Sampler { confidence_threshold: f32::INFINITY, ..good },
        ];
        for sampler in bad {
            assert!(sampler.validate().is_err(), "{sampler:?}");
        }
        assert_eq!(Sampler { stability_threshold: 0, t_min: 0.0, ..good }.validate(), Ok(()));
    }

    /// Values computed by torch 2.15 with the reference's own expression (a 0-dimensional i32 tensor as the step).
    #[test]
    fn temperatures_equal_the_reference_bit_for_bit() {
        let sampler = Sampler::default();
        for (step, bits) in TORCH_TEMPERATURES_48 {
            assert_eq!(sampler.temperature(step).to_bits(), bits, "step {step}");
        }
        let short = Sampler { max_steps: 6, t_min: 0.25, t_max: 1.0, ..sampler };
        for (step, bits) in TORCH_TEMPERATURES_6 {
            assert_eq!(short.temperature(step).to_bits(), bits, "step {step}");
        }
    }

    #[test]
    fn the_last_temperature_is_above_t_min_and_is_kept() {
        let sampler = Sampler::default();
        assert!(sampler.temperature(47) > sampler.t_min);
        assert_eq!(sampler.temperature(48), sampler.temperature(47));
    }

    const TORCH_TEMPERATURES_48: [(usize, u32); 16] = [
        (0, 0x3f4ccccd),
        (1, 0x3f4aaaab),
        (2, 0x3f488888),
        (3, 0x3f466666),
        (5, 0x3f422222),
        (7, 0x3f3dddde),
        (11, 0x3f355556),
        (13, 0x3f311112),
        (17, 0x3f288888),
        (23, 0x3f1bbbbc),
        (31, 0x3f0aaaab),
        (37, 0x3efbbbbc),
        (41, 0x3eeaaaab),
        (45, 0x3ed9999a),
        (46, 0x3ed55556),
        (47, 0x3ed11111),
    ];
    const TORCH_TEMPERATURES_6: [(usize, u32); 6] =
        [(0, 0x3f800000), (1, 0x3f600000), (2, 0x3f400000), (3, 0x3f200000), (4, 0x3f000000), (5, 0x3ec00000)];
}

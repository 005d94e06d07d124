//! From the temperature and the seed that a user gives to a [`Draw`] and a seed: one rule for all who make jobs.

use std::hash::{BuildHasher, RandomState};

use crate::pass::Draw;

/// Factors on the temperature below this count as 0. At this one a token whose logit is 1e-5 behind the best (of the order of
/// f32's own steps there) is drawn about once in `e¹⁰` = 22,000 times: further down only rounding errors would be drawn among.
const COLDEST: f64 = 1e-6;

/// How tokens are drawn, and the seed of all random numbers, from a factor on the temperature (0 or more), a nucleus mass
/// in `(0, 1]`, and the seed if one was given.
///
/// Who asks for temperature 0 wants the same text each time, but a canvas begins as noise: without a seed it is 0 there. Else
/// it is one that nobody knows beforehand.
pub fn sampling(temperature: f64, top_p: f64, seed: Option<u64>) -> (Draw, u64) {
    if temperature < COLDEST {
        return (Draw::Argmax, seed.unwrap_or(0));
    }
    let draw = Draw::Scaled { temperature: temperature as f32, top_p: top_p as f32 };
    (draw, seed.unwrap_or_else(fresh_seed))
}

/// A seed nobody knows beforehand: the standard library takes its hashers' keys from the system's random numbers.
fn fresh_seed() -> u64 {
    RandomState::new().hash_one(std::process::id())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_warmth_the_seed_is_known_and_otherwise_new() {
        for cold in [0.0, 1e-300, 9e-7] {
            assert_eq!(sampling(cold, 0.5, None), (Draw::Argmax, 0));
            assert_eq!(sampling(cold, 0.5, Some(7)), (Draw::Argmax, 7));
        }
        let warm = Draw::Scaled { temperature: 1e-6, top_p: 0.5 };
        assert_eq!(sampling(1e-6, 0.5, Some(7)), (warm, 7));
        let seeds: std::collections::HashSet<u64> = (0..100).map(|_| sampling(1.0, 1.0, None).1).collect();
        assert_eq!(seeds.len(), 100);
    }
}

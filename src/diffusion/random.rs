//! Counter-based random numbers: a draw is a pure function of what it is for, so no order of work, no company and no
//! restart can change it.
//!
//! The generator is Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011). The seed is its
//! key; its counter holds the choice, the canvas, the step with the purpose, and the block of positions.

/// What a random number is for; draws of different purposes are independent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Purpose {
    /// The tokens a canvas starts from.
    Init = 0,
    /// The uniform number with which the model draws a row's token.
    Sample = 1,
    /// The tokens put where nothing was accepted.
    Renoise = 2,
}

/// Names one canvas of one choice of one seed: the root of all its draws.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Key {
    /// The request's seed.
    pub seed: u64,
    /// Distinguishes choices that share the seed.
    pub choice: u32,
    /// Number of the canvas within its choice, from 0.
    pub canvas: u32,
}

/// Bits of a counter word that hold the step; the purpose lies above them.
const STEP_BITS: u32 = 28;

impl Key {
    /// Four random words for one block of positions.
    fn block(&self, purpose: Purpose, step: u32, block: u32) -> [u32; 4] {
        let what = ((purpose as u32) << STEP_BITS) | (step & ((1 << STEP_BITS) - 1));
        philox4x32([block, what, self.canvas, self.choice], [self.seed as u32, (self.seed >> 32) as u32])
    }

    /// One uniform number in `[0, 1)` per position, multiples of 2⁻²⁴.
    pub(super) fn uniforms(&self, step: u32, out: &mut [f32]) {
        for (block, chunk) in out.chunks_mut(4).enumerate() {
            let words = self.block(Purpose::Sample, step, block as u32);
            for (value, word) in chunk.iter_mut().zip(words) {
                *value = (word >> 8) as f32 * (1.0 / (1 << 24) as f32);
            }
        }
    }

    /// A token for each position where `wanted`, uniform over `0..vocabulary` (64 random bits each, so that the bias
    /// is below 2⁻⁴⁶ for any vocabulary of at most 2¹⁸). The other positions are left as they are.
    pub(super) fn tokens(
        &self,
        purpose: Purpose,
        step: u32,
        vocabulary: u32,
        out: &mut [u32],
        mut wanted: impl FnMut(usize) -> bool,
    ) {
        for (block, pair) in out.chunks_mut(2).enumerate() {
            let [first, second] = [wanted(2 * block), pair.len() == 2 && wanted(2 * block + 1)];
            if !(first || second) {
                continue;
            }
            let [a, b, c, d] = self.block(purpose, step, block as u32);
            if first {
                pair[0] = below(vocabulary, a, b);
            }
            if second {
                pair[1] = below(vocabulary, c, d);
            }
        }
    }
}

/// A number in `0..bound` from 64 random bits, by multiplication.
fn below(bound: u32, high: u32, low: u32) -> u32 {
    let bits = (u64::from(high) << 32) | u64::from(low);
    ((u128::from(bits) * u128::from(bound)) >> 64) as u32
}

/// Philox4x32-10: ten rounds over a 128-bit counter under a 64-bit key.
fn philox4x32(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    const MULTIPLIER: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
    const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
    let [mut c0, mut c1, mut c2, mut c3] = counter;
    let [mut k0, mut k1] = key;
    for _ in 0..10 {
        let left = u64::from(MULTIPLIER[0]) * u64::from(c0);
        let right = u64::from(MULTIPLIER[1]) * u64::from(c2);
        (c0, c1, c2, c3) = ((right >> 32) as u32 ^ c1 ^ k0, right as u32, (left >> 32) as u32 ^ c3 ^ k1, left as u32);
        k0 = k0.wrapping_add(WEYL[0]);
        k1 = k1.wrapping_add(WEYL[1]);
    }
    [c0, c1, c2, c3]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const KEY: Key = Key { seed: 7, choice: 0, canvas: 0 };

    /// The known answers published with the generator's authors' own library (Random123, `kat_vectors`).
    #[test]
    fn known_answers() {
        assert_eq!(philox4x32([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(philox4x32([u32::MAX; 4], [u32::MAX; 2]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        assert_eq!(
            philox4x32([0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344], [0xa409_3822, 0x299f_31d0]),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    fn uniforms(key: Key, step: u32, n: usize) -> Vec<f32> {
        let mut out = vec![0.0; n];
        key.uniforms(step, &mut out);
        out
    }

    fn tokens(key: Key, purpose: Purpose, step: u32, vocabulary: u32, n: usize) -> Vec<u32> {
        let mut out = vec![0; n];
        key.tokens(purpose, step, vocabulary, &mut out, |_| true);
        out
    }

    /// What a seed means must never change: these draws are part of the interface. Values from an
    /// independent implementation of the definition above.
    #[test]
    fn draws_are_frozen() {
        assert_eq!(tokens(KEY, Purpose::Init, 0, 1000, 4), [954, 114, 406, 171]);
        let bits: Vec<u32> = uniforms(KEY, 3, 3).iter().map(|u| u.to_bits()).collect();
        assert_eq!(bits, [0x3e19fc68, 0x3f23f48a, 0x3e69e9f8]);
    }

    /// Every part of the name of a draw changes the draw.
    #[test]
    fn every_part_of_the_name_counts() {
        let base = tokens(KEY, Purpose::Init, 0, 1 << 18, 16);
        let others = [
            tokens(Key { seed: 8, ..KEY }, Purpose::Init, 0, 1 << 18, 16),
            tokens(Key { seed: 7 | 1 << 40, ..KEY }, Purpose::Init, 0, 1 << 18, 16),
            tokens(Key { choice: 1, ..KEY }, Purpose::Init, 0, 1 << 18, 16),
            tokens(Key { canvas: 1, ..KEY }, Purpose::Init, 0, 1 << 18, 16),
            tokens(KEY, Purpose::Renoise, 0, 1 << 18, 16),
            tokens(KEY, Purpose::Init, 1, 1 << 18, 16),
        ];
        for (i, other) in others.iter().enumerate() {
            let equal = base.iter().zip(other).filter(|(a, b)| a == b).count();
            assert!(equal <= 1, "draw {i} resembles the base");
        }
        assert_ne!(base[0], base[1]);
    }

    /// Mean and spread of many draws, within six standard errors.
    #[test]
    fn draws_are_uniform() {
        let n = 40_000;
        let u = uniforms(KEY, 0, n);
        let mean = u.iter().map(|&v| f64::from(v)).sum::<f64>() / n as f64;
        assert!((mean - 0.5).abs() < 6.0 * (1.0 / 12.0f64).sqrt() / (n as f64).sqrt(), "mean {mean}");
        let mut counts = [0usize; 10];
        for token in tokens(KEY, Purpose::Renoise, 0, 10, n) {
            counts[token as usize] += 1;
        }
        for count in counts {
            assert!((count as f64 - n as f64 / 10.0).abs() < 6.0 * (n as f64 * 0.09).sqrt(), "{counts:?}");
        }
    }

    proptest! {
        #[test]
        fn ranges_hold(seed: u64, choice: u32, canvas: u32, step in 0u32..1 << 20, vocabulary in 1u32..=1 << 20, n in 1usize..70) {
            let key = Key { seed, choice, canvas };
            prop_assert!(tokens(key, Purpose::Init, step, vocabulary, n).iter().all(|&t| t < vocabulary));
            prop_assert!(uniforms(key, step, n).iter().all(|&u| (0.0..1.0).contains(&u)));
        }

        /// A position's draw depends neither on how many positions there are nor on which others are wanted.
        #[test]
        fn positions_are_independent(seed: u64, step in 0u32..50, mask in proptest::collection::vec(any::<bool>(), 1..70)) {
            let key = Key { seed, choice: 1, canvas: 2 };
            let all = tokens(key, Purpose::Renoise, step, 5000, 80);
            let mut some = vec![u32::MAX; mask.len()];
            key.tokens(Purpose::Renoise, step, 5000, &mut some, |i| mask[i]);
            for (i, wanted) in mask.iter().enumerate() {
                prop_assert_eq!(some[i], if *wanted { all[i] } else { u32::MAX });
            }
            prop_assert_eq!(&uniforms(key, step, 80)[..mask.len()], &uniforms(key, step, mask.len())[..]);
        }
    }
}

//! Entropy-bound acceptance: which positions of a canvas take their sampled token in this step.

/// Marks the accepted positions and returns how many they are (the model's reference, section 5.1).
///
/// Positions are taken by ascending entropy; the i-th is accepted iff `cum_i − ent_i ≤ bound`, the sum of the strictly
/// lower ones. As `torch.cumsum` does on a CPU, the running sum is kept in f64 and rounded to f32 for each position,
/// and the subtraction is made in f32. Equal entropies are taken in order of position (the reference's sort promises no
/// order among them). The first position is always accepted, so the result is at least 1 for a canvas that is not empty.
///
/// `order` is scratch space. Entropies must be finite.
pub(super) fn accept(
    entropies: impl Iterator<Item = f32>,
    bound: f32,
    order: &mut Vec<u64>,
    accepted: &mut [bool],
) -> usize {
    order.clear();
    order.extend(entropies.enumerate().map(|(position, entropy)| (sortable(entropy) << 32) | position as u64));
    order.sort_unstable();
    accepted.fill(false);
    let mut sum = 0.0f64;
    let mut count = 0;
    for &entry in order.iter() {
        let entropy = unsortable(entry >> 32);
        sum += f64::from(entropy);
        // Rounding may let a position pass after one that did not, so every position is decided by itself.
        if sum as f32 - entropy <= bound {
            accepted[(entry & 0xffff_ffff) as usize] = true;
            count += 1;
        }
    }
    count
}

/// Bits of a float arranged so that they ascend as the floats do; both zeros are the same.
fn sortable(value: f32) -> u64 {
    let bits = (value + 0.0).to_bits();
    u64::from(if bits >> 31 == 1 { !bits } else { bits | 1 << 31 })
}

/// The inverse of [`sortable`].
fn unsortable(key: u64) -> f32 {
    let bits = key as u32;
    f32::from_bits(if bits >> 31 == 1 { bits & !(1 << 31) } else { !bits })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn run(entropies: &[f32], bound: f32) -> Vec<bool> {
        let mut accepted = vec![false; entropies.len()];
        let count = accept(entropies.iter().copied(), bound, &mut Vec::new(), &mut accepted);
        assert_eq!(count, accepted.iter().filter(|&&a| a).count());
        accepted
    }

    /// The definition, written as naively as the reference has it.
    fn naive(entropies: &[f32], bound: f32) -> Vec<bool> {
        let mut order: Vec<usize> = (0..entropies.len()).collect();
        order.sort_by(|&a, &b| entropies[a].partial_cmp(&entropies[b]).expect("finite"));
        let mut mask = vec![false; entropies.len()];
        let mut sum = 0.0f64;
        for i in order {
            sum += f64::from(entropies[i]);
            mask[i] = sum as f32 - entropies[i] <= bound;
        }
        mask
    }

    #[test]
    fn the_lowest_is_always_accepted() {
        assert_eq!(run(&[5.0, 3.0, 4.0], 0.1), [false, true, false]);
    }

    #[test]
    fn the_bound_counts_the_strictly_lower_ones() {
        assert_eq!(run(&[0.05, 9.0, 0.04, 9.5], 0.1), [true, true, true, false]);
    }

    #[test]
    fn ties_go_by_position() {
        assert_eq!(run(&[2.0, 2.0, 2.0], 2.0), [true, true, false]);
        assert_eq!(run(&[0.0, -0.0, 0.0], 0.1), [true, true, true]);
    }

    /// 2²⁴ + 1 is not an f32: a running sum in f32 would lose every later one, a sum in f64 rounds to even each time.
    #[test]
    fn the_sum_is_kept_in_f64_and_rounded_for_each_position() {
        let big = 16_777_216.0f32;
        let entropies = [1.0, 1.0, 1.0, big, big];
        // cum = 1, 2, 3, 2²⁴+3 → 2²⁴+4, 2²⁵+3 → 2²⁵+4; minus the entropy: 0, 1, 2, 4, 2²⁴+4.
        assert_eq!(run(&entropies, 3.5), [true, true, true, false, false]);
        assert_eq!(run(&entropies, 4.0), [true, true, true, true, false]);
    }

    proptest! {
        #[test]
        fn equals_the_definition(
            entropies in proptest::collection::vec(prop_oneof![0.0f32..0.01, 0.0f32..12.0, Just(0.0f32), Just(0.25f32), -1e-6f32..0.0], 1..300),
            bound in 1e-4f32..3.0,
        ) {
            prop_assert_eq!(run(&entropies, bound), naive(&entropies, bound));
        }

        #[test]
        fn a_larger_bound_accepts_no_less(
            entropies in proptest::collection::vec(0.0f32..3.0, 1..100), bound in 1e-3f32..1.0, more in 0.0f32..2.0,
        ) {
            let less = run(&entropies, bound);
            let wider = run(&entropies, bound + more);
            prop_assert!(less.iter().zip(&wider).all(|(a, b)| !a || *b));
        }

        #[test]
        fn sortable_keeps_the_order(a in -1e30f32..1e30, b in -1e30f32..1e30) {
            prop_assert_eq!(sortable(a).cmp(&sortable(b)), a.partial_cmp(&b).expect("finite"));
            prop_assert_eq!(unsortable(sortable(a)), a);
        }
    }
}

//! What is remembered of a row while tiles go by, and the passes over one row of a tile.

use super::{
    super::{
        math::{exp, softcap},
        path::Task,
        simd::Simd,
    },
    CANDIDATES, Candidate, Draw, Head,
};

/// A row's running statistics, relative to the largest z so far.
pub(super) struct RowState {
    /// Which head the row belongs to.
    pub head: usize,
    pub finite: bool,
    pub argmax: u32,
    pub max: f32,
    /// What sums are relative to: the largest z so far or guessed, in the end the largest.
    pub reference: f32,
    /// `Σ exp(z − reference)`.
    pub sum: f64,
    /// `Σ (reference − z)·exp(z − reference)`: entropy is `ln sum + spread / sum`, without cancellation.
    pub spread: f64,
    /// The best candidates, best first.
    pub top: Vec<Candidate>,
    /// How many to keep.
    keep: usize,
    /// `1 / draw temperature` where a mass per tile is needed for the draw.
    pub draw_factor: Option<f32>,
    /// Per tile: its mass for the draw, and the reference it is relative to.
    pub masses: Vec<(f32, f32)>,
    pub uniform: f32,
}

/// Sums over one tile of a row, relative to its maximum.
pub(super) struct Spread {
    pub sum: f32,
    pub spread: f32,
    pub draw: f32,
}

impl RowState {
    pub(super) fn new(index: usize, head: &Head<'_>, row: usize) -> RowState {
        let (keep, draw_factor) = match head.draw {
            Draw::Argmax => (head.top_k, None),
            Draw::Scaled { temperature, top_p } if top_p < 1.0 => (CANDIDATES, Some(1.0 / temperature)),
            Draw::Scaled { temperature, .. } => (head.top_k, Some(1.0 / temperature)),
        };
        RowState {
            head: index,
            finite: true,
            argmax: 0,
            max: f32::NEG_INFINITY,
            reference: f32::NEG_INFINITY,
            sum: 0.0,
            spread: 0.0,
            top: Vec::with_capacity(keep + 1),
            keep,
            draw_factor,
            masses: Vec::new(),
            uniform: head.uniforms.get(row).copied().unwrap_or(0.0),
        }
    }

    /// Looks at a tile's z, the largest of which is known: moves the maximum, the argmax and the candidates on. Gives the
    /// factor by which sums so far shrink.
    pub(super) fn meet(&mut self, z: &[f32], first: u32, largest: f32) -> f32 {
        let floor = if self.top.len() < self.keep {
            f32::NEG_INFINITY
        } else {
            self.top.last().map_or(f32::INFINITY, |c| c.logit)
        };
        if largest > floor {
            self.collect(z, first);
        }
        if largest <= self.max {
            return 1.0;
        }
        let at = z.iter().position(|&value| value == largest).unwrap_or(0);
        self.argmax = first + at as u32;
        self.max = largest;
        self.refer(largest)
    }

    /// Makes sums relative to `z` if that is larger than what they were relative to. Gives the factor by which they
    /// shrink.
    pub(super) fn refer(&mut self, z: f32) -> f32 {
        if z.is_nan() || z <= self.reference {
            return 1.0;
        }
        let step = f64::from(z) - f64::from(self.reference);
        self.reference = z;
        let factor = (-step).exp();
        if self.sum > 0.0 {
            self.spread = (self.spread + step * self.sum) * factor;
            self.sum *= factor;
        }
        factor as f32
    }

    /// Puts a tile's candidates into the list; equal ones keep the order of their ids.
    fn collect(&mut self, z: &[f32], first: u32) {
        for (i, &logit) in z.iter().enumerate() {
            if self.top.len() == self.keep && self.top.last().is_none_or(|last| logit <= last.logit) {
                continue;
            }
            if logit <= -1e30 {
                continue;
            }
            let at = self.top.partition_point(|other| other.logit >= logit);
            self.top.insert(at, Candidate { token: first + i as u32, logit });
            self.top.truncate(self.keep);
        }
    }

    /// A tile's mass for the draw, relative to the largest z.
    pub(super) fn weight(&self, &(mass, reference): &(f32, f32)) -> f64 {
        f64::from(mass) * self.share(reference)
    }

    /// `exp((z − max) / draw temperature)`.
    pub(super) fn share(&self, z: f32) -> f64 {
        let factor = self.draw_factor.unwrap_or(1.0);
        (f64::from(factor) * (f64::from(z) - f64::from(self.max))).exp()
    }

    pub(super) fn add(&mut self, tile: Spread) {
        self.sum += f64::from(tile.sum);
        self.spread += f64::from(tile.spread);
        if self.draw_factor.is_some() {
            self.masses.push((tile.draw, self.reference));
        }
    }
}

/// Softcap, then division by the temperature, each where given.
pub(super) struct Cap<'a> {
    pub z: &'a mut [f32],
    pub cap: Option<f32>,
    pub temperature: Option<f32>,
}

/// What [`Cap`] has seen.
pub(super) struct Capped {
    /// Whether all inputs were finite.
    pub finite: bool,
    /// The largest result; not a number counts as none.
    pub largest: f32,
}

impl Task for Cap<'_> {
    type Output = Capped;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Capped {
        let mut largest = s.splat(f32::NEG_INFINITY);
        // 0·x is zero for finite x and not a number otherwise.
        let mut poison = s.splat(0.0);
        let mut tail = [0.0; 16];
        for part in self.z.chunks_mut(S::LANES) {
            let whole = part.len() == S::LANES;
            if !whole {
                // Filled with what is there already, so that neither the largest nor the poison changes.
                tail.fill(part[0]);
                tail[..part.len()].copy_from_slice(part);
            }
            let place = if whole { part.as_mut_ptr() } else { tail.as_mut_ptr() };
            // SAFETY: a whole vector of the row, or the tail, which has sixteen numbers.
            unsafe {
                let mut v = s.load(place);
                poison = s.fma(v, s.splat(0.0), poison);
                if let Some(cap) = self.cap {
                    v = softcap(s, v, cap);
                }
                if let Some(temperature) = self.temperature {
                    v = s.mul(v, s.splat(1.0 / temperature));
                }
                largest = s.max(v, largest);
                s.store(place, v);
            }
            if !whole {
                part.copy_from_slice(&tail[..part.len()]);
            }
        }
        Capped { finite: s.sum(poison) == 0.0, largest: s.largest(largest) }
    }
}

/// Replaces a row's z by `exp(z − max)`, negligible ones by zero, and sums what the statistics need (negligible ones
/// included).
pub(super) struct Weigh<'a> {
    /// A whole number of panels.
    pub z: &'a mut [f32],
    pub max: f32,
    pub cut: f32,
    pub draw: Option<f32>,
}

impl Task for Weigh<'_> {
    type Output = Spread;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Spread {
        let zero = s.splat(0.0);
        let (mut sum, mut spread, mut draw) = (zero, zero, zero);
        let max = s.splat(self.max);
        let cut = s.splat(-self.cut);
        for i in (0..self.z.len()).step_by(S::LANES) {
            // SAFETY: panels are whole numbers of vectors.
            unsafe {
                let place = self.z.as_mut_ptr().add(i);
                let below = s.sub(s.load(place), max);
                let p = exp(s, below);
                sum = s.add(sum, p);
                spread = s.fma(s.sub(zero, below), p, spread);
                match self.draw {
                    Some(1.0) => draw = sum,
                    Some(factor) => draw = s.add(draw, exp(s, s.mul(below, s.splat(factor)))),
                    None => {}
                }
                s.store(place, s.select(s.lt(below, cut), zero, p));
            }
        }
        Spread { sum: s.sum(sum), spread: s.sum(spread), draw: s.sum(draw) }
    }
}

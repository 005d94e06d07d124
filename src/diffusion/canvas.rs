//! One canvas being denoised, as a state machine: what the model looks at next, and what follows from what it saw.

use super::acceptance::accept;
use super::random::{Key, Purpose};
use super::sampler::Sampler;
use super::structure::{Structure, StructureError};

/// What the model says about one position of the canvas in one step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Observation {
    /// The most likely token.
    pub argmax: u32,
    /// The token drawn.
    pub sampled: u32,
    /// Entropy of the position's distribution in nats, at the step's temperature.
    pub entropy: f32,
}

/// A step's observations cannot be used. The canvas is unchanged.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
pub enum ObservationError {
    /// There must be one observation per position.
    #[error("{given} observations for a canvas of {wanted}")]
    Count {
        /// Observations given.
        given: usize,
        /// Positions of the canvas.
        wanted: usize,
    },
    /// A number is not finite: the weights or the input are damaged.
    #[error("what the model says of position {position} is not finite")]
    NotFinite {
        /// Position within the canvas.
        position: usize,
    },
    /// A token is not of the vocabulary.
    #[error("position {position} holds token {token}, beyond the vocabulary")]
    Token {
        /// Position within the canvas.
        position: usize,
        /// The token observed.
        token: u32,
    },
}

/// Where a canvas stands after a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// Another step is wanted.
    Going,
    /// Stable and confident: final.
    Converged,
    /// The step limit is reached: final as it is.
    OutOfSteps,
}

impl Progress {
    /// Whether the canvas is final.
    pub fn is_done(self) -> bool {
        self != Progress::Going
    }
}

/// What a step did.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepOutcome {
    /// Positions accepted.
    pub settled: usize,
    /// Positions whose argmax differs from the step before; all of them in the first step.
    pub changed: usize,
    /// Mean entropy of the canvas in nats.
    pub mean_entropy: f32,
    /// What comes next.
    pub progress: Progress,
}

/// One canvas being denoised.
#[derive(Debug, Clone)]
pub struct Canvas {
    sampler: Sampler,
    key: Key,
    vocabulary: u32,
    /// What the model looks at in the next step.
    tokens: Vec<u32>,
    /// The most likely tokens of the last step; empty before it.
    argmax: Vec<u32>,
    /// Those of the step before that; empty before there were two.
    previous: Vec<u32>,
    accepted: Vec<bool>,
    /// Which of them by their own entropy, not as the best of what is left.
    sure: Vec<bool>,
    /// Steps made.
    step: usize,
    /// How many steps before the last one, without a gap, had the same argmax as it.
    unchanged: usize,
    progress: Progress,
    /// Tokens that hold whatever the model says, because its own do not fit the text's structure; empty where there are none.
    pins: Vec<Option<u32>>,
    order: Vec<u64>,
}

impl Canvas {
    /// A canvas of noise: `length` tokens, uniform over the vocabulary (`vocabulary ≥ 1`).
    pub fn new(sampler: Sampler, key: Key, length: usize, vocabulary: u32) -> Self {
        let mut tokens = vec![0; length];
        key.tokens(Purpose::Init, 0, vocabulary, &mut tokens, |_| true);
        Canvas::from_tokens(sampler, key, tokens, vocabulary)
    }

    /// A canvas that starts from given tokens, to replay a recorded run.
    pub fn from_tokens(sampler: Sampler, key: Key, tokens: Vec<u32>, vocabulary: u32) -> Self {
        let length = tokens.len();
        Canvas {
            sampler,
            key,
            vocabulary,
            tokens,
            argmax: Vec::with_capacity(length),
            previous: Vec::with_capacity(length),
            accepted: vec![false; length],
            sure: vec![false; length],
            step: 0,
            unchanged: 0,
            progress: Progress::Going,
            pins: Vec::new(),
            order: Vec::with_capacity(length),
        }
    }

    /// What the model looks at in the next step.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// The most likely tokens of the last step: the draft, and the result once the canvas is done. Empty before the
    /// first step.
    pub fn argmax(&self) -> &[u32] {
        &self.argmax
    }

    /// Which positions the last step accepted.
    pub fn accepted(&self) -> &[bool] {
        &self.accepted
    }

    /// Steps made.
    pub fn step(&self) -> usize {
        self.step
    }

    /// Where the canvas stands.
    pub fn progress(&self) -> Progress {
        self.progress
    }

    /// How the canvas is denoised.
    pub fn sampler(&self) -> &Sampler {
        &self.sampler
    }

    /// Temperature of the next step.
    pub fn temperature(&self) -> f32 {
        self.sampler.temperature(self.step)
    }

    /// Writes the next step's uniform numbers in `[0, 1)`, one per position, over `out`.
    pub fn uniforms(&self, out: &mut Vec<f32>) {
        out.resize(self.tokens.len(), 0.0);
        self.key.uniforms(self.step as u32, out);
    }

    /// Takes the next step: accepts, renoises with this canvas's own random numbers, and decides whether to stop.
    pub fn apply(
        &mut self,
        observations: impl ExactSizeIterator<Item = Observation> + Clone,
    ) -> Result<StepOutcome, ObservationError> {
        let outcome = self.observe(observations)?;
        let (key, step, vocabulary) = (self.key, (self.step - 1) as u32, self.vocabulary);
        let accepted = &self.accepted;
        key.tokens(Purpose::Renoise, step, vocabulary, &mut self.tokens, |position| !accepted[position]);
        Ok(outcome)
    }

    /// Like [`Canvas::apply`], with the renoising tokens given (one per position, used where nothing was accepted), to
    /// replay a recorded run.
    pub fn apply_with(
        &mut self,
        observations: impl ExactSizeIterator<Item = Observation> + Clone,
        renoise: &[u32],
    ) -> Result<StepOutcome, ObservationError> {
        if renoise.len() != self.tokens.len() {
            return Err(ObservationError::Count { given: renoise.len(), wanted: self.tokens.len() });
        }
        let outcome = self.observe(observations)?;
        for ((token, accepted), noise) in self.tokens.iter_mut().zip(&self.accepted).zip(renoise) {
            if !accepted {
                *token = *noise;
            }
        }
        Ok(outcome)
    }

    /// The token that holds at this position whatever the model says.
    pub fn pinned(&self, position: usize) -> Option<u32> {
        self.pins.get(position).copied().flatten()
    }

    /// What is observed where pins hold: their tokens, without a doubt.
    pub fn hold(&self, observations: &mut [Observation]) {
        for (seen, pin) in observations.iter_mut().zip(&self.pins) {
            if let Some(token) = *pin {
                *seen = Observation { argmax: token, sampled: token, entropy: 0.0 };
            }
        }
    }

    /// After a step: where the model is sure of a token that does not fit, or would be done with it, what fits is pinned in
    /// its place. Everything behind is noise again: it was written after something else. A misfit of which the model is not
    /// sure is left to its next steps, and one of the last step, even of a canvas that has converged in it, to
    /// [`Canvas::settle`].
    ///
    /// `outcome` is the step's, and what it has become is returned. `candidates` are a position's best tokens, best first.
    ///
    /// # Errors
    /// [`StructureError`] where the structure cannot be followed.
    pub fn bend<C: Iterator<Item = u32>>(
        &mut self,
        outcome: StepOutcome,
        structure: &mut dyn Structure,
        candidates: impl Fn(usize) -> C,
    ) -> Result<StepOutcome, StructureError> {
        if self.step >= self.sampler.max_steps {
            return Ok(outcome);
        }
        let at = structure.fits(&self.argmax)?;
        let fits = at == self.argmax.len();
        if fits || (self.progress == Progress::Going && !self.sure[at]) {
            return Ok(outcome);
        }
        let mended = structure.mend(&self.argmax[..at], &mut candidates(at))?;
        let end = self.write(at, &mended);
        self.pins.resize(self.argmax.len(), None);
        self.pins[end..].fill(None);
        for (pin, &token) in self.pins[at..end].iter_mut().zip(&mended) {
            *pin = Some(token);
        }
        self.accepted[at..end].fill(true);
        self.accepted[end..].fill(false);
        let (key, step, vocabulary) = (self.key, (self.step - 1) as u32, self.vocabulary);
        key.tokens(Purpose::Renoise, step, vocabulary, &mut self.tokens, |position| position >= end);
        self.unchanged = 0;
        self.progress = Progress::Going;
        let settled = self.accepted.iter().filter(|accepted| **accepted).count();
        Ok(StepOutcome { settled, changed: self.changed(), progress: self.progress, ..outcome })
    }

    /// Makes the draft fit as it is, position by position, when no step is left to do better: what is committed always fits.
    ///
    /// # Errors
    /// [`StructureError`] where the structure cannot be followed.
    pub fn settle<C: Iterator<Item = u32>>(
        &mut self,
        structure: &mut dyn Structure,
        candidates: impl Fn(usize) -> C,
    ) -> Result<(), StructureError> {
        let mut settled = 0;
        loop {
            let at = structure.fits(&self.argmax)?;
            if at == self.argmax.len() {
                return Ok(());
            }
            if at < settled {
                let message = format!("what was put before position {settled} does not fit");
                return Err(StructureError::Astray(message));
            }
            let mended = structure.mend(&self.argmax[..at], &mut candidates(at))?;
            settled = self.write(at, &mended).max(at + 1);
        }
    }

    /// Puts tokens into the draft and the canvas, as far as there is room, and says where they end.
    fn write(&mut self, at: usize, tokens: &[u32]) -> usize {
        let end = self.argmax.len().min(at + tokens.len());
        self.argmax[at..end].copy_from_slice(&tokens[..end - at]);
        self.tokens[at..end].copy_from_slice(&tokens[..end - at]);
        end
    }

    /// Everything of a step but the renoising.
    fn observe(
        &mut self,
        observations: impl ExactSizeIterator<Item = Observation> + Clone,
    ) -> Result<StepOutcome, ObservationError> {
        self.check(observations.clone())?;
        let entropies = observations.clone().map(|o| o.entropy);
        let settled = accept(entropies, self.sampler.entropy_bound, &mut self.order, &mut self.accepted);

        std::mem::swap(&mut self.previous, &mut self.argmax);
        self.argmax.clear();
        let mut sum = 0.0f64;
        for (position, seen) in observations.enumerate() {
            self.argmax.push(seen.argmax);
            if self.accepted[position] {
                self.tokens[position] = seen.sampled;
            }
            self.sure[position] = self.accepted[position] && seen.entropy <= self.sampler.entropy_bound;
            sum += f64::from(seen.entropy);
        }
        self.step += 1;
        let mean_entropy = (sum / self.tokens.len().max(1) as f64) as f32;
        let changed = self.changed();
        self.progress = self.decide(changed, mean_entropy);
        Ok(StepOutcome { settled, changed, mean_entropy, progress: self.progress })
    }

    /// Positions whose argmax differs from the step before.
    fn changed(&self) -> usize {
        if self.previous.is_empty() {
            return self.argmax.len();
        }
        self.argmax.iter().zip(&self.previous).filter(|(now, before)| now != before).count()
    }

    /// Stable: each of the last `stability_threshold` argmax canvases equals this one. Confident: the mean entropy is
    /// below the threshold. Both are wanted (the model's reference, section 5.1).
    fn decide(&mut self, changed: usize, mean_entropy: f32) -> Progress {
        self.unchanged = if changed == 0 && self.step > 1 { self.unchanged + 1 } else { 0 };
        let stable = self.unchanged >= self.sampler.stability_threshold;
        if stable && mean_entropy < self.sampler.confidence_threshold {
            Progress::Converged
        } else if self.step >= self.sampler.max_steps {
            Progress::OutOfSteps
        } else {
            Progress::Going
        }
    }

    fn check(&self, observations: impl ExactSizeIterator<Item = Observation>) -> Result<(), ObservationError> {
        let (given, wanted) = (observations.len(), self.tokens.len());
        if given != wanted {
            return Err(ObservationError::Count { given, wanted });
        }
        for (position, seen) in observations.enumerate() {
            if !seen.entropy.is_finite() {
                return Err(ObservationError::NotFinite { position });
            }
            let token = seen.argmax.max(seen.sampled);
            if token >= self.vocabulary {
                return Err(ObservationError::Token { position, token });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const KEY: Key = Key { seed: 1, choice: 0, canvas: 0 };
    const VOCABULARY: u32 = 100;

    fn seen(argmax: u32, sampled: u32, entropy: f32) -> Observation {
        Observation { argmax, sampled, entropy }
    }

    fn step(canvas: &mut Canvas, rows: &[Observation]) -> StepOutcome {
        canvas.apply(rows.iter().copied()).expect("observations are good")
    }

    fn sampler(max_steps: usize, stability_threshold: usize) -> Sampler {
        Sampler { max_steps, stability_threshold, ..Sampler::default() }
    }

    #[test]
    fn accepted_positions_take_the_sampled_token_and_the_others_noise() {
        let mut canvas = Canvas::from_tokens(Sampler::default(), KEY, vec![1, 2, 3], VOCABULARY);
        let rows = [seen(10, 20, 0.05), seen(11, 21, 7.0), seen(12, 22, 8.0)];
        let outcome = canvas.apply_with(rows.into_iter(), &[90, 91, 92]).expect("good");
        assert_eq!(canvas.tokens(), [20, 21, 92]);
        assert_eq!(canvas.argmax(), [10, 11, 12]);
        assert_eq!(canvas.accepted(), [true, true, false]);
        assert_eq!((outcome.settled, outcome.changed), (2, 3));
        assert_eq!(outcome.mean_entropy, (15.05f64 / 3.0) as f32);
    }

    #[test]
    fn an_accepted_position_is_not_frozen() {
        let mut canvas = Canvas::from_tokens(Sampler::default(), KEY, vec![1, 2], VOCABULARY);
        canvas.apply_with([seen(5, 5, 0.0), seen(6, 6, 3.0)].into_iter(), &[90, 91]).expect("good");
        assert_eq!(canvas.tokens(), [5, 6]);
        canvas.apply_with([seen(5, 5, 9.0), seen(6, 6, 3.0)].into_iter(), &[90, 91]).expect("good");
        assert_eq!(canvas.tokens(), [90, 6]);
    }

    #[test]
    fn stopping_takes_a_stable_canvas_beyond_the_threshold() {
        for threshold in 0..4 {
            let mut canvas = Canvas::new(sampler(48, threshold), KEY, 2, VOCABULARY);
            let mut steps = 1;
            while step(&mut canvas, &[seen(5, 5, 0.001), seen(6, 6, 0.001)]).progress == Progress::Going {
                steps += 1;
            }
            assert_eq!(steps, threshold + 1);
        }
    }

    #[test]
    fn a_change_starts_the_count_again() {
        let mut canvas = Canvas::new(sampler(48, 2), KEY, 1, VOCABULARY);
        let tokens = [5, 5, 6, 6, 5, 5, 5];
        let progress: Vec<_> = tokens.iter().map(|&t| step(&mut canvas, &[seen(t, t, 0.0)]).progress).collect();
        assert_eq!(progress[..6], [Progress::Going; 6]);
        assert_eq!(progress[6], Progress::Converged);
    }

    #[test]
    fn confidence_is_strict() {
        let exactly = Sampler::default().confidence_threshold;
        let mut canvas = Canvas::new(sampler(48, 0), KEY, 1, VOCABULARY);
        assert_eq!(step(&mut canvas, &[seen(5, 5, exactly)]).progress, Progress::Going);
        assert_eq!(step(&mut canvas, &[seen(5, 5, exactly * 0.999)]).progress, Progress::Converged);
    }

    #[test]
    fn the_step_limit_ends_it_with_the_last_argmax() {
        let mut canvas = Canvas::new(sampler(3, 1), KEY, 1, VOCABULARY);
        assert_eq!(step(&mut canvas, &[seen(1, 5, 3.0)]).progress, Progress::Going);
        assert_eq!(step(&mut canvas, &[seen(2, 5, 3.0)]).progress, Progress::Going);
        assert_eq!(step(&mut canvas, &[seen(3, 5, 3.0)]).progress, Progress::OutOfSteps);
        assert_eq!(canvas.argmax(), [3]);
    }

    #[test]
    fn damaged_observations_are_refused_and_change_nothing() {
        let mut canvas = Canvas::new(Sampler::default(), KEY, 2, VOCABULARY);
        let before = canvas.tokens().to_vec();
        let nan = [seen(1, 1, 0.0), seen(1, 1, f32::NAN)];
        assert_eq!(canvas.apply(nan.into_iter()), Err(ObservationError::NotFinite { position: 1 }));
        let beyond = [seen(1, VOCABULARY, 0.0), seen(1, 1, 0.0)];
        assert_eq!(canvas.apply(beyond.into_iter()), Err(ObservationError::Token { position: 0, token: VOCABULARY }));
        assert_eq!(canvas.apply([].into_iter()), Err(ObservationError::Count { given: 0, wanted: 2 }));
        assert_eq!((canvas.tokens(), canvas.step()), (&before[..], 0));
    }

    proptest! {
        /// The same key and observations give the same canvas, step by step; a run always ends within its limit.
        #[test]
        fn deterministic_and_bounded(
            seed: u64, max_steps in 1usize..6, threshold in 0usize..3,
            rows in proptest::collection::vec((0u32..VOCABULARY, 0u32..VOCABULARY, 0.0f32..0.3), 1..40),
        ) {
            let key = Key { seed, choice: 3, canvas: 1 };
            let rows: Vec<_> = rows.into_iter().map(|(a, s, e)| seen(a, s, e)).collect();
            let mut one = Canvas::new(sampler(max_steps, threshold), key, rows.len(), VOCABULARY);
            let mut two = Canvas::new(sampler(max_steps, threshold), key, rows.len(), VOCABULARY);
            let mut steps = 0;
            loop {
                prop_assert_eq!(one.tokens(), two.tokens());
                let outcome = step(&mut one, &rows);
                prop_assert_eq!(outcome, step(&mut two, &rows));
                steps += 1;
                prop_assert!(one.tokens().iter().all(|&t| t < VOCABULARY));
                prop_assert!(outcome.settled >= 1);
                if outcome.progress.is_done() { break; }
            }
            prop_assert!(steps <= max_steps);
        }

        /// Injecting the draws that the canvas would make itself changes nothing.
        #[test]
        fn replay_equals_the_run(
            seed: u64, rows in proptest::collection::vec((0u32..VOCABULARY, 0u32..VOCABULARY, 0.0f32..0.3), 1..40),
        ) {
            let key = Key { seed, choice: 0, canvas: 0 };
            let rows: Vec<_> = rows.into_iter().map(|(a, s, e)| seen(a, s, e)).collect();
            let mut free = Canvas::new(Sampler::default(), key, rows.len(), VOCABULARY);
            let mut replay = Canvas::from_tokens(Sampler::default(), key, free.tokens().to_vec(), VOCABULARY);
            for number in 0..3 {
                let mut noise = vec![0; rows.len()];
                key.tokens(Purpose::Renoise, number, VOCABULARY, &mut noise, |_| true);
                let expected = step(&mut free, &rows);
                prop_assert_eq!(replay.apply_with(rows.iter().copied(), &noise), Ok(expected));
                prop_assert_eq!(free.tokens(), replay.tokens());
            }
        }
    }
}

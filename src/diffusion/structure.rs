//! What a text must be, told to a canvas: the language it has to belong to, as far as it is written.

/// A language, followed token by token. It stands behind what was committed; the canvas asks about what may come next.
///
/// Implemented by `prompt`, called on the engine's thread.
pub trait Structure: Send {
    /// How many of these tokens, from the first, can stand in the text: all of them where what follows the text's end is
    /// reached.
    ///
    /// # Errors
    /// [`StructureError`] where the language cannot be followed.
    fn fits(&mut self, tokens: &[u32]) -> Result<usize, StructureError>;

    /// What can stand after `before`, which fits: the first of the candidates that can, or another token where none does,
    /// and whatever must follow it. At least one token.
    ///
    /// # Errors
    /// [`StructureError`] where the language cannot be followed.
    fn mend(&mut self, before: &[u32], candidates: &mut dyn Iterator<Item = u32>) -> Result<Vec<u32>, StructureError>;

    /// Moves behind these tokens, which fit.
    ///
    /// # Errors
    /// [`StructureError`] where the language cannot be followed.
    fn commit(&mut self, tokens: &[u32]) -> Result<(), StructureError>;

    /// The canvas that follows what was committed is begun anew, and comes to ask the same again: what was spent on it so far
    /// does not count twice.
    fn restart(&mut self) {}
}

/// The language cannot be followed any further.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StructureError {
    /// It takes more work than is done for an answer. Another try would come to the same end.
    #[error("the schema is too complex to be followed: {0}; make its patterns and alternatives simpler")]
    TooComplex(String),
    /// The text has gone astray, which nobody's schema should bring about.
    #[error("the structure cannot be followed: {0}")]
    Astray(String),
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::diffusion::{Canvas, Key, Observation, Progress, Sampler};

    const LENGTH: usize = 8;
    const VOCABULARY: u32 = 32;
    const KEY: Key = Key { seed: 1, choice: 0, canvas: 0 };

    /// Every token is larger than the one before it, by four at most, and a multiple of four is followed by its successor.
    struct Ascending {
        last: u32,
    }

    impl Ascending {
        fn may_follow(last: u32, token: u32) -> bool {
            let most = if last.is_multiple_of(4) { 1 } else { 4 };
            token > last && token - last <= most
        }
    }

    impl Structure for Ascending {
        fn fits(&mut self, tokens: &[u32]) -> Result<usize, StructureError> {
            let before = std::iter::once(self.last).chain(tokens.iter().copied());
            Ok(before.zip(tokens).take_while(|&(last, &token)| Self::may_follow(last, token)).count())
        }

        fn mend(
            &mut self,
            before: &[u32],
            candidates: &mut dyn Iterator<Item = u32>,
        ) -> Result<Vec<u32>, StructureError> {
            let last = *before.last().unwrap_or(&self.last);
            let mut proposed = candidates;
            let chosen = Iterator::find(&mut proposed, |&token| Self::may_follow(last, token)).unwrap_or(last + 1);
            let forced = chosen.is_multiple_of(4).then_some(chosen + 1);
            Ok(std::iter::once(chosen).chain(forced).collect())
        }

        fn commit(&mut self, tokens: &[u32]) -> Result<(), StructureError> {
            self.last = *tokens.last().unwrap_or(&self.last);
            Ok(())
        }
    }

    fn canvas() -> Canvas {
        let sampler = Sampler { max_steps: 20, ..Sampler::default() };
        Canvas::new(sampler, KEY, LENGTH, VOCABULARY)
    }

    /// A step in which the model is sure of these tokens, but for those at `unsure`.
    fn step(canvas: &mut Canvas, tokens: &[u32], unsure: &[usize]) -> Progress {
        let seen = |(position, &token): (usize, &u32)| {
            let entropy = if unsure.contains(&position) { 2.0 } else { 0.0 };
            Observation { argmax: token, sampled: token, entropy }
        };
        let mut seen: Vec<Observation> = tokens.iter().enumerate().map(seen).collect();
        canvas.hold(&mut seen);
        let outcome = canvas.apply(seen.iter().copied()).expect("good observations");
        let candidates = |_| [9, 7, 4, 3].into_iter();
        canvas.bend(outcome, &mut Ascending { last: 1 }, candidates).expect("it can be followed").progress
    }

    #[test]
    fn what_fits_is_left_alone() {
        let (mut canvas, good) = (canvas(), [2, 3, 4, 5, 6, 7, 8, 9]);
        assert_eq!(step(&mut canvas, &good, &[]), Progress::Going);
        assert_eq!(step(&mut canvas, &good, &[]), Progress::Converged);
        assert_eq!(canvas.argmax(), good);
        assert!((0..LENGTH).all(|position| canvas.pinned(position).is_none()));
    }

    #[test]
    fn the_best_candidate_that_fits_is_pinned_with_what_must_follow_and_the_rest_is_noise() {
        let mut canvas = canvas();
        step(&mut canvas, &[2, 1, 4, 5, 6, 7, 8, 9], &[]);
        // Behind 2, of 9, 7, 4 and 3 the first that fits is 4, and 5 must follow.
        assert_eq!(canvas.argmax()[..3], [2, 4, 5]);
        assert_eq!([1, 2, 3].map(|position| canvas.pinned(position)), [Some(4), Some(5), None]);
        assert_eq!(canvas.tokens()[1..3], [4, 5]);
        assert_eq!(canvas.accepted(), [true, true, true, false, false, false, false, false]);
        assert_ne!(canvas.tokens()[3..], [5, 6, 7, 8, 9]);
        // The pins hold against the model, and with them its text becomes one that fits.
        step(&mut canvas, &[2, 1, 1, 6, 7, 8, 9, 10], &[]);
        assert_eq!(canvas.argmax(), [2, 4, 5, 6, 7, 8, 9, 10]);
        assert_eq!(step(&mut canvas, &[2, 1, 1, 6, 7, 8, 9, 10], &[]), Progress::Converged);
    }

    #[test]
    fn a_misfit_of_which_the_model_is_not_sure_is_left_to_its_next_steps() {
        let mut canvas = canvas();
        // It is accepted all the same, as the best of what is left.
        step(&mut canvas, &[2, 1, 4, 5, 6, 7, 8, 9], &[1]);
        assert_eq!((canvas.accepted()[1], canvas.argmax()[1], canvas.pinned(1)), (true, 1, None));
    }

    #[test]
    fn a_canvas_that_would_be_done_goes_on_until_it_fits() {
        let sampler = Sampler { confidence_threshold: 10.0, ..Sampler::default() };
        let mut canvas = Canvas::new(sampler, KEY, LENGTH, VOCABULARY);
        let wrong = [2, 3, 4, 5, 6, 7, 8, 1];
        assert_eq!(step(&mut canvas, &wrong, &[0, 7]), Progress::Going);
        assert_eq!(canvas.pinned(7), None);
        assert_eq!(step(&mut canvas, &wrong, &[0, 7]), Progress::Going);
        assert_eq!(canvas.pinned(7), Some(9));
        assert_eq!(step(&mut canvas, &wrong, &[0, 7]), Progress::Converged);
        assert_eq!(canvas.argmax(), [2, 3, 4, 5, 6, 7, 8, 9]);
    }

    #[test]
    fn a_structure_that_contradicts_itself_is_an_error_and_no_loop() {
        struct Liar;
        impl Structure for Liar {
            fn fits(&mut self, _: &[u32]) -> Result<usize, StructureError> {
                Ok(0)
            }
            fn mend(&mut self, _: &[u32], _: &mut dyn Iterator<Item = u32>) -> Result<Vec<u32>, StructureError> {
                Ok(vec![1])
            }
            fn commit(&mut self, _: &[u32]) -> Result<(), StructureError> {
                Ok(())
            }
        }
        let mut canvas = canvas();
        canvas.apply([Observation { argmax: 1, sampled: 1, entropy: 0.0 }; LENGTH].into_iter()).expect("a step");
        assert!(canvas.settle(&mut Liar, |_| std::iter::empty()).is_err());
    }

    proptest! {
        /// However soon a canvas may converge, bending it makes no more steps than it may, and the step's outcome is of
        /// the canvas as it has become.
        #[test]
        fn bending_stays_within_the_step_limit(
            max_steps in 1usize..6,
            stability_threshold in 0usize..3,
            confidence_threshold in 0.0f32..0.4,
            says in proptest::collection::vec((0..VOCABULARY, 0.0f32..0.2), LENGTH),
        ) {
            let sampler = Sampler { max_steps, stability_threshold, confidence_threshold, ..Sampler::default() };
            let mut canvas = Canvas::new(sampler, KEY, LENGTH, VOCABULARY);
            let mut structure = Ascending { last: 1 };
            let seen = |&(token, entropy)| Observation { argmax: token, sampled: token, entropy };
            loop {
                let before = canvas.argmax().to_vec();
                let mut seen: Vec<Observation> = says.iter().map(seen).collect();
                canvas.hold(&mut seen);
                let outcome = canvas.apply(seen.iter().copied()).expect("good observations");
                let outcome = canvas.bend(outcome, &mut structure, |_| std::iter::empty()).expect("followed");
                let same = canvas.argmax().iter().zip(&before).filter(|(now, before)| now == before).count();
                prop_assert_eq!(outcome.changed, LENGTH - same);
                prop_assert_eq!(outcome.settled, canvas.accepted().iter().filter(|accepted| **accepted).count());
                prop_assert_eq!(outcome.progress, canvas.progress());
                if outcome.progress.is_done() {
                    break;
                }
                prop_assert!(canvas.step() < max_steps);
            }
            canvas.settle(&mut structure, |_| std::iter::empty()).expect("settled");
            prop_assert_eq!(structure.fits(canvas.argmax()), Ok(LENGTH));
        }

        /// Whatever the model says and however long it is asked: what is committed fits, over canvases too.
        #[test]
        fn what_is_settled_fits(
            says in proptest::collection::vec((0..VOCABULARY, 0.0f32..0.2), 5 * LENGTH),
            steps in 1usize..5,
        ) {
            let mut structure = Ascending { last: 1 };
            for rows in says.chunks(LENGTH).take(steps).collect::<Vec<_>>().chunks(2) {
                let mut canvas = canvas();
                for row in rows {
                    let seen = |&(token, entropy)| Observation { argmax: token, sampled: token, entropy };
                    let mut seen: Vec<Observation> = row.iter().map(seen).collect();
                    canvas.hold(&mut seen);
                    let outcome = canvas.apply(seen.iter().copied()).expect("good observations");
                    canvas.bend(outcome, &mut structure, |position| [says[position].0].into_iter()).expect("followed");
                }
                canvas.settle(&mut structure, |position| [says[position].0].into_iter()).expect("settled");
                prop_assert_eq!(structure.fits(canvas.argmax()), Ok(LENGTH));
                structure.commit(canvas.argmax()).expect("committed");
            }
        }
    }
}

//! Samples the tokens of one sequence with its request's parameters.

use stoker_ops::draw::Draw;

use super::{Adjustments, Logprobs, Sampling, TokenLogprob, adjust::Adjuster, check_finite};
use crate::{error::RequestError, step_output::OutputRow};

/// Sampling parameters of one sequence, and the state that they depend on.
#[derive(Debug)]
pub(crate) struct Sampler {
    sampling: Sampling,
    adjuster: Adjuster,
    logprobs: Logprobs,
}

/// A drawn token.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Drawn {
    /// Token id.
    pub(crate) id: u32,
    /// Log probability, if the request needs it.
    pub(crate) logprob: Option<TokenLogprob>,
}

impl Sampler {
    /// Creates the sampler of a sequence that begins with `prompt`. No token of `masked` is drawn
    /// before `masked_until`, a position in the sequence.
    pub(crate) fn new(
        sampling: Sampling,
        adjustments: Adjustments,
        logprobs: Logprobs,
        prompt: &[u32],
        masked: Vec<u32>,
        masked_until: usize,
    ) -> Self {
        let adjuster = Adjuster::new(adjustments, prompt, masked, masked_until);
        Self { sampling, adjuster, logprobs }
    }

    /// Records a token of the output.
    pub(crate) fn push(&mut self, id: u32) {
        self.adjuster.push(id);
    }

    /// Returns how a device may draw the token at `position` of the sequence, if the logits of a
    /// vocabulary of this size are needed for nothing else.
    pub(crate) fn on_device(&self, position: usize, vocab: usize) -> Option<Draw> {
        let temperature = self.sampling.temperature;
        let plain = !self.logprobs.output
            // A device may flush a subnormal temperature to zero.
            && (temperature == 0.0 || temperature.is_normal())
            && self.adjuster.changes_nothing(position)
            && self.sampling.keeps_all(vocab);
        plain.then(|| self.sampling.draw(position))
    }

    /// Draws the token at `position` of the sequence from its row. The recorded output is followed
    /// by `accepted`.
    pub(crate) fn draw(
        &self,
        row: OutputRow,
        position: usize,
        accepted: &[u32],
    ) -> Result<Drawn, RequestError> {
        let logits = match row {
            OutputRow::Drawn(id) => return Ok(Drawn { id, logprob: None }),
            OutputRow::Logits(logits) => logits,
        };
        check_finite(logits, position)?;
        let adjusted = self.adjuster.apply(logits, position, accepted);
        let id = self.sampling.pick(&adjusted, position);
        let wanted = self.logprobs.output;
        let logprob = wanted.then(|| TokenLogprob::of(logits, id, self.logprobs.top));
        Ok(Drawn { id, logprob })
    }

    /// Returns the draft token at `position`: the token that would be drawn there from this row,
    /// given the sequence so far. `None` if the row is not finite. Records nothing.
    pub(crate) fn draft(&self, row: OutputRow, position: usize) -> Option<u32> {
        match row {
            OutputRow::Drawn(id) => Some(id),
            OutputRow::Logits(logits) => {
                check_finite(logits, position).ok()?;
                Some(self.sampling.pick(&self.adjuster.apply(logits, position, &[]), position))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use stoker_ops::noise::Noise;

    use super::*;

    #[test]
    fn probabilities_are_the_models_own() {
        let logits = [2.0f32, 1.0, 0.0, -1.0];
        let plain = TokenLogprob::of(&logits, 1, 3);
        // Everything that changes the draw, so that token 1 is certain.
        let sampling = Sampling { temperature: 0.3, top_k: 1, ..Sampling::default() };
        let adjustments = Adjustments {
            bias: vec![(1, 50.0)],
            repetition_penalty: 1.7,
            ..Adjustments::default()
        };
        let logprobs = Logprobs { output: true, prompt: false, top: 3 };
        let sampler = Sampler::new(sampling, adjustments, logprobs, &[1, 0], vec![0], 9);
        assert_eq!(
            sampler.draw(OutputRow::Logits(&logits), 2, &[]).unwrap(),
            Drawn { id: 1, logprob: Some(plain) }
        );
    }

    #[test]
    fn a_device_draws_if_nothing_else_needs_the_logits() {
        let of = |sampling, adjustments, logprobs, position| {
            let sampler = Sampler::new(sampling, adjustments, logprobs, &[1, 0], vec![7], 9);
            sampler.on_device(position, 100)
        };
        let (plain, none) = (Sampling { seed: 5, ..Sampling::default() }, Logprobs::default());
        let draw = Draw { temperature: 1.0, noise: Noise::new(5, 0, 9) };
        assert_eq!(of(plain, Adjustments::default(), none, 9), Some(draw));
        assert_eq!(of(plain, Adjustments::default(), none, 8), None, "7 is still masked");
        let output = Logprobs { output: true, ..none };
        assert_eq!(of(plain, Adjustments::default(), output, 9), None);
        let repeats = Adjustments { repetition_penalty: 1.1, ..Adjustments::default() };
        assert_eq!(of(plain, repeats, none, 9), None);
        for filtered in [
            Sampling { top_k: 4, ..plain },
            Sampling { top_p: 0.9, ..plain },
            Sampling { min_p: 0.1, ..plain },
        ] {
            assert_eq!(of(filtered, Adjustments::default(), none, 9), None);
            let greedy = Sampling { temperature: 0.0, ..filtered };
            assert!(
                of(greedy, Adjustments::default(), none, 9).is_some(),
                "the most likely token passes the filters"
            );
        }
        let cold = Sampling { temperature: f32::MIN_POSITIVE / 2.0, ..plain };
        assert_eq!(of(cold, Adjustments::default(), none, 9), None);
        assert!(of(Sampling { top_k: 100, ..plain }, Adjustments::default(), none, 9).is_some());
    }

    #[test]
    fn penalties_follow_the_draws() {
        let logits = [2.0f32, 1.9, 1.5, -1.0];
        let adjustments = Adjustments { presence_penalty: 0.2, ..Adjustments::default() };
        let none = Logprobs::default();
        let mut sampler = Sampler::new(Sampling::greedy(), adjustments, none, &[0], vec![], 0);
        let mut draw = |at| {
            let id = sampler.draw(OutputRow::Logits(&logits), at, &[]).unwrap().id;
            sampler.push(id);
            id
        };
        let drawn: Vec<_> = (1..5).map(&mut draw).collect();
        assert_eq!(drawn, [0, 1, 0, 0], "every draw but the last two lowers a logit once");
    }

    #[test]
    fn a_draft_token_equals_the_draw_and_is_not_recorded() {
        let logits = [2.0f32, 1.9, 1.5, -1.0];
        let adjustments = Adjustments { presence_penalty: 0.2, ..Adjustments::default() };
        let sampling = Sampling { temperature: 0.8, top_k: 3, seed: 4, ..Sampling::default() };
        let mut sampler =
            Sampler::new(sampling, adjustments, Logprobs::default(), &[0], vec![1], 3);
        for position in 1..40 {
            let draft = sampler.draft(OutputRow::Logits(&logits), position);
            assert_eq!(sampler.draft(OutputRow::Logits(&logits), position), draft);
            let drawn = sampler.draw(OutputRow::Logits(&logits), position, &[]).unwrap();
            assert_eq!(draft, Some(drawn.id));
            sampler.push(drawn.id);
        }
        assert_eq!(sampler.draft(OutputRow::Logits(&[0.0, f32::NAN]), 40), None);
        assert_eq!(sampler.draft(OutputRow::Drawn(3), 40), Some(3));
    }

    #[test]
    fn a_logit_that_is_not_finite_is_reported() {
        let none = Logprobs::default();
        let greedy = Sampling::greedy();
        let sampler = Sampler::new(greedy, Adjustments::default(), none, &[0], vec![], 0);
        let error = RequestError::NotFinite { token: 1, position: 4 };
        assert_eq!(sampler.draw(OutputRow::Logits(&[0.0, f32::NAN]), 4, &[]), Err(error));
    }
}

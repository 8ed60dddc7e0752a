//! Sampling of tokens from logits.
//!
//! The token is the argmax of `logit / temperature + noise` over the tokens that pass the filters.
//! The noise is a Gumbel variable computed from (seed, choice, position, token). This is an exact
//! draw from the softmax, and it depends on the request alone: not on the batch, the worker or
//! earlier draws.

mod adjust;
mod draws;
mod filters;
mod logprobs;
mod sampler;

pub use adjust::Adjustments;
pub(crate) use draws::{DrawnTokens, Draws};
pub use logprobs::{Logprobs, TokenLogprob};
pub(crate) use sampler::{Drawn, Sampler};

use stoker_ops::draw::Draw;
pub use stoker_ops::noise::{Noise, mix64};

use crate::error::RequestError;

/// Sampling parameters.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// Temperature; 0 is greedy.
    pub temperature: f32,
    /// Keep the k most likely tokens; 0 keeps all.
    pub top_k: usize,
    /// Of these, keep the most likely tokens whose probabilities sum to at least this; 1 keeps all.
    pub top_p: f32,
    /// Of these, keep those at least this fraction as likely as the most likely token; 0 keeps all.
    pub min_p: f32,
    /// Seed of the noise, which makes draws repeatable.
    pub seed: u64,
    /// Index of the choice, where a request has several.
    pub choice: u32,
}

impl Default for Sampling {
    fn default() -> Self {
        Self { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0, seed: 0, choice: 0 }
    }
}

impl Sampling {
    /// Always picks the most likely token.
    pub fn greedy() -> Self {
        Self { temperature: 0.0, ..Self::default() }
    }

    /// Returns the draw of the token at `position` of the sequence.
    fn draw(&self, position: usize) -> Draw {
        let noise = Noise::new(self.seed, self.choice, position);
        Draw { temperature: self.temperature, noise }
    }

    /// Draws the token at `position` of the sequence from `logits [vocab]`, which are finite, or -∞
    /// for masked tokens. Ties go to the lowest id.
    pub fn pick(&self, logits: &[f32], position: usize) -> u32 {
        let draw = self.draw(position);
        if self.temperature == 0.0 {
            // The most likely token passes every filter.
            return draw.pick(logits, std::iter::empty());
        }
        match filters::candidates(self, logits) {
            None => draw.pick(logits, 0..logits.len() as u32),
            Some(kept) => draw.pick(logits, kept.into_iter()),
        }
    }

    /// Whether no filter applies to a vocabulary of this size, or only the most likely token is
    /// ever picked.
    fn keeps_all(&self, vocab: usize) -> bool {
        self.temperature == 0.0 || filters::keep_all(self, vocab)
    }
}

/// Fails if a logit is not finite, which only a broken model outputs. `position` is that of the
/// token to draw.
pub(crate) fn check_finite(logits: &[f32], position: usize) -> Result<(), RequestError> {
    match logits.iter().position(|logit| !logit.is_finite()) {
        Some(token) => Err(RequestError::NotFinite { token: token as u32, position }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draws(sampling: Sampling, logits: &[f32], count: usize) -> Vec<usize> {
        let mut seen = vec![0; logits.len()];
        for position in 0..count {
            seen[sampling.pick(logits, position) as usize] += 1;
        }
        seen
    }

    #[test]
    fn frequencies_follow_the_softmax() {
        let logits = [1.0f32, 0.0, -1.0, 2.0, 0.5];
        for temperature in [0.5f32, 1.0, 2.0] {
            let sampling = Sampling { temperature, seed: 7, ..Sampling::default() };
            let count = 200_000;
            let seen = draws(sampling, &logits, count);
            let weights = logits.map(|l| f64::from(l / temperature).exp());
            let total: f64 = weights.iter().sum();
            // Pearson's statistic with four degrees of freedom: above 18.5 once in a thousand.
            let chi: f64 = seen
                .iter()
                .zip(weights)
                .map(|(seen, w)| {
                    let want = w / total * count as f64;
                    (*seen as f64 - want).powi(2) / want
                })
                .sum();
            assert!(chi < 18.5, "{chi} at {temperature}: {seen:?}");
        }
    }

    #[test]
    fn only_tokens_that_pass_the_filters_are_drawn() {
        let logits = [3.0f32, 2.0, 1.0, 0.0, -1.0];
        let all = Sampling { temperature: 5.0, ..Sampling::default() };
        let drawn = |s: Sampling| {
            draws(s, &logits, 5_000).iter().map(|n| usize::from(*n > 0)).collect::<Vec<_>>()
        };
        assert_eq!(drawn(all), [1, 1, 1, 1, 1]);
        assert_eq!(drawn(Sampling { top_k: 2, ..all }), [1, 1, 0, 0, 0]);
        // Probabilities at temperature 5: .29 .24 .19 .16 .13
        assert_eq!(drawn(Sampling { top_p: 0.6, ..all }), [1, 1, 1, 0, 0]);
        assert_eq!(drawn(Sampling { min_p: 0.5, ..all }), [1, 1, 1, 1, 0]);
        assert_eq!(drawn(Sampling { top_p: 1e-9, ..all }), [1, 0, 0, 0, 0]);
    }

    #[test]
    fn greedy_takes_the_lowest_of_equals_and_ignores_the_seed() {
        let logits = [0.5f32, 2.0, 2.0, -1.0];
        let seeded = Sampling { seed: 9, ..Sampling::greedy() };
        assert_eq!(Sampling::greedy().pick(&logits, 3), 1);
        assert_eq!(seeded.pick(&logits, 3), 1);
    }

    #[test]
    fn masked_tokens_are_never_drawn() {
        let logits = [3.0f32, f32::NEG_INFINITY, 1.0, f32::NEG_INFINITY];
        for (top_k, top_p, min_p) in [(0, 1.0, 0.0), (3, 1.0, 0.0), (0, 0.99, 0.0), (0, 1.0, 0.1)] {
            let hot = Sampling { temperature: 100.0, top_k, top_p, min_p, ..Sampling::default() };
            let seen = draws(hot, &logits, 2_000);
            assert!(seen[1] == 0 && seen[3] == 0 && seen[2] > 0, "{hot:?}: {seen:?}");
        }
    }
}

//! Scores of one quantization.

use std::time::Duration;

/// Sums over all scored tokens.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) struct Score {
    /// Number of scored tokens.
    pub(super) tokens: u64,
    /// Sum of their negative log probabilities, in nats.
    pub(super) nats: f64,
    /// Difference from the reference.
    pub(super) difference: LogitDifference,
    /// Time spent in the model.
    pub(super) time: Duration,
}

/// Difference of logits from the reference, summed over positions.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) struct LogitDifference {
    /// Positions with the same most likely token.
    pub(super) same_top: u64,
    /// Sum of absolute differences.
    pub(super) absolute_sum: f64,
    /// Number of compared logits.
    pub(super) logits: u64,
}

impl Score {
    /// Returns the mean negative log probability of a token, in nats.
    pub(super) fn nats_per_token(&self) -> f64 {
        self.nats / self.tokens as f64
    }

    /// Returns the perplexity.
    pub(super) fn perplexity(&self) -> f64 {
        self.nats_per_token().exp()
    }

    /// Adds the score of token `next` under `logits [vocab]`. Returns false if the logits are not
    /// all finite.
    pub(super) fn add(&mut self, logits: &[f32], next: u32) -> bool {
        let Some(nats) = nats(logits, next) else { return false };
        self.nats += nats;
        self.tokens += 1;
        true
    }
}

impl LogitDifference {
    /// Adds the logits of one position and those of the reference.
    pub(super) fn add(&mut self, logits: &[f32], reference: &[f32]) {
        self.same_top += u64::from(top(logits) == top(reference));
        let differences = logits.iter().zip(reference).map(|(a, b)| f64::from(a - b).abs());
        self.absolute_sum += differences.sum::<f64>();
        self.logits += logits.len() as u64;
    }
}

/// Returns the negative log probability of `next`, or none if it is not finite.
fn nats(logits: &[f32], next: u32) -> Option<f64> {
    let peak = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let total: f64 = logits.iter().map(|logit| (f64::from(*logit) - peak).exp()).sum();
    let nats = total.ln() + peak - f64::from(*logits.get(next as usize)?);
    // A non-finite logit makes the sum non-finite, except minus infinity, which models do not
    // produce.
    nats.is_finite().then_some(nats)
}

/// Returns the most likely token, the one with the lowest id among equals.
fn top(logits: &[f32]) -> Option<usize> {
    let better =
        |best: usize, index: usize| if logits[index] > logits[best] { index } else { best };
    (0..logits.len()).reduce(better)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uniform_logits_have_the_perplexity_of_the_vocabulary_size() {
        let mut score = Score::default();
        for next in 0..8 {
            assert!(score.add(&[1e4; 8], next));
        }
        assert!((score.perplexity() - 8.0).abs() < 1e-9, "{score:?}");
    }

    #[test]
    fn logits_that_are_not_finite_are_rejected() {
        let mut score = Score::default();
        assert!(!score.add(&[0.0, f32::NAN], 0));
        assert!(!score.add(&[0.0, f32::INFINITY], 0));
        assert!(!score.add(&[0.0, 1.0], 2), "a token outside the vocabulary");
        assert_eq!(score, Score::default());
    }

    #[test]
    fn differences_are_summed_over_positions() {
        let mut difference = LogitDifference::default();
        difference.add(&[1.0, 2.0], &[1.5, 2.0]);
        difference.add(&[1.0, 2.0], &[2.5, 2.0]);
        assert_eq!(difference, LogitDifference { same_top: 1, absolute_sum: 2.0, logits: 4 });
    }
}

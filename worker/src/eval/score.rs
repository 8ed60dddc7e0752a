//! What is counted of one way to keep weights.

use std::time::Duration;

/// Sums over all tokens that were scored.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) struct Score {
    /// Tokens.
    pub(super) tokens: u64,
    /// The sum of their negative log probabilities, in nats.
    pub(super) nats: f64,
    /// How it differs from what it is compared with.
    pub(super) apart: Apart,
    /// Time in the model.
    pub(super) time: Duration,
}

/// How two rows of logits, or many, differ.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) struct Apart {
    /// Rows of which the likeliest token is the same.
    pub(super) same_top: u64,
    /// The sum of absolute differences.
    pub(super) difference: f64,
    /// Logits that were compared.
    pub(super) logits: u64,
}

impl Score {
    /// Mean negative log probability of a token, in nats.
    pub(super) fn nats_per_token(&self) -> f64 {
        self.nats / self.tokens as f64
    }

    /// How many tokens the model hesitates between, on average.
    pub(super) fn perplexity(&self) -> f64 {
        self.nats_per_token().exp()
    }

    /// Adds the token `next` that came where the model gave `logits [vocab]`. False if they are not all finite.
    pub(super) fn add(&mut self, logits: &[f32], next: u32) -> bool {
        let Some(nats) = nats(logits, next) else { return false };
        self.nats += nats;
        self.tokens += 1;
        true
    }
}

impl Apart {
    /// Adds a row and the same of what it is compared with.
    pub(super) fn add(&mut self, logits: &[f32], reference: &[f32]) {
        self.same_top += u64::from(top(logits) == top(reference));
        let differences = logits.iter().zip(reference).map(|(a, b)| f64::from(a - b).abs());
        self.difference += differences.sum::<f64>();
        self.logits += logits.len() as u64;
    }
}

/// The negative logarithm of the probability of `next`.
fn nats(logits: &[f32], next: u32) -> Option<f64> {
    let peak = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let total: f64 = logits.iter().map(|logit| (f64::from(*logit) - peak).exp()).sum();
    let nats = total.ln() + peak - f64::from(*logits.get(next as usize)?);
    // A logit that is not finite makes the sum so, but for one of minus infinity, which is none of a model's.
    nats.is_finite().then_some(nats)
}

/// The likeliest token, the lowest id among equals.
fn top(logits: &[f32]) -> Option<usize> {
    let better =
        |best: usize, index: usize| if logits[index] > logits[best] { index } else { best };
    (0..logits.len()).reduce(better)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_that_knows_nothing_hesitates_between_all_tokens() {
        let mut score = Score::default();
        for next in 0..8 {
            assert!(score.add(&[1e4; 8], next));
        }
        assert!((score.perplexity() - 8.0).abs() < 1e-9, "{score:?}");
    }

    #[test]
    fn logits_that_are_no_numbers_are_told() {
        let mut score = Score::default();
        assert!(!score.add(&[0.0, f32::NAN], 0));
        assert!(!score.add(&[0.0, f32::INFINITY], 0));
        assert!(!score.add(&[0.0, 1.0], 2), "a token outside the vocabulary");
        assert_eq!(score, Score::default());
    }

    #[test]
    fn rows_differ_by_their_likeliest_token_and_on_average() {
        let mut apart = Apart::default();
        apart.add(&[1.0, 2.0], &[1.5, 2.0]);
        apart.add(&[1.0, 2.0], &[2.5, 2.0]);
        assert_eq!(apart, Apart { same_top: 1, difference: 2.0, logits: 4 });
    }
}

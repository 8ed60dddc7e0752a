//! Log probabilities of tokens under the model itself, before logits are adjusted.

use stoker_ops::math::ln;

/// Log probabilities that a request needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Logprobs {
    /// Whether output tokens need theirs.
    pub output: bool,
    /// Whether prompt tokens need theirs. The first has none, since nothing comes before it.
    pub prompt: bool,
    /// Number of most likely alternatives for each token.
    pub top: usize,
}

/// Log probability of a token.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenLogprob {
    /// The token.
    pub id: u32,
    /// The natural logarithm of its probability at temperature 1.
    pub logprob: f32,
    /// The most likely tokens at its position with their log probabilities, in descending order,
    /// ties by the lowest id.
    pub top: Vec<(u32, f32)>,
}

impl TokenLogprob {
    /// Computes the log probability of `id` and those of the `top` most likely tokens from `logits
    /// [vocab]`, which must be finite.
    pub(crate) fn of(logits: &[f32], id: u32, top: usize) -> Self {
        // In f64 and in the order of the ids, so that the bits are the same on every machine.
        let peak = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
        let above_peak = |logit: f32| f64::from(logit) - peak;
        let total = ln(logits.iter().map(|logit| libm::exp(above_peak(*logit))).sum());
        let logprob = |token: u32| {
            let logit = logits.get(token as usize).copied().unwrap_or(f32::NEG_INFINITY);
            (above_peak(logit) - total) as f32
        };
        let top = likeliest(logits, top).into_iter().map(|token| (token, logprob(token))).collect();
        Self { id, logprob: logprob(id), top }
    }
}

/// Returns the `count` tokens with the greatest logits, in descending order, ties by the lowest id.
fn likeliest(logits: &[f32], count: usize) -> Vec<u32> {
    let mut best: Vec<u32> = Vec::with_capacity(count + 1);
    for (token, logit) in (0u32..).zip(logits) {
        let is_beaten = best.last().is_none_or(|worst| *logit <= logits[*worst as usize]);
        if best.len() == count && is_beaten {
            continue;
        }
        let at = best.partition_point(|better| logits[*better as usize] >= *logit);
        best.insert(at, token);
        best.truncate(count);
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probabilities_follow_the_softmax() {
        let logits = [1.0f32, -3.5, 20.0, 19.5, 0.0, 20.0];
        let total: f64 = logits.iter().map(|l| f64::from(*l).exp()).sum();
        for (id, logit) in (0u32..).zip(logits) {
            let want = (f64::from(logit).exp() / total).ln();
            let got = TokenLogprob::of(&logits, id, 0);
            assert!((f64::from(got.logprob) - want).abs() < 1e-5, "{got:?}, {want}");
            assert!(got.top.is_empty());
        }
        // Exponentials far from zero would overflow; only differences matter.
        let (far, near) = ([1e4f32, 1e4 - 1.0], [1.0f32, 0.0]);
        assert_eq!(TokenLogprob::of(&far, 0, 2), TokenLogprob::of(&near, 0, 2));
    }

    #[test]
    fn alternatives_are_ordered_by_logit_and_then_by_id() {
        let logits = [1.0f32, -3.5, 20.0, 19.5, 0.0, 20.0];
        for count in 0..8 {
            let mut sorted: Vec<u32> = (0..6).collect();
            sorted.sort_by(|a, b| logits[*b as usize].total_cmp(&logits[*a as usize]));
            sorted.truncate(count);
            let got = TokenLogprob::of(&logits, 4, count).top;
            assert_eq!(got.iter().map(|(id, _)| *id).collect::<Vec<_>>(), sorted);
            for (id, logprob) in got {
                assert_eq!(logprob, TokenLogprob::of(&logits, id, 0).logprob);
            }
        }
    }
}

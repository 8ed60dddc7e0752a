//! Log probabilities: what the model itself thinks of a token, before anything is done to its logits.

use stoker_ops::math::ln;

/// Which log probabilities a request wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Logprobs {
    /// Of the tokens that are drawn.
    pub output: bool,
    /// Of the tokens of the prompt but the first, for which there is nothing to tell it from.
    pub prompt: bool,
    /// That many of the likeliest tokens beside each.
    pub top: usize,
}

/// How likely a token was.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenLogprob {
    /// The token.
    pub id: u32,
    /// The natural logarithm of its probability at temperature 1.
    pub logprob: f32,
    /// The likeliest tokens in its place with theirs, in falling order, the lowest id first among equals.
    pub top: Vec<(u32, f32)>,
}

impl TokenLogprob {
    /// Of `id` and the `top` likeliest, where the model gave `logits [vocab]`, all finite.
    pub(crate) fn of(logits: &[f32], id: u32, top: usize) -> Self {
        // In f64 and in the order of the ids, so that it has the same bits everywhere.
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

/// The `count` tokens of the greatest logits, the greatest first, the lowest id first among equals.
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
        // Far from zero exponentials would overflow; only differences matter.
        let (far, near) = ([1e4f32, 1e4 - 1.0], [1.0f32, 0.0]);
        assert_eq!(TokenLogprob::of(&far, 0, 2), TokenLogprob::of(&near, 0, 2));
    }

    #[test]
    fn candidates_come_in_order_and_ties_by_id() {
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

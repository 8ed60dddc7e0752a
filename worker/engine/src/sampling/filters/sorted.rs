//! Definition of the filters: tokens in descending order of their logits, ties by the lowest id,
//! with weights summed in that order.

use std::cmp::Ordering;

use crate::sampling::Sampling;

/// Order of tokens, the most likely first, of which the filters keep a prefix.
pub(super) fn likelier(logits: &[f32]) -> impl Fn(&u32, &u32) -> Ordering + Copy {
    |a, b| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b))
}

/// Returns the tokens of `logits [vocab]` that pass the filters.
pub(super) fn candidates(sampling: &Sampling, logits: &[f32]) -> Vec<u32> {
    let mut kept: Vec<u32> = (0..logits.len() as u32).collect();
    if (1..logits.len()).contains(&sampling.top_k) {
        kept.select_nth_unstable_by(sampling.top_k - 1, likelier(logits));
        kept.truncate(sampling.top_k);
    }
    apply_top_p_and_min_p(sampling, logits, kept)
}

/// Applies top-p and min-p to `kept`.
pub(super) fn apply_top_p_and_min_p(
    sampling: &Sampling,
    logits: &[f32],
    mut kept: Vec<u32>,
) -> Vec<u32> {
    let (top_p, min_p) = (sampling.top_p < 1.0, sampling.min_p > 0.0);
    if !top_p && !min_p {
        return kept;
    }
    kept.sort_unstable_by(likelier(logits));
    let scaled = |token: u32| f64::from(logits[token as usize]) / f64::from(sampling.temperature);
    // Weights relative to the peak, which comes first.
    let peak = scaled(kept[0]);
    let weights: Vec<f64> = kept.iter().map(|t| libm::exp(scaled(*t) - peak)).collect();
    if top_p {
        let enough = f64::from(sampling.top_p) * weights.iter().sum::<f64>();
        let mut sum = 0.0;
        let before = weights.iter().take_while(|w| {
            let is_below = sum < enough;
            sum += **w;
            is_below
        });
        kept.truncate(before.count().max(1));
    }
    if min_p {
        let above = weights.iter().take_while(|w| **w >= f64::from(sampling.min_p));
        kept.truncate(above.count().max(1));
    }
    kept
}

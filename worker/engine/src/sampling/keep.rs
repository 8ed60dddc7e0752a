//! Which tokens may be drawn: top-k, then top-p of these, then min-p of these.

use std::cmp::Ordering;

use super::Sampling;

/// Whether all tokens of a vocabulary of this size are kept, whatever their logits.
pub(super) fn all(sampling: &Sampling, vocab: usize) -> bool {
    let top_k = (1..vocab).contains(&sampling.top_k);
    !(top_k || sampling.top_p < 1.0 || sampling.min_p > 0.0)
}

/// The tokens that are kept, or `None` for all of `logits [vocab]`.
pub(super) fn tokens(sampling: &Sampling, logits: &[f32]) -> Option<Vec<u32>> {
    if all(sampling, logits.len()) {
        return None;
    }
    let top_k = (1..logits.len()).contains(&sampling.top_k);
    let (top_p, min_p) = (sampling.top_p < 1.0, sampling.min_p > 0.0);
    let likelier = |a: &u32, b: &u32| -> Ordering {
        logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b))
    };
    let mut kept: Vec<u32> = (0..logits.len() as u32).collect();
    if top_k {
        kept.select_nth_unstable_by(sampling.top_k - 1, likelier);
        kept.truncate(sampling.top_k);
    }
    if top_p || min_p {
        kept.sort_unstable_by(likelier);
        let scaled =
            |token: u32| f64::from(logits[token as usize]) / f64::from(sampling.temperature);
        // Weights relative to the likeliest, which is first.
        let peak = scaled(kept[0]);
        let weights: Vec<f64> = kept.iter().map(|t| libm::exp(scaled(*t) - peak)).collect();
        if top_p {
            let enough = f64::from(sampling.top_p) * weights.iter().sum::<f64>();
            let mut sum = 0.0;
            let before = weights.iter().take_while(|w| {
                let go_on = sum < enough;
                sum += **w;
                go_on
            });
            kept.truncate(before.count().max(1));
        }
        if min_p {
            let above = weights.iter().take_while(|w| **w >= f64::from(sampling.min_p));
            kept.truncate(above.count().max(1));
        }
    }
    Some(kept)
}

//! Filters of candidate tokens: top-k, then top-p, then min-p.
//!
//! [`sorted`] is the definition. This module returns the same set of tokens with less work: it
//! sorts only the tokens at the border of the set, and falls back to the definition where rounding
//! could decide there.

mod ranks;
mod sorted;
#[cfg(test)]
mod tests;

use ranks::{NEGLIGIBLE, Ranks, Scale};

use super::Sampling;

/// Bound on the rounding error of a distance from the peak.
const BAND: f64 = 1e-9;

/// Whether no filter applies to a vocabulary of this size, whatever its logits.
pub(super) fn keep_all(sampling: &Sampling, vocab: usize) -> bool {
    let top_k = (1..vocab).contains(&sampling.top_k);
    !(top_k || sampling.top_p < 1.0 || sampling.min_p > 0.0)
}

/// Returns the tokens of `logits [vocab]` that pass the filters, in any order, or `None` for all.
pub(super) fn candidates(sampling: &Sampling, logits: &[f32]) -> Option<Vec<u32>> {
    if keep_all(sampling, logits.len()) {
        return None;
    }
    let Some(scale) = Scale::new(sampling, logits) else {
        return Some(sorted::candidates(sampling, logits));
    };
    if (1..logits.len()).contains(&sampling.top_k) {
        return Some(sorted::candidates(sampling, logits));
    }
    let above = |beyond: f32| {
        (0u32..).zip(logits).filter(|(_, logit)| **logit > beyond).map(|(token, _)| token).collect()
    };
    if sampling.min_p > 0.0 && sampling.top_p >= 1.0 {
        let near = above(scale.logit_beyond(max_distance(sampling).max(0.0) + BAND));
        return Some(apply_min_p(sampling, scale, logits, near));
    }
    let nucleus = Ranks::new(scale, logits).nucleus(f64::from(sampling.top_p));
    Some(match nucleus {
        Some(kept) if sampling.min_p > 0.0 => apply_min_p(sampling, scale, logits, kept),
        Some(kept) => kept,
        None => {
            sorted::apply_top_p_and_min_p(sampling, logits, above(scale.logit_beyond(NEGLIGIBLE)))
        }
    })
}

/// Distance from the peak beyond which tokens are less than min-p times as likely.
fn max_distance(sampling: &Sampling) -> f64 {
    -libm::log(f64::from(sampling.min_p))
}

/// Returns the `candidates` that pass min-p, or the most likely one if none does. All other tokens
/// must be less likely.
fn apply_min_p(
    sampling: &Sampling,
    scale: Scale,
    logits: &[f32],
    candidates: Vec<u32>,
) -> Vec<u32> {
    let max_distance = max_distance(sampling);
    let distance = |token: u32| scale.distance(logits[token as usize]);
    let (mut kept, mut close) = (Vec::new(), Vec::new());
    for token in &candidates {
        let distance = distance(*token);
        if distance < max_distance - BAND {
            kept.push(*token);
        } else if distance <= max_distance + BAND {
            close.push(*token);
        }
    }
    close.sort_unstable_by(sorted::likelier(logits));
    let is_enough = |token: &u32| libm::exp(-distance(*token)) >= f64::from(sampling.min_p);
    kept.extend(close.into_iter().take_while(is_enough));
    if kept.is_empty() {
        kept.extend(candidates.into_iter().min_by(sorted::likelier(logits)));
    }
    kept
}

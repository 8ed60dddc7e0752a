//! How long a step takes, by its number of tokens: learned from the steps that ran.

use std::time::Duration;

/// Knots at 1, 2, 4, ... 4096 tokens.
const KNOTS: usize = 13;
/// What one observation moves a knot by, of the way.
const RATE: f64 = 0.2;

/// What steps cost: a moving average at each knot that was seen, linear in between.
#[derive(Debug, Clone, Default)]
pub struct StepCost {
    seconds: [Option<f64>; KNOTS],
}

impl StepCost {
    /// A step of `tokens` tokens took so long.
    pub fn learn(&mut self, tokens: usize, took: Duration) {
        let (tokens, took) = (tokens.max(1), took.as_secs_f64());
        let lower = (tokens.ilog2() as usize).min(KNOTS - 1);
        let share = (tokens as f64 / at(lower) - 1.0).clamp(0.0, 1.0);
        for (knot, share) in [(lower, 1.0 - share), (lower + 1, share)] {
            if share == 0.0 || knot == KNOTS {
                continue;
            }
            let known =
                self.seconds[knot].get_or_insert(took * (at(knot) / tokens as f64).max(1.0));
            *known += RATE * share * (took - *known).clamp(-0.5 * *known, 0.5 * *known);
        }
    }

    /// What a step of `tokens` would take, in seconds. None until a step has run. Never falls with the number of tokens.
    /// Sizes beyond the largest that was seen are taken to cost in proportion.
    pub fn seconds(&self, tokens: usize) -> Option<f64> {
        let tokens = tokens.max(1) as f64;
        let (mut below, mut highest) = (None, 0.0f64);
        for (knot, seconds) in self.seconds.iter().enumerate() {
            let Some(seconds) = seconds else { continue };
            highest = highest.max(*seconds);
            match below {
                _ if at(knot) < tokens => below = Some((at(knot), highest)),
                None => return Some(highest),
                Some((size, least)) => {
                    let way = (tokens - size) / (at(knot) - size);
                    return Some(least + way * (highest - least));
                }
            }
        }
        below.map(|(size, seconds)| seconds * tokens / size)
    }
}

/// Tokens at a knot.
fn at(knot: usize) -> f64 {
    (1u64 << knot) as f64
}

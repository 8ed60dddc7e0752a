//! Limits the prompt tokens of a step while other sequences decode.

use super::{Plan, Scheduler, StepBudget};
use crate::cost::StepCost;

/// Minimum number of prompt tokens in a step: a prompt of 2,000 tokens takes at most 500 steps.
pub const MIN_PROMPT_TOKENS: usize = 4;
/// Fraction of the allowed slowdown that is used. The durations of steps vary, and the limit is
/// meant for the 99th percentile.
const TARGET_FRACTION: f64 = 0.7;

impl Scheduler {
    /// Reduces the token budget to what decoding sequences allow.
    pub(super) fn limit_prefill(&self, plan: &Plan, budget: &mut StepBudget) {
        let decoding = plan.scheduled.iter().map(|scheduled| scheduled.length).sum();
        budget.tokens = self.prefill_tokens(decoding, budget.tokens);
    }

    /// Maximum number of prompt tokens, up to `max`, in a step with `decoding` decode tokens.
    pub(super) fn prefill_tokens(&self, decoding: usize, max: usize) -> usize {
        prefill_tokens(&self.cost, decoding, self.limits.max_decode_slowdown, max)
    }
}

/// Maximum number of prompt tokens next to `decoding` decode tokens such that the step takes at
/// most `slowdown` times as long as without them. `max` if no sequence decodes or no cost is known.
fn prefill_tokens(cost: &StepCost, decoding: usize, slowdown: f64, max: usize) -> usize {
    let Some(alone) = cost.seconds(decoding).filter(|_| decoding > 0) else { return max };
    let limit = alone * (1.0 + TARGET_FRACTION * (slowdown - 1.0));
    let fits = |tokens: usize| cost.seconds(decoding + tokens).is_some_and(|s| s <= limit);
    // Binary search: estimated costs never fall with the size.
    let (mut fit, mut over) = (0, max + 1);
    while over - fit > 1 {
        let middle = fit + (over - fit) / 2;
        if fits(middle) {
            fit = middle;
        } else {
            over = middle;
        }
    }
    fit.max(MIN_PROMPT_TOKENS).min(max)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// Duration of a step at TinyLlama's shape on two cores: flat at first, then in proportion.
    fn took(tokens: usize) -> Duration {
        Duration::from_micros(35_000.max(23_000 + 3_650 * tokens as u64))
    }

    fn observed(sizes: &[usize]) -> StepCost {
        let mut cost = StepCost::default();
        sizes.iter().for_each(|tokens| cost.observe(*tokens, took(*tokens)));
        cost
    }

    #[test]
    fn a_step_with_prompts_stays_below_its_limit() {
        let cost = observed(&[1, 2, 4, 8, 16, 32, 64, 128, 256, 512]);
        for decoding in [1, 2, 8, 32, 64] {
            for slowdown in [1.5, 2.0, 4.0] {
                let tokens = prefill_tokens(&cost, decoding, slowdown, 512);
                let ratio = |tokens| {
                    cost.seconds(decoding + tokens).unwrap_or_default()
                        / cost.seconds(decoding).unwrap_or_default()
                };
                let target = 1.0 + TARGET_FRACTION * (slowdown - 1.0);
                let case = format!("{decoding} decode, {slowdown}: {tokens} tokens");
                assert!(tokens == MIN_PROMPT_TOKENS || ratio(tokens) <= target, "{case}");
                assert!(ratio(tokens + 1) > target, "{case}, and more would fit");
            }
        }
        assert!(prefill_tokens(&cost, 1, 2.0, 512) >= 8);
    }

    #[test]
    fn the_budget_is_unlimited_without_decoding_and_never_below_the_minimum() {
        let cost = observed(&[1, 8, 64, 512]);
        assert_eq!(prefill_tokens(&cost, 0, 2.0, 512), 512, "no sequence decodes");
        assert_eq!(prefill_tokens(&StepCost::default(), 9, 2.0, 503), 503, "no cost is known");
        assert_eq!(prefill_tokens(&cost, 1, 1.0, 511), MIN_PROMPT_TOKENS);
        assert_eq!(prefill_tokens(&cost, 1, 1.0, 3), 3, "no more than the step has room for");
        assert_eq!(prefill_tokens(&cost, 1, f64::INFINITY, 511), 511);
        assert_eq!(prefill_tokens(&cost, 64, 2.0, 0), 0);
    }

    #[test]
    fn one_slow_long_step_does_not_limit_prompts_for_ever() {
        let mut cost = StepCost::default();
        cost.observe(256, 3 * took(256));
        cost.observe(1, took(1));
        for _ in 0..40 {
            let tokens = 1 + prefill_tokens(&cost, 1, 2.0, 511);
            cost.observe(tokens, took(tokens));
        }
        assert!(prefill_tokens(&cost, 1, 2.0, 511) >= 8);
    }

    #[test]
    fn unobserved_sizes_are_approached_in_steps() {
        // A device on which a step of 512 tokens costs what one token does.
        let (mut cost, flat) = (StepCost::default(), Duration::from_millis(10));
        cost.observe(1, flat);
        let mut steps = 0;
        while prefill_tokens(&cost, 1, 2.0, 511) < 511 {
            cost.observe(1 + prefill_tokens(&cost, 1, 2.0, 511), flat);
            steps += 1;
            assert!(steps < 40, "{} tokens", prefill_tokens(&cost, 1, 2.0, 511));
        }
    }
}

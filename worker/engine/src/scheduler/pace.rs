//! How long the prompts' part of a step may be while others wait for their next token.

use super::{Budget, Plan, Scheduler};
use crate::cost::StepCost;

/// Tokens of prompts that a step has in any case: a prompt of 2,000 tokens takes at most 500 steps.
pub const MIN_PROMPT_TOKENS: usize = 4;
/// The part of the slowdown that is used: steps differ, and the slowest of a hundred is what counts.
const AIM: f64 = 0.7;

impl Scheduler {
    /// Leaves prompts no more than those who decode can wait for.
    pub(super) fn pace(&self, plan: &Plan, budget: &mut Budget) {
        let decoding = plan.slices.iter().map(|slice| slice.length).sum();
        budget.tokens = self.prompt_tokens(decoding, budget.tokens);
    }

    /// Tokens that prompts may have beside so many that decode.
    pub(super) fn prompt_tokens(&self, decoding: usize, most: usize) -> usize {
        prompt_tokens(&self.cost, decoding, self.limits.max_decode_slowdown, most)
    }
}

/// Tokens of prompts beside `decoding` tokens of those that decode, such that the step takes at most `slowdown` times
/// what it would without them. `most` where nobody decodes or nothing is known.
fn prompt_tokens(cost: &StepCost, decoding: usize, slowdown: f64, most: usize) -> usize {
    let Some(alone) = cost.seconds(decoding).filter(|_| decoding > 0) else { return most };
    let limit = alone * (1.0 + AIM * (slowdown - 1.0));
    let fits = |tokens: usize| cost.seconds(decoding + tokens).is_some_and(|s| s <= limit);
    // What a step takes never falls with its size.
    let (mut fit, mut over) = (0, most + 1);
    while over - fit > 1 {
        let middle = fit + (over - fit) / 2;
        if fits(middle) {
            fit = middle;
        } else {
            over = middle;
        }
    }
    fit.max(MIN_PROMPT_TOKENS).min(most)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// What a step takes at TinyLlama's shape on two cores: flat at first, then in proportion.
    fn took(tokens: usize) -> Duration {
        Duration::from_micros(35_000.max(23_000 + 3_650 * tokens as u64))
    }

    fn learned(sizes: &[usize]) -> StepCost {
        let mut cost = StepCost::default();
        sizes.iter().for_each(|tokens| cost.learn(*tokens, took(*tokens)));
        cost
    }

    #[test]
    fn a_step_with_prompts_stays_below_its_limit() {
        let cost = learned(&[1, 2, 4, 8, 16, 32, 64, 128, 256, 512]);
        for decoding in [1, 2, 8, 32, 64] {
            for slowdown in [1.5, 2.0, 4.0] {
                let tokens = prompt_tokens(&cost, decoding, slowdown, 512);
                let ratio = |tokens| {
                    cost.seconds(decoding + tokens).unwrap_or_default()
                        / cost.seconds(decoding).unwrap_or_default()
                };
                let aim = 1.0 + AIM * (slowdown - 1.0);
                let as_said = format!("{decoding} decode, {slowdown}: {tokens} tokens");
                assert!(tokens == MIN_PROMPT_TOKENS || ratio(tokens) <= aim, "{as_said}");
                assert!(ratio(tokens + 1) > aim, "{as_said}, and more would do");
            }
        }
        assert!(prompt_tokens(&cost, 1, 2.0, 512) >= 8);
    }

    #[test]
    fn nobody_is_held_up_for_nobody_and_prompts_always_go_on() {
        let cost = learned(&[1, 8, 64, 512]);
        assert_eq!(prompt_tokens(&cost, 0, 2.0, 512), 512, "nobody decodes");
        assert_eq!(prompt_tokens(&StepCost::default(), 9, 2.0, 503), 503, "nothing is known");
        assert_eq!(prompt_tokens(&cost, 1, 1.0, 511), MIN_PROMPT_TOKENS);
        assert_eq!(prompt_tokens(&cost, 1, 1.0, 3), 3, "no more than there is room for");
        assert_eq!(prompt_tokens(&cost, 1, f64::INFINITY, 511), 511);
        assert_eq!(prompt_tokens(&cost, 64, 2.0, 0), 0);
    }

    #[test]
    fn one_long_step_that_was_slow_does_not_hold_prompts_back_for_ever() {
        let mut cost = StepCost::default();
        cost.learn(256, 3 * took(256));
        cost.learn(1, took(1));
        for _ in 0..40 {
            let tokens = 1 + prompt_tokens(&cost, 1, 2.0, 511);
            cost.learn(tokens, took(tokens));
        }
        assert!(prompt_tokens(&cost, 1, 2.0, 511) >= 8);
    }

    #[test]
    fn what_was_never_tried_is_approached_in_steps() {
        // A device on which a step of 512 tokens costs what one token does.
        let (mut cost, flat) = (StepCost::default(), Duration::from_millis(10));
        cost.learn(1, flat);
        let mut steps = 0;
        while prompt_tokens(&cost, 1, 2.0, 511) < 511 {
            cost.learn(1 + prompt_tokens(&cost, 1, 2.0, 511), flat);
            steps += 1;
            assert!(steps < 40, "{} tokens", prompt_tokens(&cost, 1, 2.0, 511));
        }
    }
}

//! Prompt lengths for sequences that must decode together at the same context length.

use stoker_engine::kv_cache::blocks_for;
use stoker_ops::KV_BLOCK;

/// Maximum tokens of a step: the default of a worker.
pub(crate) const MAX_NUM_BATCHED_TOKENS: usize = 512;

/// Returns prompt lengths such that all sequences hold `length` positions when the last one starts
/// to decode. Sequences that start earlier get shorter prompts, since they grow until then. Returns
/// none if a prompt would be empty.
pub(crate) fn prompts(batch: usize, length: usize) -> Option<Vec<usize>> {
    let mut prompts = vec![length; batch];
    // Shorter prompts start to decode earlier, which changes the lengths slightly again.
    for _ in 0..4 {
        let first_steps = first_token_steps(&prompts);
        let last = *first_steps.last()?;
        let grown = first_steps.iter().map(|step| last - step);
        let shorter: Option<Vec<_>> =
            grown.map(|grown| length.checked_sub(grown).filter(|n| *n > 0)).collect();
        prompts = shorter?;
    }
    Some(prompts)
}

/// Returns the step in which each sequence samples its first token. Every step decodes the
/// sequences that have started, then computes prompts in order with its remaining token budget.
fn first_token_steps(prompts: &[usize]) -> Vec<usize> {
    let budget = MAX_NUM_BATCHED_TOKENS.max(prompts.len());
    let mut first_steps: Vec<usize> = Vec::new();
    let (mut step, mut remaining) = (0, budget);
    for prompt in prompts {
        let mut rest = *prompt;
        while rest > remaining {
            rest -= remaining;
            step += 1;
            remaining = budget - first_steps.iter().filter(|first| **first < step).count();
        }
        remaining -= rest;
        first_steps.push(step);
    }
    first_steps
}

/// Returns the number of KV cache blocks for sequences of these lengths.
pub(crate) fn blocks(lengths: impl IntoIterator<Item = usize>) -> usize {
    // A sequence may need one more block for its last sampled token.
    lengths.into_iter().map(|length| blocks_for(length + KV_BLOCK)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sequence_starts_in_the_step_that_completes_its_prompt() {
        assert_eq!(first_token_steps(&[512]), [0]);
        assert_eq!(first_token_steps(&[513, 100]), [1, 1]);
        // The second step has one token less: the first sequence decodes.
        assert_eq!(first_token_steps(&[512, 511, 1]), [0, 1, 2]);
    }

    #[test]
    fn sequences_have_equal_lengths_when_the_last_one_starts() {
        for (batch, length) in [(1, 480), (8, 480), (64, 480), (64, 100)] {
            let prompts = prompts(batch, length).unwrap_or_default();
            assert_eq!(prompts.len(), batch);
            let first_steps = first_token_steps(&prompts);
            for (prompt, first) in prompts.iter().zip(&first_steps) {
                let then = prompt + first_steps[batch - 1] - first;
                assert!(then.abs_diff(length) <= 2, "{batch} x {length}: {then}");
            }
        }
        assert_eq!(prompts(4096, 16), None);
    }
}

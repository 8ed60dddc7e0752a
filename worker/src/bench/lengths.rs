//! How long sequences must be to decode together at one length.

use stoker_engine::scheduler::blocks_for;
use stoker_ops::KV_BLOCK;

use super::drive::MAX_NUM_BATCHED_TOKENS;

/// Lengths of prompts such that all sequences hold `length` positions when the last one begins to decode:
/// those that begin earlier have grown by then. None if some would have to be empty.
pub(super) fn prompts(batch: usize, length: usize) -> Option<Vec<usize>> {
    let mut prompts = vec![length; batch];
    // Shorter prompts begin earlier, which changes the lengths a little again.
    for _ in 0..4 {
        let begun = first_tokens(&prompts);
        let last = *begun.last()?;
        let grown = begun.iter().map(|step| last - step);
        let shorter: Option<Vec<_>> =
            grown.map(|grown| length.checked_sub(grown).filter(|n| *n > 0)).collect();
        prompts = shorter?;
    }
    Some(prompts)
}

/// The step in which each sequence draws its first token: every step decodes those that have begun, then
/// computes prompts in order with what is left of its tokens.
fn first_tokens(prompts: &[usize]) -> Vec<usize> {
    let budget = MAX_NUM_BATCHED_TOKENS.max(prompts.len());
    let mut begun: Vec<usize> = Vec::new();
    let (mut step, mut left) = (0, budget);
    for prompt in prompts {
        let mut rest = *prompt;
        while rest > left {
            rest -= left;
            step += 1;
            left = budget - begun.iter().filter(|first| **first < step).count();
        }
        left -= rest;
        begun.push(step);
    }
    begun
}

/// Blocks of the cache that sequences of these lengths take.
pub(super) fn blocks(lengths: impl IntoIterator<Item = usize>) -> usize {
    // Each may need one more for the token that is drawn last.
    lengths.into_iter().map(|length| blocks_for(length + KV_BLOCK)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prompt_begins_when_the_budget_reached_its_end() {
        assert_eq!(first_tokens(&[512]), [0]);
        assert_eq!(first_tokens(&[513, 100]), [1, 1]);
        // The second step has one token less: the first sequence decodes.
        assert_eq!(first_tokens(&[512, 511, 1]), [0, 1, 2]);
    }

    #[test]
    fn sequences_are_equally_long_when_the_last_begins() {
        for (batch, length) in [(1, 480), (8, 480), (64, 480), (64, 100)] {
            let prompts = prompts(batch, length).unwrap_or_default();
            assert_eq!(prompts.len(), batch);
            let begun = first_tokens(&prompts);
            for (prompt, first) in prompts.iter().zip(&begun) {
                let then = prompt + begun[batch - 1] - first;
                assert!(then.abs_diff(length) <= 2, "{batch} x {length}: {then}");
            }
        }
        assert_eq!(prompts(4096, 16), None);
    }
}

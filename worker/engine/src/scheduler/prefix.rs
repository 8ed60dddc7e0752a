//! Prefix cache lookups of sequences that are admitted.

use stoker_ops::KV_BLOCK;

use super::{Entry, Plan, Scheduler, SequenceId};
use crate::blocks::{BlockPool, BlockTable, Scope, SequenceTokens};

/// Access to the tokens of sequences, from which block keys are made.
pub trait TokenSource {
    /// Returns all known tokens of a sequence: the prompt, then everything drawn.
    fn tokens(&self, id: SequenceId) -> SequenceTokens<'_>;
}

/// Result of the prefix cache lookup when a request is first admitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lookup {
    /// Number of the request.
    pub request: u64,
    /// Number of prompt tokens.
    pub tokens: usize,
    /// Number of prompt tokens that were cached.
    pub found: usize,
}

/// Returns the cached prefix of a waiting sequence.
pub(super) fn cached_prefix(
    blocks: &BlockPool,
    entry: &Entry,
    source: &dyn TokenSource,
) -> BlockTable {
    BlockTable::find(blocks, &entry.scope, source.tokens(entry.id).first(entry.readable()))
}

/// Whether a running sequence computes the block after `cached` of a waiting sequence in this step,
/// so that the block will be cached too.
pub(super) fn is_computed_now(
    running: &[Entry],
    entry: &Entry,
    cached: &BlockTable,
    plan: &Plan,
    source: &dyn TokenSource,
) -> bool {
    let next = cached.len();
    let Some(tokens) = source.tokens(entry.id).block(next) else { return false };
    let computes_it = |other: &Entry| {
        other.scope == entry.scope
            && other.table.same_cached_prefix(cached)
            // A sequence whose prompt logits are requested may be slow.
            && !other.wants_prompt_logits()
            && source.tokens(other.id).block(next) == Some(tokens)
            && plan.scheduled.iter().any(|scheduled| scheduled.id == other.id)
    };
    (next + 1) * KV_BLOCK <= entry.readable() && running.iter().any(computes_it)
}

impl Scheduler {
    /// Minimum number of prompt tokens to compute, whatever the cache has by then: only those of
    /// the last block if a running or waiting sequence has the same first block.
    pub fn min_prefill_tokens(
        &self,
        scope: &Scope,
        prompt: &[u32],
        source: &dyn TokenSource,
    ) -> usize {
        let readable = &prompt[..prompt.len().saturating_sub(1)];
        let Some(first) = SequenceTokens::from(readable).block(0) else { return prompt.len() };
        let same_first_block = |other: &Entry| {
            other.scope == *scope && source.tokens(other.id).block(0) == Some(first)
        };
        let mut others = self.running.iter().chain(self.waiting.iter());
        let blocks = if others.any(same_first_block) {
            readable.len() / KV_BLOCK
        } else {
            BlockTable::find(&self.blocks, scope, readable).cached()
        };
        prompt.len() - blocks * KV_BLOCK
    }
}

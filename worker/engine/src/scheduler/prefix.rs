//! What a sequence finds in the cache when it gets its place.

use stoker_ops::KV_BLOCK;

use super::{Entry, Plan, Scheduler, SequenceId};
use crate::blocks::{BlockPool, Scope, SequenceTokens, Table};

/// The tokens of sequences: what their blocks are known by.
pub trait TokenSource {
    /// All that are known of a sequence: prompt, then everything drawn.
    fn tokens(&self, id: SequenceId) -> SequenceTokens<'_>;
}

/// What the cache had of a prompt when its request first got a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lookup {
    /// Whose.
    pub request: u64,
    /// Tokens of the prompt.
    pub tokens: usize,
    /// Those that need not be computed.
    pub found: usize,
}

/// What the cache has of a sequence that waits.
pub(super) fn found(blocks: &BlockPool, entry: &Entry, texts: &dyn TokenSource) -> Table {
    Table::find(blocks, &entry.scope, texts.tokens(entry.id).first(entry.readable()))
}

/// Whether somebody computes in this step what comes after `found` in a sequence that waits, so that it will find that too.
pub(super) fn is_computed_now(
    running: &[Entry],
    entry: &Entry,
    found: &Table,
    plan: &Plan,
    texts: &dyn TokenSource,
) -> bool {
    let next = found.len();
    let Some(tokens) = texts.tokens(entry.id).block(next) else { return false };
    let computes_it = |other: &Entry| {
        other.scope == entry.scope
            && other.table.same_kept(found)
            // One whose logits are wanted may be slow.
            && !other.wants_prompt_logits()
            && texts.tokens(other.id).block(next) == Some(tokens)
            && plan.slices.iter().any(|slice| slice.id == other.id)
    };
    (next + 1) * KV_BLOCK <= entry.readable() && running.iter().any(computes_it)
}

impl Scheduler {
    /// Tokens of a prompt that have to be computed whatever the cache may have by then: only the last ones if somebody who
    /// is there begins alike.
    pub fn surely_computed(&self, scope: &Scope, prompt: &[u32], texts: &dyn TokenSource) -> usize {
        let readable = &prompt[..prompt.len().saturating_sub(1)];
        let Some(first) = SequenceTokens::from(readable).block(0) else { return prompt.len() };
        let begins_alike =
            |other: &Entry| other.scope == *scope && texts.tokens(other.id).block(0) == Some(first);
        let mut others = self.running.iter().chain(self.waiting.iter());
        let blocks = if others.any(begins_alike) {
            readable.len() / KV_BLOCK
        } else {
            Table::find(&self.blocks, scope, readable).kept()
        };
        prompt.len() - blocks * KV_BLOCK
    }
}

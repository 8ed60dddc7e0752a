//! What a sequence finds in the cache when it gets its place.

use stoker_ops::KV_BLOCK;

use super::{Entry, Plan, Scheduler, SequenceId, blocks_for};
use crate::blocks::Table;

/// The tokens of sequences: what their blocks are known by.
pub trait Texts {
    /// All that are known of a sequence: prompt, then everything drawn.
    fn tokens(&self, id: SequenceId) -> &[u32];
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

impl Scheduler {
    /// Blocks for all that is known of a sequence that waits, the first of them from the cache, if they and its places are
    /// free. None as well while another computes just what it needs next: then it waits and reads that.
    pub(super) fn room_for(&self, entry: &Entry, plan: &Plan, texts: &dyn Texts) -> Option<Table> {
        if self.running() + entry.places() > self.limits.max_num_seqs {
            return None;
        }
        let tokens = texts.tokens(entry.id);
        let readable = tokens.get(..entry.readable()).unwrap_or_default();
        let mut table = Table::find(&self.blocks, &entry.scope, readable);
        let next = table.len() * KV_BLOCK..(table.len() + 1) * KV_BLOCK;
        let is_computing = |other: &Entry| {
            other.scope == entry.scope
                && other.table.same_kept(&table)
                // One whose logits are wanted may be slow.
                && !other.wants_prompt_logits()
                && texts.tokens(other.id).get(next.clone()) == tokens.get(next.clone())
                && plan.slices.iter().any(|slice| slice.id == other.id)
        };
        if next.end <= readable.len() && self.running.iter().any(is_computing) {
            return None;
        }
        table.extend(self.blocks.take(blocks_for(entry.known) - table.len())?);
        Some(table)
    }
}

//! The draft model's KV cache of a sequence.

use super::common_prefix;
use crate::kv_cache::Block;

/// The KV cache of one sequence.
#[derive(Default)]
pub(super) struct DraftCache {
    /// Its block table.
    pub(super) table: Vec<Block>,
    /// Number of tokens of the sequence that are computed.
    pub(super) computed: usize,
    /// Draft tokens that are computed after them.
    pub(super) drafts: Vec<u32>,
    /// Clock value of the last draft.
    pub(super) last_used: u64,
}

impl DraftCache {
    /// Updates the cache to the `tokens` that the sequence has become: accepted draft tokens count
    /// as computed, rejected ones are dropped. The last token is always computed again, since its
    /// logits are needed.
    pub(super) fn reconcile(&mut self, tokens: &[u32]) {
        let uncomputed = tokens.get(self.computed..).unwrap_or_default();
        let accepted = common_prefix(&self.drafts, uncomputed);
        self.computed = (self.computed + accepted).min(tokens.len().saturating_sub(1));
        self.drafts.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepted_draft_tokens_count_as_computed() {
        let after = |drafts: &[u32], tokens: &[u32]| {
            let mut cache =
                DraftCache { computed: 2, drafts: drafts.to_vec(), ..DraftCache::default() };
            cache.reconcile(tokens);
            assert!(cache.drafts.is_empty());
            cache.computed
        };
        assert_eq!(after(&[], &[1, 2, 3]), 2);
        assert_eq!(after(&[3, 4], &[1, 2, 3, 4, 5, 6]), 4);
        assert_eq!(after(&[3, 4], &[1, 2, 3, 9]), 3);
        assert_eq!(after(&[3, 4], &[1, 2, 9]), 2);
        assert_eq!(after(&[3, 4, 5], &[1, 2, 3, 4]), 3, "the last is computed again");
        assert_eq!(after(&[], &[1, 2]), 1);
        assert_eq!(after(&[3, 4], &[1, 2, 9, 9, 9]), 2, "no drafts were requested for some steps");
    }
}

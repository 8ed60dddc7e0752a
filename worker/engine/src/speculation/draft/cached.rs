//! What the draft model has of a sequence.

use super::common;
use crate::blocks::Block;

/// A sequence's cache.
#[derive(Default)]
pub(super) struct Cached {
    /// Its blocks.
    pub(super) table: Vec<Block>,
    /// Tokens of the sequence that are computed.
    pub(super) computed: usize,
    /// Draft tokens that are computed after them.
    pub(super) drafts: Vec<u32>,
    /// When somebody drafted with it last.
    pub(super) used: u64,
}

impl Cached {
    /// The sequence has become this: draft tokens that held are computed, the others have to go. The last token stays to
    /// be computed in any case, since what comes after it is wanted.
    pub(super) fn settle(&mut self, tokens: &[u32]) {
        let held = common(&self.drafts, tokens.get(self.computed..).unwrap_or_default());
        self.computed = (self.computed + held).min(tokens.len().saturating_sub(1));
        self.drafts.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_held_is_computed() {
        let after = |drafts: &[u32], tokens: &[u32]| {
            let mut cached = Cached { computed: 2, drafts: drafts.to_vec(), ..Cached::default() };
            cached.settle(tokens);
            assert!(cached.drafts.is_empty());
            cached.computed
        };
        assert_eq!(after(&[], &[1, 2, 3]), 2);
        assert_eq!(after(&[3, 4], &[1, 2, 3, 4, 5, 6]), 4);
        assert_eq!(after(&[3, 4], &[1, 2, 3, 9]), 3);
        assert_eq!(after(&[3, 4], &[1, 2, 9]), 2);
        assert_eq!(after(&[3, 4, 5], &[1, 2, 3, 4]), 3, "the last is computed again");
        assert_eq!(after(&[], &[1, 2]), 1);
        assert_eq!(after(&[3, 4], &[1, 2, 9, 9, 9]), 2, "it was not asked for a while");
    }
}

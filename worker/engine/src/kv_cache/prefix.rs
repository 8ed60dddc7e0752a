//! Sharing of prefixes between sequences: the blocks that a sequence finds in the cache, and those
//! that it will find soon.

use stoker_ops::KV_BLOCK;

use super::{BlockPool, BlockTable, Scope, SequenceTokens};

/// The tokens of a sequence that it may read from the cache, or that others may read.
#[derive(Debug, Clone, Copy)]
pub struct Prefix<'a> {
    /// Scope in which its blocks are shared.
    pub scope: &'a Scope,
    /// Its tokens, from the first on.
    pub tokens: SequenceTokens<'a>,
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

impl Prefix<'_> {
    /// Returns the longest part that is cached.
    pub fn find(self, pool: &BlockPool) -> BlockTable {
        BlockTable::find(pool, self.scope, self.tokens)
    }

    /// Whether `other`, a sequence with the blocks `table`, computes the block after `cached`, the
    /// part that is cached: then that block will be cached too.
    pub fn is_extended_by(
        self,
        cached: &BlockTable,
        other: Prefix<'_>,
        table: &BlockTable,
    ) -> bool {
        let next = cached.len();
        let block = self.tokens.block(next);
        block.is_some()
            && other.scope == self.scope
            && table.same_cached_prefix(cached)
            && other.tokens.block(next) == block
    }

    /// Returns the number of tokens that may be found by the time they are needed: all full blocks
    /// if one of `others` begins with the same block, or else those that are cached now.
    pub fn findable<'a>(
        self,
        pool: &BlockPool,
        mut others: impl Iterator<Item = Prefix<'a>>,
    ) -> usize {
        let Some(first) = self.tokens.block(0) else { return 0 };
        let begins_alike =
            |other: Prefix<'_>| other.scope == self.scope && other.tokens.block(0) == Some(first);
        let blocks = if others.any(begins_alike) {
            self.tokens.len() / KV_BLOCK
        } else {
            self.find(pool).cached()
        };
        blocks * KV_BLOCK
    }
}

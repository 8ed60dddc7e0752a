//! The block table of one sequence.

use std::ops::Deref;

use stoker_ops::KV_BLOCK;

use super::{
    Block, BlockPool, Scope, SequenceTokens,
    block_key::{BlockKey, Parent},
};

/// The blocks of a sequence, in order; a prefix of them may be cached.
///
/// They are released from the last to the first, so that a block is never evicted before its
/// successors, which could not be found without it.
#[derive(Debug, Default)]
pub struct BlockTable {
    blocks: Vec<Block>,
    /// Number of leading blocks that are cached.
    cached: usize,
}

impl BlockTable {
    /// Returns the longest cached prefix of `tokens` in `scope`, in whole blocks.
    pub fn find<'a>(
        pool: &BlockPool,
        scope: &Scope,
        tokens: impl Into<SequenceTokens<'a>>,
    ) -> Self {
        let (mut table, tokens) = (Self::default(), tokens.into());
        while let Some(tokens) = tokens.block(table.cached) {
            let key = table.next_key(scope, tokens);
            let Some(block) = key.and_then(|key| pool.find(&key)) else { break };
            table.blocks.push(block);
            table.cached += 1;
        }
        table
    }

    /// Caches every block that is full of `tokens`, all of which are computed. A block whose
    /// content is cached already is replaced by the cached one.
    pub fn cache<'a>(&mut self, scope: &Scope, tokens: impl Into<SequenceTokens<'a>>) {
        let tokens = tokens.into();
        while let Some(tokens) = tokens.block(self.cached) {
            let Some(key) = self.next_key(scope, tokens) else { return };
            let Some(block) = self.blocks.get_mut(self.cached) else { return };
            block.cache(key);
            self.cached += 1;
        }
    }

    /// Returns a table that shares the first `count` blocks.
    pub fn prefix(&self, count: usize) -> Self {
        Self { blocks: self.blocks[..count].to_vec(), cached: self.cached.min(count) }
    }

    /// Appends blocks.
    pub fn extend(&mut self, blocks: Vec<Block>) {
        self.blocks.extend(blocks);
    }

    /// Number of leading blocks that are cached.
    pub fn cached(&self) -> usize {
        self.cached
    }

    /// Whether both tables have the same cached blocks.
    pub fn same_cached_prefix(&self, other: &Self) -> bool {
        let last =
            |table: &Self| table.cached.checked_sub(1).map(|last| table.blocks[last].number());
        // Each content has one block, and a block's key covers everything before it.
        self.cached == other.cached && last(self) == last(other)
    }

    /// Releases all blocks, and the memory of the list: a waiting sequence may wait for long.
    pub fn clear(&mut self) {
        while self.blocks.pop().is_some() {}
        self.blocks = Vec::new();
        self.cached = 0;
    }

    /// Key of the first block that is not cached, when it is full of `tokens`.
    fn next_key(&self, scope: &Scope, tokens: [u32; KV_BLOCK]) -> Option<BlockKey> {
        let parent = match self.cached.checked_sub(1) {
            None => Parent::Root(scope.clone()),
            Some(last) => Parent::Block(self.blocks[last].prefix_id()?),
        };
        Some(BlockKey { parent, tokens })
    }
}

impl Deref for BlockTable {
    type Target = [Block];

    fn deref(&self) -> &[Block] {
        &self.blocks
    }
}

impl Drop for BlockTable {
    fn drop(&mut self) {
        self.clear();
    }
}

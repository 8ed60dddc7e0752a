//! The blocks of one sequence.

use std::ops::Deref;

use stoker_ops::KV_BLOCK;

use super::{
    Block, BlockPool, Scope, SequenceTokens,
    content::{After, Content},
};

/// The blocks of a sequence, in order. The first of them may be kept.
///
/// They are let go from the last to the first, so that no block is forgotten before those that come after it, which could
/// not be found without it.
#[derive(Debug, Default)]
pub struct Table {
    blocks: Vec<Block>,
    /// So many of the first are kept.
    kept: usize,
}

impl Table {
    /// The blocks that hold the beginning of `tokens` in `scope`, as far as they are known. Whole blocks only.
    pub fn find<'a>(
        pool: &BlockPool,
        scope: &Scope,
        tokens: impl Into<SequenceTokens<'a>>,
    ) -> Self {
        let (mut table, tokens) = (Self::default(), tokens.into());
        while let Some(tokens) = tokens.block(table.kept) {
            let content = table.content(scope, tokens);
            let Some(block) = content.and_then(|content| pool.find(&content)) else { break };
            table.blocks.push(block);
            table.kept += 1;
        }
        table
    }

    /// Keeps every block that is full of `tokens`, all of which are computed. Where others know a block of the same
    /// content, it takes the place of the sequence's own.
    pub fn keep<'a>(&mut self, scope: &Scope, tokens: impl Into<SequenceTokens<'a>>) {
        let tokens = tokens.into();
        while let Some(tokens) = tokens.block(self.kept) {
            let Some(content) = self.content(scope, tokens) else { return };
            let Some(block) = self.blocks.get_mut(self.kept) else { return };
            block.keep(content);
            self.kept += 1;
        }
    }

    /// A table that begins with the first `count` blocks of this one.
    pub fn beginning(&self, count: usize) -> Self {
        Self { blocks: self.blocks[..count].to_vec(), kept: self.kept.min(count) }
    }

    /// Adds blocks at the end.
    pub fn extend(&mut self, blocks: Vec<Block>) {
        self.blocks.extend(blocks);
    }

    /// So many of the first blocks are kept.
    pub fn kept(&self) -> usize {
        self.kept
    }

    /// Whether the kept blocks of two tables are the same ones.
    pub fn same_kept(&self, other: &Self) -> bool {
        let last = |table: &Self| table.kept.checked_sub(1).map(|last| table.blocks[last].number());
        // There is one block of each content, and a content knows what comes before it.
        self.kept == other.kept && last(self) == last(other)
    }

    /// Lets all blocks go, and the memory of their list: a sequence that waits may do so for long.
    pub fn clear(&mut self) {
        while self.blocks.pop().is_some() {}
        self.blocks = Vec::new();
        self.kept = 0;
    }

    /// What the first block that is not kept holds when it is full of `tokens`.
    fn content(&self, scope: &Scope, tokens: [u32; KV_BLOCK]) -> Option<Content> {
        let after = match self.kept.checked_sub(1) {
            None => After::Nothing(scope.clone()),
            Some(last) => After::Block(self.blocks[last].content()?),
        };
        Some(Content { after, tokens })
    }
}

impl Deref for Table {
    type Target = [Block];

    fn deref(&self) -> &[Block] {
        &self.blocks
    }
}

impl Drop for Table {
    fn drop(&mut self) {
        self.clear();
    }
}

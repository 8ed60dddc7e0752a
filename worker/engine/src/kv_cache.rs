//! The blocks of the KV cache: a pool, reference-counted handles, and the index of cached content.
//!
//! A sequence owns the blocks of its [`BlockTable`]. Cloning a handle shares the block; dropping
//! the last handle releases it, so a block can neither leak nor be in two tables unless shared.
//!
//! A block that is full and computed is cached: a sequence with the same tokens after the same
//! prefix finds it while it is referenced and afterwards. A cached block is never written. One
//! without references stays cached until no other block is free; then the least recently released
//! one is evicted and allocated.

mod block_key;
mod prefix;
mod table;
mod tokens;

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

pub use block_key::Scope;
use block_key::{BlockKey, PrefixId};
pub use prefix::{Lookup, Prefix};
use stoker_ops::KV_BLOCK;
pub use table::BlockTable;
pub use tokens::SequenceTokens;

/// Number of blocks that hold `tokens` tokens.
pub fn blocks_for(tokens: usize) -> usize {
    tokens.div_ceil(KV_BLOCK)
}

/// All blocks of a cache.
#[derive(Debug, Clone)]
pub struct BlockPool(Arc<Pool>);

#[derive(Debug)]
struct Pool {
    state: Mutex<State>,
    total: usize,
}

/// A counted reference to one block.
pub struct Block {
    number: u32,
    pool: Arc<Pool>,
}

#[derive(Debug)]
struct State {
    /// Unreferenced blocks without cached content; the last one is allocated next.
    free: Vec<u32>,
    /// Unreferenced blocks with cached content, by the time of their release.
    evictable: BTreeMap<u64, u32>,
    /// Cached blocks by their content, referenced or evictable.
    cached: HashMap<BlockKey, u32>,
    /// Indexed by block number.
    slots: Vec<Slot>,
    /// Advances when a block becomes evictable and when one is cached, so that no value is used
    /// twice.
    clock: u64,
}

/// State of one block.
#[derive(Debug, Clone, Default)]
struct Slot {
    ref_count: usize,
    /// Key in `evictable`, while the block is there.
    released_at: u64,
    content: Option<(PrefixId, BlockKey)>,
}

impl BlockPool {
    /// Creates a pool of blocks `0..total`.
    pub fn new(total: u32) -> Self {
        let state = State {
            // Allocated in rising order at first, which makes tables easy to read.
            free: (0..total).rev().collect(),
            evictable: BTreeMap::new(),
            cached: HashMap::new(),
            slots: vec![Slot::default(); total as usize],
            clock: 0,
        };
        Self(Arc::new(Pool { state: Mutex::new(state), total: total as usize }))
    }

    /// Allocates `count` writable blocks, or none if fewer are free.
    pub fn allocate(&self, count: usize) -> Option<Vec<Block>> {
        let mut state = self.0.state();
        if state.num_free() < count {
            return None;
        }
        let numbers: Vec<_> = (0..count).map_while(|_| state.allocate()).collect();
        drop(state);
        Some(numbers.into_iter().map(|number| self.block(number)).collect())
    }

    /// Returns the block cached under `key`, if there is one.
    fn find(&self, key: &BlockKey) -> Option<Block> {
        let number = self.0.state().find(key)?;
        Some(self.block(number))
    }

    /// Wraps a block whose reference count already includes the handle.
    fn block(&self, number: u32) -> Block {
        Block { number, pool: Arc::clone(&self.0) }
    }

    /// Number of blocks that can be allocated now, evictable ones included.
    pub fn free(&self) -> usize {
        self.0.state().num_free()
    }

    /// Number of free blocks whose content is still cached.
    pub fn evictable(&self) -> usize {
        self.0.state().evictable.len()
    }

    /// Number of blocks in the pool.
    pub fn total(&self) -> usize {
        self.0.total
    }
}

impl Pool {
    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it holds the lock; if it did, the lists would still be consistent.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn num_free(&self) -> usize {
        self.free.len() + self.evictable.len()
    }

    /// Allocates a block without content, with one reference. Evicts a cached block only if no
    /// other is free.
    fn allocate(&mut self) -> Option<u32> {
        let number = match self.free.pop() {
            Some(number) => number,
            None => self.evictable.pop_first()?.1,
        };
        let slot = &mut self.slots[number as usize];
        slot.ref_count = 1;
        if let Some((_, key)) = slot.content.take() {
            self.cached.remove(&key);
        }
        Some(number)
    }

    /// Returns the block cached under `key`, with one reference more.
    fn find(&mut self, key: &BlockKey) -> Option<u32> {
        let number = *self.cached.get(key)?;
        self.retain(number);
        Some(number)
    }

    /// Adds a reference.
    fn retain(&mut self, number: u32) {
        let slot = &mut self.slots[number as usize];
        if slot.ref_count == 0 {
            self.evictable.remove(&slot.released_at);
        }
        slot.ref_count += 1;
    }

    /// Drops a reference. The block becomes free or evictable with the last one.
    fn release(&mut self, number: u32) {
        let slot = &mut self.slots[number as usize];
        slot.ref_count -= 1;
        if slot.ref_count > 0 {
            return;
        }
        if slot.content.is_none() {
            self.free.push(number);
            return;
        }
        self.clock += 1;
        slot.released_at = self.clock;
        self.evictable.insert(self.clock, number);
    }

    /// Caches a block under `key`.
    fn cache(&mut self, number: u32, key: BlockKey) {
        self.clock += 1;
        self.slots[number as usize].content = Some((PrefixId::new(self.clock), key.clone()));
        self.cached.insert(key, number);
    }
}

impl Block {
    /// Index of the block in the cache.
    pub fn number(&self) -> u32 {
        self.number
    }

    /// Whether the block can be found by its content. It must not be written then.
    pub fn is_cached(&self) -> bool {
        self.prefix_id().is_some()
    }

    fn prefix_id(&self) -> Option<PrefixId> {
        let state = self.pool.state();
        state.slots[self.number as usize].content.as_ref().map(|(id, _)| *id)
    }

    /// Caches the block under `key`, now that its content is computed. If another block is cached
    /// under this key, the handle refers to that one afterwards.
    fn cache(&mut self, key: BlockKey) {
        let mut state = self.pool.state();
        match state.find(&key) {
            None => state.cache(self.number, key),
            Some(number) => {
                // Releasing the previous block takes the lock again.
                drop(state);
                *self = Self { number, pool: Arc::clone(&self.pool) };
            }
        }
    }
}

impl Clone for Block {
    fn clone(&self) -> Self {
        self.pool.state().retain(self.number);
        Self { number: self.number, pool: Arc::clone(&self.pool) }
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        self.pool.state().release(self.number);
    }
}

impl fmt::Debug for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Block({})", self.number)
    }
}

#[cfg(test)]
mod tests;

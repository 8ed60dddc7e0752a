//! The blocks of the KV cache: a pool, and handles that go home when they are dropped.
//!
//! A sequence owns the blocks of its table. Cloning a handle shares the block; the last handle to
//! be dropped gives it back, so a block can neither leak nor be in two tables unless shared.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// All blocks of a cache.
#[derive(Debug, Clone)]
pub struct BlockPool(Arc<Pool>);

#[derive(Debug)]
struct Pool {
    /// Numbers of free blocks; the last one is handed out next.
    free: Mutex<Vec<u32>>,
    total: usize,
}

/// One block, held.
#[derive(Clone)]
pub struct Block(Arc<Held>);

struct Held {
    number: u32,
    pool: Arc<Pool>,
}

impl BlockPool {
    /// A pool of blocks `0..total`.
    pub fn new(total: u32) -> Self {
        // Handed out in rising order at first, which makes tables easy to read.
        let free = (0..total).rev().collect();
        Self(Arc::new(Pool { free: Mutex::new(free), total: total as usize }))
    }

    /// Takes `count` blocks, or none if fewer are free.
    pub fn take(&self, count: usize) -> Option<Vec<Block>> {
        let mut free = self.0.free();
        let left = free.len().checked_sub(count)?;
        let taken = free.drain(left..).rev();
        let block = |number| Block(Arc::new(Held { number, pool: Arc::clone(&self.0) }));
        Some(taken.map(block).collect())
    }

    /// Blocks that can be taken now.
    pub fn free(&self) -> usize {
        self.0.free().len()
    }

    /// Blocks there are.
    pub fn total(&self) -> usize {
        self.0.total
    }
}

impl Pool {
    fn free(&self) -> MutexGuard<'_, Vec<u32>> {
        // Nothing panics while it holds the lock; if it did, the list would still be whole.
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Block {
    /// Its place in the cache.
    pub fn number(&self) -> u32 {
        self.0.number
    }
}

impl fmt::Debug for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Block({})", self.0.number)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.pool.free().push(self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_come_home_when_the_last_handle_goes() {
        let pool = BlockPool::new(3);
        let two = pool.take(2).unwrap_or_default();
        assert_eq!(two.iter().map(Block::number).collect::<Vec<_>>(), [0, 1]);
        assert!(pool.take(2).is_none(), "all or nothing");
        assert_eq!(pool.free(), 1);
        let shared = two[0].clone();
        drop(two);
        assert_eq!(pool.free(), 2);
        drop(shared);
        assert_eq!(pool.free(), pool.total());
    }
}

//! The blocks of the KV cache: a pool, handles that go home when they are dropped, and what is known of their content.
//!
//! A sequence owns the blocks of its [`Table`]. Cloning a handle shares the block; the last handle to be dropped gives
//! it back, so a block can neither leak nor be in two tables unless shared.
//!
//! A block that is full and computed is kept: whoever has the same tokens after the same beginning finds it, while others
//! hold it and after. Nobody writes it any more. One that nobody holds stays known until nothing else is free; then the
//! one that was let go first is forgotten and handed out.

mod content;
mod table;
mod tokens;

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

pub use content::Scope;
use content::{Content, ContentId};
pub use table::Table;
pub use tokens::SequenceTokens;

/// All blocks of a cache.
#[derive(Debug, Clone)]
pub struct BlockPool(Arc<Pool>);

#[derive(Debug)]
struct Pool {
    state: Mutex<State>,
    total: usize,
}

/// One block, held.
pub struct Block {
    number: u32,
    pool: Arc<Pool>,
}

#[derive(Debug)]
struct State {
    /// Free blocks of which nothing is known; the last one is handed out next.
    blank: Vec<u32>,
    /// Free blocks whose content is known, by when they were let go.
    idle: BTreeMap<u64, u32>,
    /// Where content is: held or idle.
    kept: HashMap<Content, u32>,
    /// By number.
    slots: Vec<Slot>,
    /// Counts whatever becomes idle, and whatever is kept: no number comes twice.
    clock: u64,
}

/// What is known of a block.
#[derive(Debug, Clone, Default)]
struct Slot {
    holders: usize,
    /// Its place in `idle`, while it is there.
    let_go: u64,
    content: Option<(ContentId, Content)>,
}

impl BlockPool {
    /// A pool of blocks `0..total`.
    pub fn new(total: u32) -> Self {
        let state = State {
            // Handed out in rising order at first, which makes tables easy to read.
            blank: (0..total).rev().collect(),
            idle: BTreeMap::new(),
            kept: HashMap::new(),
            slots: vec![Slot::default(); total as usize],
            clock: 0,
        };
        Self(Arc::new(Pool { state: Mutex::new(state), total: total as usize }))
    }

    /// Takes `count` blocks to write into, or none if fewer are free.
    pub fn take(&self, count: usize) -> Option<Vec<Block>> {
        let mut state = self.0.state();
        if state.free() < count {
            return None;
        }
        let numbers: Vec<_> = (0..count).map_while(|_| state.hand_out()).collect();
        drop(state);
        Some(numbers.into_iter().map(|number| self.block(number)).collect())
    }

    /// The block that holds `content`, if there is one.
    fn find(&self, content: &Content) -> Option<Block> {
        let number = self.0.state().find(content)?;
        Some(self.block(number))
    }

    /// A handle of a block that counts it as a holder already.
    fn block(&self, number: u32) -> Block {
        Block { number, pool: Arc::clone(&self.0) }
    }

    /// Blocks that can be taken now.
    pub fn free(&self) -> usize {
        self.0.state().free()
    }

    /// Of these, the ones whose content can still be found.
    pub fn idle(&self) -> usize {
        self.0.state().idle.len()
    }

    /// Blocks there are.
    pub fn total(&self) -> usize {
        self.0.total
    }
}

impl Pool {
    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it holds the lock; if it did, the lists would still be whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn free(&self) -> usize {
        self.blank.len() + self.idle.len()
    }

    /// A free block of unknown content, now held. What is known is forgotten only where there is nothing else.
    fn hand_out(&mut self) -> Option<u32> {
        let number = match self.blank.pop() {
            Some(number) => number,
            None => self.idle.pop_first()?.1,
        };
        let slot = &mut self.slots[number as usize];
        slot.holders = 1;
        if let Some((_, content)) = slot.content.take() {
            self.kept.remove(&content);
        }
        Some(number)
    }

    /// The block of this content, with one holder more.
    fn find(&mut self, content: &Content) -> Option<u32> {
        let number = *self.kept.get(content)?;
        self.hold(number);
        Some(number)
    }

    fn hold(&mut self, number: u32) {
        let slot = &mut self.slots[number as usize];
        if slot.holders == 0 {
            self.idle.remove(&slot.let_go);
        }
        slot.holders += 1;
    }

    fn let_go(&mut self, number: u32) {
        let slot = &mut self.slots[number as usize];
        slot.holders -= 1;
        if slot.holders > 0 {
            return;
        }
        if slot.content.is_none() {
            self.blank.push(number);
            return;
        }
        self.clock += 1;
        slot.let_go = self.clock;
        self.idle.insert(self.clock, number);
    }

    /// Makes a block known by what it holds.
    fn keep(&mut self, number: u32, content: Content) {
        self.clock += 1;
        self.slots[number as usize].content = Some((ContentId::new(self.clock), content.clone()));
        self.kept.insert(content, number);
    }
}

impl Block {
    /// Its place in the cache.
    pub fn number(&self) -> u32 {
        self.number
    }

    /// Whether others find it by its content. It must not be written then.
    pub fn is_kept(&self) -> bool {
        self.content().is_some()
    }

    fn content(&self) -> Option<ContentId> {
        let state = self.pool.state();
        state.slots[self.number as usize].content.as_ref().map(|(id, _)| *id)
    }

    /// Makes it known by its content, now that this is computed. Where others know a block of the same content, this
    /// becomes a handle of that one.
    fn keep(&mut self, content: Content) {
        let mut state = self.pool.state();
        match state.find(&content) {
            None => state.keep(self.number, content),
            Some(number) => {
                // What this handle held takes the lock as it goes home.
                drop(state);
                *self = Self { number, pool: Arc::clone(&self.pool) };
            }
        }
    }
}

impl Clone for Block {
    fn clone(&self) -> Self {
        self.pool.state().hold(self.number);
        Self { number: self.number, pool: Arc::clone(&self.pool) }
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        self.pool.state().let_go(self.number);
    }
}

impl fmt::Debug for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Block({})", self.number)
    }
}

#[cfg(test)]
mod tests;

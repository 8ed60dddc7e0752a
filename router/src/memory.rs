//! A number of bytes that many share.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

/// What may be held in all. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Budget(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    limit: usize,
    held: AtomicUsize,
}

impl Budget {
    /// Room for `limit` bytes.
    pub(crate) fn new(limit: usize) -> Self {
        Self(Arc::new(Shared { limit, held: AtomicUsize::new(0) }))
    }

    /// Holds `bytes`, if there is room.
    pub(crate) fn try_hold(&self, bytes: usize) -> Option<Hold> {
        let mut hold = Hold { budget: self.clone(), bytes: 0 };
        hold.grow(bytes).then_some(hold)
    }

    /// Bytes that are held now.
    pub(crate) fn held(&self) -> usize {
        self.0.held.load(Ordering::Relaxed)
    }
}

/// A part of a budget. Dropping it gives the part back.
#[derive(Debug)]
pub(crate) struct Hold {
    budget: Budget,
    bytes: usize,
}

impl Hold {
    /// Holds that many bytes more. False, and nothing more is held, if there is no room for them.
    pub(crate) fn grow(&mut self, bytes: usize) -> bool {
        let Shared { limit, held } = &*self.budget.0;
        let more = |now: usize| now.checked_add(bytes).filter(|sum| sum <= limit);
        let grown = held.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok();
        if grown {
            self.bytes += bytes;
        }
        grown
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.budget.0.held.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn nobody_gets_more_than_there_is_and_all_of_it_comes_back() {
        let budget = Budget::new(100);
        let mut first = budget.try_hold(60).unwrap();
        assert!(budget.try_hold(41).is_none());
        let second = budget.try_hold(40).unwrap();
        assert!(!first.grow(1) && !first.grow(usize::MAX));
        assert_eq!(budget.held(), 100);
        drop(second);
        assert!(first.grow(40));
        drop(first);
        assert_eq!(budget.held(), 0);
    }
}

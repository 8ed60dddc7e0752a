//! What the router may hold in memory for requests, counted in bytes.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

/// A number of bytes that all requests share. Clones share it too.
#[derive(Debug, Clone)]
pub(crate) struct Budget(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    limit: u64,
    held: AtomicU64,
}

impl Budget {
    pub(crate) fn new(bytes: u64) -> Self {
        Self(Arc::new(Shared { limit: bytes, held: AtomicU64::new(0) }))
    }

    /// What may be held in all.
    pub(crate) fn limit(&self) -> u64 {
        self.0.limit
    }

    /// What is held now.
    pub(crate) fn held(&self) -> u64 {
        self.0.held.load(Ordering::Relaxed)
    }

    /// Holds `bytes`, if there is room for all of them.
    pub(crate) fn try_hold(&self, bytes: u64) -> Option<Hold> {
        let mut hold = Hold { budget: self.clone(), bytes: 0 };
        hold.grow(bytes).then_some(hold)
    }
}

/// A part of a budget. Dropping it gives back all of it.
#[derive(Debug)]
pub(crate) struct Hold {
    budget: Budget,
    bytes: u64,
}

impl Hold {
    /// Holds `bytes` more; nothing changes if there is no room for all of them.
    #[must_use]
    pub(crate) fn grow(&mut self, bytes: u64) -> bool {
        let Shared { limit, held } = &*self.budget.0;
        let more = |held: u64| held.checked_add(bytes).filter(|sum| sum <= limit);
        let grown = held.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok();
        if grown {
            self.bytes += bytes;
        }
        grown
    }

    /// Gives back `bytes`, or all that it holds if that is less.
    pub(crate) fn shrink(&mut self, bytes: u64) {
        let less = bytes.min(self.bytes);
        self.bytes -= less;
        self.budget.0.held.fetch_sub(less, Ordering::Relaxed);
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.shrink(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use proptest::{collection::vec, prelude::*};

    use super::*;

    #[test]
    fn holds_grow_and_shrink_within_the_limit() {
        let budget = Budget::new(100);
        let mut first = budget.try_hold(60).unwrap();
        assert!(budget.try_hold(41).is_none());
        let second = budget.try_hold(40).unwrap();
        assert!(!first.grow(1));
        drop(second);
        assert!(first.grow(40));
        first.shrink(30);
        assert_eq!(budget.held(), 70);
        first.shrink(1_000);
        assert_eq!(budget.held(), 0, "no more than it held");
        assert!(!first.grow(u64::MAX) && budget.try_hold(u64::MAX).is_none());
    }

    proptest! {
        #[test]
        fn nothing_is_lost_and_the_limit_stands(
            steps in vec((0_usize..4, 0_u8..4, 0_u64..200), 0..200)
        ) {
            let budget = Budget::new(500);
            let mut holds: [Option<Hold>; 4] = Default::default();
            for (who, what, bytes) in steps {
                match (&mut holds[who], what) {
                    (Some(hold), 0 | 1) => drop(hold.grow(bytes)),
                    (Some(hold), 2) => hold.shrink(bytes),
                    (Some(_), _) => holds[who] = None,
                    (none, _) => *none = budget.try_hold(bytes),
                }
                let held: u64 = holds.iter().flatten().map(|hold| hold.bytes).sum();
                prop_assert_eq!(budget.held(), held);
                prop_assert!(held <= budget.limit());
            }
            drop(holds);
            prop_assert_eq!(budget.held(), 0);
        }
    }
}

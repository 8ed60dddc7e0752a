//! What a process may hold in memory for requests, counted in bytes.

mod size;

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

pub use size::{held, wire};

/// A number of bytes that all requests share. Clones share it too.
#[derive(Debug, Clone)]
pub struct Budget(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    limit: u64,
    held: AtomicU64,
}

impl Budget {
    /// Of `bytes`.
    pub fn new(bytes: u64) -> Self {
        Self(Arc::new(Shared { limit: bytes, held: AtomicU64::new(0) }))
    }

    /// What may be held in all.
    pub fn limit(&self) -> u64 {
        self.0.limit
    }

    /// What is held now.
    pub fn held(&self) -> u64 {
        self.0.held.load(Ordering::Relaxed)
    }

    /// Holds nothing yet.
    pub fn hold(&self) -> Hold {
        Hold { budget: self.clone(), bytes: 0 }
    }

    /// Holds `bytes` whether there is room or not: what is there already is counted, so that others are refused.
    pub fn hold_anyway(&self, bytes: u64) -> Hold {
        self.0.held.fetch_add(bytes, Ordering::Relaxed);
        Hold { budget: self.clone(), bytes }
    }

    /// Holds `bytes`, if there is room for all of them.
    pub fn try_hold(&self, bytes: u64) -> Option<Hold> {
        let mut hold = self.hold();
        hold.grow(bytes).then_some(hold)
    }
}

/// A part of a budget. Dropping it gives back all of it.
#[derive(Debug)]
pub struct Hold {
    budget: Budget,
    bytes: u64,
}

impl Hold {
    /// What it is a part of.
    pub fn budget(&self) -> &Budget {
        &self.budget
    }

    /// What it holds.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Holds `bytes` in all; nothing changes if there is no room for all of them.
    #[must_use]
    pub fn set(&mut self, bytes: u64) -> bool {
        if bytes <= self.bytes {
            self.shrink(self.bytes - bytes);
            return true;
        }
        self.grow(bytes - self.bytes)
    }

    /// Holds `bytes` more; nothing changes if there is no room for all of them.
    #[must_use]
    pub fn grow(&mut self, bytes: u64) -> bool {
        let Shared { limit, held } = &*self.budget.0;
        let more = |held: u64| held.checked_add(bytes).filter(|sum| sum <= limit);
        let grown = held.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok();
        if grown {
            self.bytes += bytes;
        }
        grown
    }

    /// Gives back `bytes`, or all that it holds if that is less.
    pub fn shrink(&mut self, bytes: u64) {
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
        let forced = budget.hold_anyway(50);
        assert!(budget.held() == 120 && !first.grow(1), "counted beyond the limit");
        drop(forced);
        assert!(!first.set(101) && first.set(40) && budget.held() == 40);
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

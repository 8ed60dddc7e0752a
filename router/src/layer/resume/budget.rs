//! What all requests may spend on further attempts together.

use std::sync::atomic::{AtomicU32, Ordering};

/// Every request pays one in, and a further attempt costs five: at most 20 % extra load, however bad it gets.
pub(super) const COST: u32 = 5;
/// What a quiet hour saves up, and what the first requests of all find: ten attempts.
pub(super) const MOST_SAVED: u32 = 10 * COST;

/// Everybody spends from it.
#[derive(Debug)]
pub(super) struct Budget(AtomicU32);

impl Default for Budget {
    fn default() -> Self {
        Self(AtomicU32::new(MOST_SAVED))
    }
}

impl Budget {
    /// A request came.
    pub(super) fn deposit(&self) {
        self.update(|saved| (saved < MOST_SAVED).then_some(saved + 1));
    }

    /// Pays for an attempt. False if nothing is left.
    pub(super) fn withdraw(&self) -> bool {
        self.update(|saved| saved.checked_sub(COST))
    }

    fn update(&self, change: impl FnMut(u32) -> Option<u32>) -> bool {
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, change).is_ok()
    }
}

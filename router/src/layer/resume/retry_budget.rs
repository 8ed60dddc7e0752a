//! What all requests may spend on further attempts together.

use std::sync::atomic::{AtomicU32, Ordering};

/// Every request pays one in, and a further attempt costs five: at most 20 % extra load, however bad it gets.
pub(super) const ATTEMPT_COST: u32 = 5;
/// What a quiet hour saves up, and what the first requests of all find: ten attempts.
pub(super) const MAX_BALANCE: u32 = 10 * ATTEMPT_COST;

/// Everybody spends from it.
#[derive(Debug)]
pub(super) struct RetryBudget(AtomicU32);

impl Default for RetryBudget {
    fn default() -> Self {
        Self(AtomicU32::new(MAX_BALANCE))
    }
}

impl RetryBudget {
    /// A request came.
    pub(super) fn deposit(&self) {
        self.update(|saved| (saved < MAX_BALANCE).then_some(saved + 1));
    }

    /// Pays for an attempt. False if nothing is left.
    pub(super) fn withdraw(&self) -> bool {
        self.update(|saved| saved.checked_sub(ATTEMPT_COST))
    }

    fn update(&self, change: impl FnMut(u32) -> Option<u32>) -> bool {
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, change).is_ok()
    }
}

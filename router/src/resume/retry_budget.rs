//! Retry budget shared by all requests.

use std::sync::atomic::{AtomicU32, Ordering};

/// Cost of a further attempt. Every request deposits 1, so retries add at most 20 % load.
pub(super) const ATTEMPT_COST: u32 = 5;
/// Initial and maximum balance: ten attempts.
pub(super) const MAX_BALANCE: u32 = 10 * ATTEMPT_COST;

/// Token bucket for retries and hedges.
#[derive(Debug)]
pub(super) struct RetryBudget(AtomicU32);

impl Default for RetryBudget {
    fn default() -> Self {
        Self(AtomicU32::new(MAX_BALANCE))
    }
}

impl RetryBudget {
    /// Deposits 1 for a new request.
    pub(super) fn deposit(&self) {
        self.update(|saved| (saved < MAX_BALANCE).then_some(saved + 1));
    }

    /// Withdraws the cost of an attempt. Returns false if the balance is too low.
    pub(super) fn withdraw(&self) -> bool {
        self.update(|saved| saved.checked_sub(ATTEMPT_COST))
    }

    fn update(&self, change: impl FnMut(u32) -> Option<u32>) -> bool {
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, change).is_ok()
    }
}

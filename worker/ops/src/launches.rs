//! Count of launches, which measure the host's cost of a step.

use std::sync::atomic::{AtomicU64, Ordering};

static LAUNCHES: AtomicU64 = AtomicU64::new(0);

/// Returns the number of our kernels that this process has launched, plus replayed graphs.
pub fn launches() -> u64 {
    LAUNCHES.load(Ordering::Relaxed)
}

/// Counts one launch.
pub(crate) fn count() {
    LAUNCHES.fetch_add(1, Ordering::Relaxed);
}

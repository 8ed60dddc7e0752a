//! How often a GPU was told to do something: what a step costs the host.

use std::sync::atomic::{AtomicU64, Ordering};

static LAUNCHES: AtomicU64 = AtomicU64::new(0);

/// Kernels of ours that this process has launched, and graphs that it has replayed.
pub fn launches() -> u64 {
    LAUNCHES.load(Ordering::Relaxed)
}

/// One more.
pub(crate) fn count() {
    LAUNCHES.fetch_add(1, Ordering::Relaxed);
}

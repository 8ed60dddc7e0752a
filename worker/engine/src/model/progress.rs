//! Progress within a step, which may take long on a slow device.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

/// Counts units of work, such as the layers of a step. Clones share one count.
#[derive(Debug, Clone, Default)]
pub struct ProgressCounter(Arc<AtomicU64>);

impl ProgressCounter {
    /// Adds one unit.
    pub fn increment(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// Number of units done so far.
    pub fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

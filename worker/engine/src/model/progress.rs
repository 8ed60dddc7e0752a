//! A sign of life from within a step, which on a slow device may take long.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

/// Counts pieces of work, such as the layers of a step. Clones count together.
#[derive(Debug, Clone, Default)]
pub struct ProgressCounter(Arc<AtomicU64>);

impl ProgressCounter {
    /// Another piece is done.
    pub fn increment(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// Pieces done so far.
    pub fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

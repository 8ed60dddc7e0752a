//! Total time in operations. The rest of a step is overhead.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

static NANOSECONDS: AtomicU64 = AtomicU64::new(0);

/// Wall time that this process has spent in operations on the CPU. Concurrent engines add up.
pub fn kernel_time() -> Duration {
    Duration::from_nanos(NANOSECONDS.load(Ordering::Relaxed))
}

/// Adds the time from its creation to its drop.
pub(super) struct Timed(Instant);

impl Timed {
    pub(super) fn start() -> Self {
        Self(Instant::now())
    }
}

impl Drop for Timed {
    fn drop(&mut self) {
        NANOSECONDS.fetch_add(self.0.elapsed().as_nanos() as u64, Ordering::Relaxed);
    }
}

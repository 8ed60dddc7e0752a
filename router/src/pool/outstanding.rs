//! Outstanding work of this router at a worker.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

/// Time for which a worker that refused a resumed response counts as full, unless a stream there
/// ends before.
pub(super) const FULL_DURATION: Duration = Duration::from_millis(500);

/// Totals of all calls of this router that run at one worker.
#[derive(Debug, Default)]
pub(crate) struct Outstanding {
    /// Whether the worker has refused a resumed response.
    full: AtomicBool,
    /// Time of the last refusal.
    full_since: Mutex<Option<Instant>>,
    pub(super) prompt: AtomicU64,
    pub(super) completions: AtomicU64,
    pub(super) sequences: AtomicU64,
    pub(super) streams: AtomicU64,
}

impl Outstanding {
    /// Remaining tokens to prefill and to generate.
    pub(crate) fn tokens(&self) -> u64 {
        self.prompt_tokens() + self.completion_tokens()
    }

    /// Remaining tokens to prefill.
    pub(crate) fn prompt_tokens(&self) -> u64 {
        self.prompt.load(Ordering::Relaxed)
    }

    /// Remaining tokens to generate.
    pub(crate) fn completion_tokens(&self) -> u64 {
        self.completions.load(Ordering::Relaxed)
    }

    /// Number of unfinished sequences.
    pub(crate) fn sequences(&self) -> u64 {
        self.sequences.load(Ordering::Relaxed)
    }

    /// Number of running calls.
    pub(crate) fn streams(&self) -> u64 {
        self.streams.load(Ordering::Relaxed)
    }

    /// Records that the worker refused a resumed response. It has more slots for these than for new
    /// calls.
    pub(crate) fn mark_full(&self) {
        *self.full_since.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        self.full.store(true, Ordering::Relaxed);
    }

    /// Records that a slot is free again.
    pub(super) fn mark_not_full(&self) {
        self.full.store(false, Ordering::Relaxed);
    }

    /// Whether the worker is expected to refuse any call now.
    pub(crate) fn is_full(&self) -> bool {
        // Worker selection calls this for every worker: the atomic avoids the lock.
        self.full.load(Ordering::Relaxed) && {
            let since = *self.full_since.lock().unwrap_or_else(PoisonError::into_inner);
            since.is_some_and(|since| since.elapsed() < FULL_DURATION)
        }
    }
}

//! The calls that are under way: a limit on them, a count for the drain, and a way to cut them off.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use stoker_shared::ServiceError;
use tokio::sync::watch;
use tokio_util::{
    sync::CancellationToken,
    task::{TaskTracker, task_tracker::TaskTrackerToken},
};

/// A full queue moves on within about this long.
const RETRY_AFTER: Duration = Duration::from_millis(500);

/// Calls that may be under way at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Beyond this, new calls are refused: those that run and those that wait.
    pub new: usize,
    /// Further ones that continue what another worker had accepted: they need not wait until a new call would be
    /// admitted, so as long as one of them is refused, no new call is admitted either.
    pub continued: usize,
}

/// All calls of a worker.
#[derive(Clone)]
pub struct Inflight {
    admitted: Arc<AtomicUsize>,
    limits: Limits,
    tracker: TaskTracker,
    draining: Arc<watch::Sender<bool>>,
    cut: CancellationToken,
}

/// The slot of one call. Dropping it frees the slot.
pub struct Slot {
    admitted: Arc<AtomicUsize>,
    _token: TaskTrackerToken,
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.admitted.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Inflight {
    /// Slots within `limits`.
    pub fn new(limits: Limits) -> Self {
        Self {
            admitted: Arc::default(),
            limits,
            tracker: TaskTracker::new(),
            draining: Arc::new(watch::Sender::new(false)),
            cut: CancellationToken::new(),
        }
    }

    /// Takes a slot for a new call, or for one that continues what another worker had accepted.
    pub fn enter(&self, continues: bool) -> Result<Slot, ServiceError> {
        // Counted before the look at `draining`: a drain that begins in between waits for this call.
        let token = self.tracker.token();
        if *self.draining.borrow() {
            return Err(ServiceError::Draining("the worker".into()));
        }
        let Limits { new, continued } = self.limits;
        let limit = if continues { new.saturating_add(continued) } else { new };
        let one_more = |admitted: usize| (admitted < limit).then_some(admitted + 1);
        let taken = self.admitted.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more);
        taken.map_err(|admitted| ServiceError::Overloaded {
            what: format!(
                "{admitted} requests run or wait on this worker, and {limit} may (--max-num-seqs and \
                 --max-num-queued-reqs together{})",
                if continues { ", and --max-num-seqs more that were resumed" } else { "" }
            ),
            retry_after: RETRY_AFTER,
        })?;
        Ok(Slot { admitted: Arc::clone(&self.admitted), _token: token })
    }

    /// A response is there until its client has taken all of it, when what this returns is dropped: a drain waits for it.
    pub fn untaken(&self) -> TaskTrackerToken {
        self.tracker.token()
    }

    /// Refuses new calls and waits until all have ended, or for `timeout`. Answers how many are left.
    pub async fn drain(&self, timeout: Option<Duration>) -> usize {
        self.draining.send_replace(true);
        self.tracker.close();
        match timeout {
            Some(timeout) => {
                let _ = tokio::time::timeout(timeout, self.tracker.wait()).await;
            }
            None => self.tracker.wait().await,
        }
        self.tracker.len()
    }

    /// Whether a drain has begun, and when it does.
    pub fn draining(&self) -> watch::Receiver<bool> {
        self.draining.subscribe()
    }

    /// Ends every stream, loads that are watched included.
    pub fn cut_off(&self) {
        self.cut.cancel();
    }

    /// Resolves when streams are to end.
    pub fn cut(&self) -> &CancellationToken {
        &self.cut
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    fn of(new: usize, continued: usize) -> Inflight {
        Inflight::new(Limits { new, continued })
    }

    #[tokio::test]
    async fn a_drain_waits_for_those_inside_and_lets_nobody_in() {
        let inflight = of(1, 0);
        let slot = inflight.enter(false).unwrap();
        assert!(matches!(inflight.enter(false), Err(ServiceError::Overloaded { .. })));
        let mut drain = std::pin::pin!(inflight.drain(None));
        assert!(futures::poll!(drain.as_mut()).is_pending());
        assert!(matches!(inflight.enter(true), Err(ServiceError::Draining(_))));
        drop(slot);
        assert_eq!(drain.await, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_drain_gives_up_after_its_timeout() {
        let inflight = of(2, 0);
        let _slot = inflight.enter(false).unwrap();
        assert_eq!(inflight.drain(Some(Duration::from_secs(5))).await, 1);
    }

    #[tokio::test]
    async fn while_a_resumed_call_is_refused_no_new_one_is_admitted() {
        let inflight = of(2, 2);
        let mut slots: Vec<_> = (0..2).map(|_| inflight.enter(false).unwrap()).collect();
        assert!(inflight.enter(false).is_err(), "the queue is full");
        slots.extend((0..2).map(|_| inflight.enter(true).unwrap()));
        assert!(inflight.enter(true).is_err(), "bounded too");
        slots.truncate(3);
        assert!(inflight.enter(false).is_err(), "the slot is for a resumed one");
        slots.push(inflight.enter(true).unwrap());
        slots.truncate(1);
        assert!(inflight.enter(false).is_ok());
    }
}

//! The calls that are under way: a limit on them, a count for the drain, and a way to cut them off.

use std::{sync::Arc, time::Duration};

use stoker_shared::ServiceError;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio_util::{
    sync::CancellationToken,
    task::{TaskTracker, task_tracker::TaskTrackerToken},
};

/// A full queue moves on within about this long.
const RETRY_AFTER: Duration = Duration::from_millis(500);

/// All calls of a worker.
#[derive(Clone)]
pub struct Inflight {
    places: Arc<Semaphore>,
    limit: usize,
    tracker: TaskTracker,
    draining: Arc<watch::Sender<bool>>,
    cut: CancellationToken,
}

/// One call's place. Dropping it frees the place.
pub struct Place {
    _permit: OwnedSemaphorePermit,
    _token: TaskTrackerToken,
}

impl Inflight {
    /// Room for `limit` calls, running and waiting together.
    pub fn new(limit: usize) -> Self {
        Self {
            places: Arc::new(Semaphore::new(limit)),
            limit,
            tracker: TaskTracker::new(),
            draining: Arc::new(watch::Sender::new(false)),
            cut: CancellationToken::new(),
        }
    }

    /// Takes a place.
    pub fn enter(&self) -> Result<Place, ServiceError> {
        // Counted before the look at `draining`: a drain that begins in between waits for this call.
        let token = self.tracker.token();
        if *self.draining.borrow() {
            return Err(ServiceError::Draining("the worker".into()));
        }
        let permit =
            Arc::clone(&self.places).try_acquire_owned().map_err(|_| ServiceError::Overloaded {
                what: format!(
                    "{} requests run or wait on this worker, as many as may (--max-num-seqs and \
                     --max-num-queued-reqs together)",
                    self.limit
                ),
                retry_after: RETRY_AFTER,
            })?;
        Ok(Place { _permit: permit, _token: token })
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

    #[tokio::test]
    async fn a_drain_waits_for_those_inside_and_lets_nobody_in() {
        let inflight = Inflight::new(1);
        let place = inflight.enter().unwrap();
        assert!(matches!(inflight.enter(), Err(ServiceError::Overloaded { .. })));
        let mut drain = std::pin::pin!(inflight.drain(None));
        assert!(futures::poll!(drain.as_mut()).is_pending());
        assert!(matches!(inflight.enter(), Err(ServiceError::Draining(_))));
        drop(place);
        assert_eq!(drain.await, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_drain_gives_up_after_its_timeout() {
        let inflight = Inflight::new(2);
        let _place = inflight.enter().unwrap();
        assert_eq!(inflight.drain(Some(Duration::from_secs(5))).await, 1);
    }
}

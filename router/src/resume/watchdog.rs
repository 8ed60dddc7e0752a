//! Timeouts of streams that wait for their worker.

use std::{
    pin::Pin,
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use futures::{FutureExt, future::BoxFuture};
use stoker_shared::ServiceError;
use tokio::time::{Instant, Sleep, sleep_until};

use crate::pool::{
    liveness::{CATCH_UP, LATE},
    worker::Worker,
};

/// Interval of checks for a replacement worker while there is none.
const RECHECK_INTERVAL: Duration = Duration::from_millis(200);

/// Maximum times that a stream waits for an event.
#[derive(Debug, Clone, Copy)]
pub(super) struct StallTimeouts {
    /// Limit while its worker is stalled.
    pub(super) stalled_worker: Duration,
    /// Limit between two of its events while its worker makes progress on others.
    pub(super) token: Duration,
}

/// State of a stream that waits for its worker.
#[derive(Debug, Clone, Copy)]
pub(super) struct WaitState {
    /// Start of the wait, after the last event.
    pub(super) since: Instant,
    /// Whether this worker has sent a token.
    pub(super) has_tokens: bool,
    /// Whether the worker has preempted a sequence of the stream.
    pub(super) preempted: bool,
}

/// Watches one attempt.
pub(super) struct Watchdog {
    timeouts: StallTimeouts,
    /// Future that resolves once the worker is stalled, and the waker registered with it.
    stall: Option<(BoxFuture<'static, ()>, Waker)>,
    stalled: bool,
    /// Earliest time of the next check.
    not_before: Instant,
    /// Start of the wait in which this process was found to run late.
    late_wait: Option<Instant>,
    /// Reset only when it has fired or is set too late, not with every token.
    timer: Pin<Box<Sleep>>,
}

impl Watchdog {
    /// Creates a watchdog before the worker is selected.
    pub(super) fn new(timeouts: StallTimeouts) -> Self {
        let now = Instant::now();
        Self {
            timeouts,
            stall: None,
            stalled: false,
            not_before: now,
            late_wait: None,
            timer: Box::pin(sleep_until(now + timeouts.token)),
        }
    }

    /// Resolves once the stream should leave `worker`, which requires a replacement.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        worker: &Worker,
        WaitState { since, has_tokens, preempted }: WaitState,
        has_replacement: impl Fn(&Worker) -> bool,
    ) -> Poll<ServiceError> {
        loop {
            if !self.stalled && self.poll_stalled(cx, worker) {
                self.stalled = true;
                // Discards the schedule of a moving worker, and does not count the time since `due`
                // as lateness of this process.
                self.not_before = Instant::now();
            }
            let timeout =
                if self.stalled { self.timeouts.stalled_worker } else { self.timeouts.token };
            let due = (since + timeout).max(self.not_before);
            if self.timer.deadline() > due {
                self.timer.as_mut().reset(due);
            }
            ready!(self.timer.poll_unpin(cx));
            let now = Instant::now();
            if now < due {
                self.timer.as_mut().reset(due);
            } else if now.saturating_duration_since(due) > LATE && self.late_wait != Some(since) {
                // Once per event: a router that is always late must still time out.
                self.late_wait = Some(since);
                self.not_before = now + if self.stalled { CATCH_UP } else { timeout };
                self.timer.as_mut().reset(self.not_before);
            } else if !self.stalled && !has_tokens && !is_idle(worker) {
                // The request may wait in the worker's queue for long.
                self.not_before = now + timeout;
                self.timer.as_mut().reset(self.not_before);
            } else if self.stalled && !worker.liveness.is_stalled() {
                (self.stall, self.stalled) = (None, false);
            } else if !has_replacement(worker) {
                self.not_before = now + RECHECK_INTERVAL;
                self.timer.as_mut().reset(self.not_before);
            } else {
                let waited = now.saturating_duration_since(since);
                if preempted && !self.stalled {
                    let (worker, waited) = (&worker.id, waited.as_secs_f64());
                    return Poll::Ready(ServiceError::Preempted(format!(
                        "worker {worker} has had no free KV blocks for this response for \
                         {waited:.1} s, and another worker has"
                    )));
                }
                let error = self.stall_error(worker, waited);
                if !self.stalled {
                    worker.health.failed(&error.to_string());
                }
                return Poll::Ready(error);
            }
        }
    }

    /// Whether the worker is stalled. Takes a lock only if the waker has changed or the worker is
    /// stalled, not for every token.
    fn poll_stalled(&mut self, cx: &mut Context<'_>, worker: &Worker) -> bool {
        if let Some((_, waker)) = &self.stall
            && waker.will_wake(cx.waker())
            && !worker.liveness.is_stalled()
        {
            return false;
        }
        let waker = cx.waker().clone();
        let (stall, _) = match self.stall.take() {
            Some((stall, _)) => self.stall.insert((stall, waker)),
            None => self.stall.insert((worker.liveness.stalled().boxed(), waker)),
        };
        stall.poll_unpin(cx).is_ready()
    }

    fn stall_error(&self, worker: &Worker, waited: Duration) -> ServiceError {
        let (worker, waited) = (&worker.id, waited.as_secs_f64());
        ServiceError::Stalled(if self.stalled {
            format!("worker {worker} is stalled: it sent no event for {waited:.1} s")
        } else {
            format!(
                "worker {worker} is running, but sent no event of this response for {waited:.1} s"
            )
        })
    }
}

/// Whether the worker reports no running and no waiting sequences.
fn is_idle(worker: &Worker) -> bool {
    let load = worker.load();
    load.running == 0 && load.waiting == 0
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, sync::Arc};

    use stoker_proto::v1::Load;
    use tokio::time::timeout;

    use super::*;
    use crate::pool::worker::tests::worker;

    const TIMEOUTS: StallTimeouts =
        StallTimeouts { stalled_worker: Duration::from_secs(2), token: Duration::from_secs(30) };

    fn watched() -> (Arc<Worker>, Watchdog) {
        (worker("a", "m", "d"), Watchdog::new(TIMEOUTS))
    }

    /// Returns the wait of a stream that has tokens.
    fn for_token(since: Instant) -> WaitState {
        WaitState { since, has_tokens: true, preempted: false }
    }

    #[tokio::test(start_paused = true)]
    async fn a_preempted_stream_moves_to_a_worker_with_capacity_and_counts_no_failure() {
        let (worker, mut dog) = watched();
        let since = Instant::now();
        let preempted = WaitState { preempted: true, ..for_token(since) };
        let free_at = since + TIMEOUTS.token * 4;
        let has_capacity = |_: &Worker| Instant::now() >= free_at;
        let error = poll_fn(|cx| dog.poll(cx, &worker, preempted, has_capacity)).await;
        assert!(matches!(error, ServiceError::Preempted(_)), "{error:?}");
        assert!(since.elapsed() >= TIMEOUTS.token * 4);
        assert_eq!(worker.health.snapshot().0, 0, "no failure is counted");
        poll_fn(|cx| dog.poll(cx, &worker, for_token(since), |_| true)).await;
        assert_eq!(worker.health.snapshot().0, 1, "any other stall is a failure");
    }

    /// Returns how long a stream waits from now until it leaves the worker, and the error.
    async fn waits(worker: &Worker, dog: &mut Watchdog, has_tokens: bool) -> (Duration, String) {
        let since = Instant::now();
        let error = poll_fn(|cx| {
            dog.poll(cx, worker, WaitState { since, has_tokens, preempted: false }, |_| true)
        })
        .await;
        (since.elapsed(), error.to_string())
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_leaves_a_stalled_worker_after_the_stall_timeout() {
        let (worker, mut dog) = watched();
        worker.liveness.set_stalled(true);
        for has_tokens in [false, true] {
            let (waited, why) = waits(&worker, &mut dog, has_tokens).await;
            assert!(
                waited >= TIMEOUTS.stalled_worker && waited < TIMEOUTS.stalled_worker + LATE,
                "{waited:?}"
            );
            assert_eq!(why, "worker a is stalled: it sent no event for 2.0 s");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_queued_stream_leaves_a_worker_that_stalls() {
        let (worker, mut dog) = watched();
        worker.set_load(Load { waiting: 1, ..Default::default() });
        let queued = TIMEOUTS.token * 3 / 2;
        assert!(timeout(queued, waits(&worker, &mut dog, false)).await.is_err());
        worker.liveness.set_stalled(true);
        let (waited, _) = waits(&worker, &mut dog, false).await;
        assert!(
            waited >= TIMEOUTS.stalled_worker && waited < TIMEOUTS.stalled_worker + LATE,
            "{waited:?}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_worker_that_stalls_wakes_its_waiting_streams() {
        let (worker, mut dog) = watched();
        let since = Instant::now();
        let leave = poll_fn(|cx| dog.poll(cx, &worker, for_token(since), |_| true));
        let stall = async {
            tokio::time::sleep(TIMEOUTS.stalled_worker * 2).await;
            worker.liveness.set_stalled(true);
        };
        tokio::join!(leave, stall);
        assert!(since.elapsed() < TIMEOUTS.stalled_worker * 2 + LATE, "{:?}", since.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_leaves_a_moving_worker_after_the_token_timeout_but_not_while_queued() {
        let (worker, mut dog) = watched();
        let (waited, why) = waits(&worker, &mut dog, true).await;
        assert!(waited >= TIMEOUTS.token && waited < TIMEOUTS.token + LATE, "{waited:?}");
        assert!(why.ends_with("no event of this response for 30.0 s"), "{why}");
        worker.set_load(Load { waiting: 1, ..Default::default() });
        let queued = timeout(TIMEOUTS.token * 10, waits(&worker, &mut dog, false)).await;
        assert!(queued.is_err());
        // An idle worker has lost the stream.
        worker.set_load(Load::default());
        let (waited, _) = waits(&worker, &mut dog, false).await;
        assert!(waited >= TIMEOUTS.token && waited <= TIMEOUTS.token * 2, "{waited:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_stays_with_a_worker_that_recovers_in_time() {
        let (worker, mut dog) = watched();
        worker.liveness.set_stalled(true);
        let since = Instant::now();
        let mut left = Box::pin(poll_fn(|cx| dog.poll(cx, &worker, for_token(since), |_| true)));
        assert!(left.as_mut().now_or_never().is_none());
        tokio::time::advance(TIMEOUTS.stalled_worker / 2).await;
        worker.liveness.set_stalled(false);
        left.await;
        assert!(since.elapsed() >= TIMEOUTS.token);
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_without_a_replacement_worker_stays() {
        let (worker, mut dog) = watched();
        worker.liveness.set_stalled(true);
        let since = Instant::now();
        let joins = since + TIMEOUTS.stalled_worker * 3;
        let has_replacement = |_: &Worker| Instant::now() >= joins;
        poll_fn(|cx| dog.poll(cx, &worker, for_token(since), has_replacement)).await;
        let waited = since.elapsed();
        assert!(
            waited >= TIMEOUTS.stalled_worker * 3
                && waited <= TIMEOUTS.stalled_worker * 3 + RECHECK_INTERVAL
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_router_that_was_paused_reads_events_before_it_leaves() {
        let (worker, mut dog) = watched();
        worker.liveness.set_stalled(true);
        let since = Instant::now();
        let mut left = Box::pin(poll_fn(|cx| dog.poll(cx, &worker, for_token(since), |_| true)));
        assert!(left.as_mut().now_or_never().is_none());
        tokio::time::advance(TIMEOUTS.stalled_worker * 5).await;
        assert!(left.as_mut().now_or_never().is_none());
        left.await;
    }
}

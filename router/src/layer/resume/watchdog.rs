//! When a stream has waited too long for its worker.

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

/// While there is nobody else to go to, somebody is looked for this often.
const RECHECK_INTERVAL: Duration = Duration::from_millis(200);

/// How long a stream waits for an event.
#[derive(Debug, Clone, Copy)]
pub(super) struct StallTimeouts {
    /// While its worker stands still.
    pub(super) stalled_worker: Duration,
    /// Between two events of its own, whatever else the worker does.
    pub(super) token: Duration,
}

/// What a stream waits for.
#[derive(Debug, Clone, Copy)]
pub(super) struct WaitState {
    /// The last event came by then.
    pub(super) since: Instant,
    /// It has had a token of this worker.
    pub(super) has_tokens: bool,
    /// The worker has taken its KV blocks for others.
    pub(super) preempted: bool,
}

/// Watches one attempt.
pub(super) struct Watchdog {
    timeouts: StallTimeouts,
    /// Resolves once the worker stands still, and whom it wakes.
    stall: Option<(BoxFuture<'static, ()>, Waker)>,
    stalled: bool,
    /// When to look again, whatever the patience says.
    not_before: Instant,
    /// The wait in which this process was seen to be late.
    late_wait: Option<Instant>,
    /// Moved only when it is due or too late: not with every token.
    timer: Pin<Box<Sleep>>,
}

impl Watchdog {
    /// Watches a worker that is not known yet.
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

    /// Ready once the stream should leave `worker`, which it does only for a worker that can replace it.
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
                // What there was to wait for while it moved is of no interest any more, and to learn this only
                // now is not to be late.
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
                // Once for each event: a router that is always late has to go on all the same.
                self.late_wait = Some(since);
                self.not_before = now + if self.stalled { CATCH_UP } else { timeout };
                self.timer.as_mut().reset(self.not_before);
            } else if !self.stalled && !has_tokens && !is_idle(worker) {
                // It may stand in a queue for long.
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
                        "worker {worker} has had no KV blocks for this response for {waited:.1} s, and another one has"
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

    /// Whether the worker stands still. Takes a lock only if somebody new is to be woken, or if it does: not
    /// for every token.
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
            None => self.stall.insert((worker.liveness.stands().boxed(), waker)),
        };
        stall.poll_unpin(cx).is_ready()
    }

    fn stall_error(&self, worker: &Worker, waited: Duration) -> ServiceError {
        let (worker, waited) = (&worker.id, waited.as_secs_f64());
        ServiceError::Stalled(if self.stalled {
            format!("worker {worker} stands still: nothing came of it for {waited:.1} s")
        } else {
            format!("worker {worker} works, but nothing came of this answer for {waited:.1} s")
        })
    }
}

/// Whether the worker says that it has nothing to do.
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

    /// A stream that has had tokens.
    fn for_token(since: Instant) -> WaitState {
        WaitState { since, has_tokens: true, preempted: false }
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_preempts_a_response_is_left_for_a_worker_with_room_and_is_not_at_fault() {
        let (worker, mut dog) = watched();
        let since = Instant::now();
        let preempted = WaitState { preempted: true, ..for_token(since) };
        let room_at = since + TIMEOUTS.token * 4;
        let has_room = |_: &Worker| Instant::now() >= room_at;
        let error = poll_fn(|cx| dog.poll(cx, &worker, preempted, has_room)).await;
        assert!(matches!(error, ServiceError::Preempted(_)), "{error:?}");
        assert!(since.elapsed() >= TIMEOUTS.token * 4);
        assert_eq!(worker.health.told().0, 0, "no failure is counted");
        poll_fn(|cx| dog.poll(cx, &worker, for_token(since), |_| true)).await;
        assert_eq!(worker.health.snapshot().0, 1, "another stall is one");
    }

    /// How long a stream waits for the worker that begins to wait now.
    async fn waits(worker: &Worker, dog: &mut Watchdog, has_tokens: bool) -> (Duration, String) {
        let since = Instant::now();
        let error = poll_fn(|cx| {
            dog.poll(cx, worker, WaitState { since, has_tokens, preempted: false }, |_| true)
        })
        .await;
        (since.elapsed(), error.to_string())
    }

    #[tokio::test(start_paused = true)]
    async fn a_worker_that_stands_is_left_after_the_budget() {
        let (worker, mut dog) = watched();
        worker.liveness.set_stalled(true);
        for has_tokens in [false, true] {
            let (waited, why) = waits(&worker, &mut dog, has_tokens).await;
            assert!(
                waited >= TIMEOUTS.stalled_worker && waited < TIMEOUTS.stalled_worker + LATE,
                "{waited:?}"
            );
            assert_eq!(why, "worker a stands still: nothing came of it for 2.0 s");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_stops_is_left_however_long_a_stream_has_stood_in_its_queue() {
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
    async fn one_that_stops_wakes_those_who_wait_for_it() {
        let (worker, mut dog) = watched();
        let since = Instant::now();
        let leaves = poll_fn(|cx| dog.poll(cx, &worker, for_token(since), |_| true));
        let stops = async {
            tokio::time::sleep(TIMEOUTS.stalled_worker * 2).await;
            worker.liveness.set_stalled(true);
        };
        tokio::join!(leaves, stops);
        assert!(since.elapsed() < TIMEOUTS.stalled_worker * 2 + LATE, "{:?}", since.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_moves_is_left_after_the_hard_budget_and_never_before_the_first_token() {
        let (worker, mut dog) = watched();
        let (waited, why) = waits(&worker, &mut dog, true).await;
        assert!(waited >= TIMEOUTS.token && waited < TIMEOUTS.token + LATE, "{waited:?}");
        assert!(why.ends_with("nothing came of this answer for 30.0 s"), "{why}");
        worker.set_load(Load { waiting: 1, ..Default::default() });
        let queued = timeout(TIMEOUTS.token * 10, waits(&worker, &mut dog, false)).await;
        assert!(queued.is_err());
        // It has forgotten the stream.
        worker.set_load(Load::default());
        let (waited, _) = waits(&worker, &mut dog, false).await;
        assert!(waited >= TIMEOUTS.token && waited <= TIMEOUTS.token * 2, "{waited:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_moves_again_in_time_is_not_left() {
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
    async fn nobody_leaves_who_has_nowhere_to_go() {
        let (worker, mut dog) = watched();
        worker.liveness.set_stalled(true);
        let since = Instant::now();
        let somebody = since + TIMEOUTS.stalled_worker * 3;
        let has_replacement = |_: &Worker| Instant::now() >= somebody;
        poll_fn(|cx| dog.poll(cx, &worker, for_token(since), has_replacement)).await;
        let waited = since.elapsed();
        assert!(
            waited >= TIMEOUTS.stalled_worker * 3
                && waited <= TIMEOUTS.stalled_worker * 3 + RECHECK_INTERVAL
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_router_that_did_not_run_reads_first() {
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

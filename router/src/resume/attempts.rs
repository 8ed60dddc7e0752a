//! Attempts of a call, and the stream of one attempt.

use std::{
    future::poll_fn,
    sync::Arc,
    task::{Context, Poll},
};

use futures::{FutureExt, StreamExt, future::BoxFuture};
use stoker_proto::v1::generate_response::Event;
use stoker_shared::ServiceError;
use tokio::time::Instant;
use tower::ServiceExt;
use tracing::{debug, warn};

use super::{
    Item, ResumeContext,
    lost_time::AttemptTimes,
    quarantine,
    watchdog::{WaitState, Watchdog},
};
use crate::{
    call::{Call, EventStream, Generate, HEDGE, SelectedWorker, Stage, Timeline, num_choices},
    pool::worker::Worker,
};

/// A call that can be attempted repeatedly.
pub(super) struct RetryableCall<S> {
    pub(super) next: S,
    pub(super) context: Arc<ResumeContext>,
    pub(super) call: Call,
    /// Limit on new tokens that the first worker set; 0 if none is known.
    pub(super) max_tokens: u32,
}

/// Stream of one attempt, with its watchdog.
pub(super) struct AttemptStream {
    stream: EventStream,
    pub(super) selected: SelectedWorker,
    watchdog: Watchdog,
    pub(super) times: AttemptTimes,
    /// Whether a poll for the next event is pending. The time in which the client does not read is
    /// not counted against the worker.
    is_waiting: bool,
    /// Whether the worker has reported a preemption and has sent no token since.
    preempted: bool,
}

impl AttemptStream {
    /// Polls the next event, or the error that ends the stream.
    pub(super) fn poll_event(
        &mut self,
        cx: &mut Context<'_>,
        has_replacement: impl Fn(&Worker, bool) -> bool,
    ) -> Poll<Option<Item>> {
        while let Poll::Ready(item) = self.stream.poll_next_unpin(cx) {
            match item.as_ref().map(|item| item.as_ref().map(|event| &event.event)) {
                // Only for the router, not for the client.
                Some(Ok(Some(Event::Preempted(_)))) => self.preempted = true,
                Some(Ok(Some(Event::Token(_)))) => {
                    (self.preempted, self.is_waiting) = (false, false);
                    return Poll::Ready(item);
                }
                _ => {
                    self.is_waiting = false;
                    return Poll::Ready(item);
                }
            }
        }
        if !self.is_waiting {
            self.is_waiting = true;
            self.times.last = Instant::now();
        }
        let Some(worker) = self.selected.get() else { return Poll::Pending };
        let wait = WaitState {
            since: self.times.last,
            has_tokens: self.times.first_token.is_some(),
            preempted: self.preempted,
        };
        let stalled = self.watchdog.poll(cx, worker, wait, |w| has_replacement(w, self.preempted));
        stalled.map(|stalled| Some(Err(stalled)))
    }
}

impl<S: Generate> RetryableCall<S> {
    /// Attempts the call until a worker accepts it, within the limits on retries.
    pub(super) async fn first_accepted(&self) -> Result<AttemptStream, ServiceError> {
        let mut attempts = 0;
        let mut sequence_tokens = None;
        let mut overloaded = None;
        let mut cause = None;
        loop {
            let last = attempts + 1 == self.context.config.retry_attempts;
            let call = Call { sequence_tokens, cause, ..self.call.next_attempt() };
            let selected = call.selected.clone();
            let error = match self.attempt(call, !last).await {
                Ok(attempt) => return Ok(attempt),
                Err(error) => error,
            };
            attempts += 1;
            self.call.timeline.enter(Stage::Route);
            cause = Some(error.reason());
            self.check_panics(&error)?;
            let larger = selected.get().and_then(|worker| self.larger_capacity(&error, worker));
            sequence_tokens = larger.or(sequence_tokens);
            // Without a selected worker, no worker was suitable: a retry would not find one either.
            let retry = selected.get().is_some()
                && (error.is_retryable_elsewhere() || larger.is_some())
                && attempts < self.context.config.retry_attempts
                && !self.call.deadline.is_over()
                && (error.retry_adds_no_load()
                    || larger.is_some()
                    || self.context.retry_budget.withdraw());
            if !retry {
                // A suitable worker was overloaded, so the client may retry later.
                return Err(match error {
                    ServiceError::ExceedsWorker { .. } | ServiceError::Mismatch(_) => {
                        overloaded.unwrap_or(error)
                    }
                    other => other,
                });
            }
            if matches!(error, ServiceError::Overloaded { .. }) {
                overloaded = Some(error.clone());
            }
            debug!(parent: &self.call.span, %error, "retrying on another worker");
            self.context.metrics.retried(&error);
        }
    }

    /// Calls a worker and waits until it accepts. A stalled worker is abandoned only if
    /// `may_abandon` is set.
    pub(super) async fn attempt(
        &self,
        call: Call,
        may_abandon: bool,
    ) -> Result<AttemptStream, ServiceError> {
        let times = AttemptTimes::new();
        let selected = call.selected.clone();
        let mut watchdog = Watchdog::new(self.context.stall_timeouts);
        let mut accepted = Box::pin(self.next.clone().oneshot(call));
        let stream = poll_fn(|cx| match accepted.poll_unpin(cx) {
            Poll::Pending => {
                let Some(worker) = selected.get() else { return Poll::Pending };
                let has_replacement =
                    |worker: &Worker| may_abandon && self.has_replacement(worker, 0);
                let wait = WaitState { since: times.began, has_tokens: false, preempted: false };
                watchdog.poll(cx, worker, wait, has_replacement).map(Err)
            }
            ready => ready,
        });
        let stream = stream.await.inspect_err(|error| {
            // A stalled worker returns no error of its own.
            if let Some(worker) = selected.get() {
                self.call.attempts.lost(&worker.id, Instant::now(), error);
            }
        })?;
        Ok(AttemptStream { stream, selected, watchdog, times, is_waiting: false, preempted: false })
    }

    /// Like `attempt`, in a future that does not borrow `self`.
    pub(super) fn attempt_detached(
        &self,
    ) -> BoxFuture<'static, Result<AttemptStream, ServiceError>> {
        let (next, context) = (self.next.clone(), Arc::clone(&self.context));
        let mut call = self.call.clone();
        if self.max_tokens > 0 {
            // The first worker has set the limit, so it must be the same for the hedge.
            let stopping = call.request.stopping.get_or_insert_default();
            stopping.max_tokens = Some(self.max_tokens);
        }
        let retryable = Self { next, context, call, max_tokens: self.max_tokens };
        async move {
            // The stages of the request are those of its first attempt.
            let (timeline, cause) = (Timeline::of_hedge(), Some(HEDGE));
            let call = Call { timeline, cause, ..retryable.call.next_attempt() };
            retryable.attempt(call, true).await
        }
        .boxed()
    }

    /// Whether there is another worker for a hedge: neither ejected nor stalled.
    pub(super) fn has_hedge_worker(&self, worker: &Worker) -> bool {
        let model = self.call.request.model.as_str();
        self.context
            .pool
            .fleet()
            .others(model, worker)
            .any(|other| !other.is_ejected() && !other.liveness.is_stalled())
    }

    /// Whether another worker could take over the call, with at least `free_tokens` free in its KV
    /// cache.
    pub(super) fn has_replacement(&self, worker: &Worker, free_tokens: u64) -> bool {
        let digest = self.call.only_digest.as_deref();
        let model = self.call.request.model.as_str();
        let needed = self.call.sequence_tokens.unwrap_or(0);
        self.context.pool.fleet().others(model, worker).any(|other| {
            let free = other.free_kv_tokens().unwrap_or(0);
            let has_capacity = other.max_sequence_tokens() >= needed
                && other.max_num_seqs() >= num_choices(&self.call.request)
                && (free_tokens == 0 || (free >= free_tokens && !other.outstanding.is_full()));
            other.fits(digest) && has_capacity && !other.liveness.is_stalled()
        })
    }

    /// Returns the capacity in tokens that another worker must have, if `worker` refused the call
    /// for lack of capacity, or possibly because it exceeds the context length and another worker
    /// has a longer one.
    fn larger_capacity(&self, error: &ServiceError, worker: &Worker) -> Option<u64> {
        match error {
            ServiceError::ExceedsWorker { needed_tokens: needed @ 1.., .. } => {
                Some(u64::from(*needed))
            }
            ServiceError::Invalid(_) => {
                let (model, context_length) = (self.call.request.model.as_str(), worker.context());
                let fleet = self.context.pool.fleet();
                let longer =
                    fleet.others(model, worker).any(|other| other.context() > context_length);
                longer.then(|| context_length.saturating_add(1))
            }
            _ => None,
        }
    }

    /// Ends a request that was part of `PANIC_LIMIT` panicked engine steps, and quarantines its
    /// content.
    pub(super) fn check_panics(&self, error: &ServiceError) -> Result<(), ServiceError> {
        if self.call.panics.count() < quarantine::PANIC_LIMIT {
            return Ok(());
        }
        let refused = self.context.quarantine.add(&self.call.request, &error.to_string());
        warn!(parent: &self.call.span, %refused, "quarantined");
        Err(refused)
    }
}

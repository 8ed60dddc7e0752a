//! The attempts of a call at workers, one after the other, and the stream of one of them.

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
    call::{Call, EventStream, Generate, SelectedWorker, num_choices},
    pool::worker::Worker,
};

/// A call that can be attempts again.
pub(super) struct RetryableCall<S> {
    pub(super) next: S,
    pub(super) context: Arc<ResumeContext>,
    pub(super) call: Call,
    /// The limit on new tokens that the first worker decided; 0 while none has, or where it did not say.
    pub(super) max_tokens: u32,
}

/// A stream of one worker.
pub(super) struct AttemptStream {
    stream: EventStream,
    pub(super) selected: SelectedWorker,
    watchdog: Watchdog,
    pub(super) times: AttemptTimes,
    /// The next event is awaited. A client that does not read keeps no worker waiting.
    is_waiting: bool,
    /// The worker has said that a sequence waits for KV blocks, and no token has come since.
    preempted: bool,
}

impl AttemptStream {
    /// The next event, or why there will be none.
    pub(super) fn poll_event(
        &mut self,
        cx: &mut Context<'_>,
        has_replacement: impl Fn(&Worker, bool) -> bool,
    ) -> Poll<Option<Item>> {
        while let Poll::Ready(item) = self.stream.poll_next_unpin(cx) {
            match item.as_ref().map(|item| item.as_ref().map(|event| &event.event)) {
                // For this router alone.
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
        let waits = WaitState {
            since: self.times.last,
            has_tokens: self.times.first_token.is_some(),
            preempted: self.preempted,
        };
        let stalled = self.watchdog.poll(cx, worker, waits, |w| has_replacement(w, self.preempted));
        stalled.map(|stalled| Some(Err(stalled)))
    }
}

impl<S: Generate> RetryableCall<S> {
    /// Tries until a worker accepts. Nothing is promised to the client yet.
    pub(super) async fn first_accepted(&self) -> Result<AttemptStream, ServiceError> {
        let mut attempts = 0;
        let mut room = None;
        let mut busy = None;
        loop {
            let last = attempts + 1 == self.context.config.retry_attempts;
            let call = Call { room, ..self.call.next_attempt() };
            let selected = call.selected.clone();
            let error = match self.attempt(call, !last).await {
                Ok(attempt) => return Ok(attempt),
                Err(error) => error,
            };
            attempts += 1;
            self.check_panics(&error)?;
            let larger = selected.get().and_then(|worker| self.larger_capacity(&error, worker));
            room = larger.or(room);
            // Where no worker would do, none will in this moment.
            let again = selected.get().is_some()
                && (error.is_retryable_elsewhere() || larger.is_some())
                && attempts < self.context.config.retry_attempts
                && !self.call.deadline.is_over()
                && (error.is_free_elsewhere()
                    || larger.is_some()
                    || self.context.retry_budget.withdraw());
            if !again {
                // A worker that would do is busy: that is worth another try later.
                return Err(match error {
                    ServiceError::ExceedsWorker { .. } | ServiceError::Mismatch(_) => {
                        busy.unwrap_or(error)
                    }
                    other => other,
                });
            }
            if matches!(error, ServiceError::Overloaded { .. }) {
                busy = Some(error.clone());
            }
            debug!(parent: &self.call.span, %error, "trying another worker");
            self.context.metrics.retried(&error);
        }
    }

    /// Calls a worker, and waits until it accepts. Leaves it before that only if it `may_abandon`.
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
                let leaves = |worker: &Worker| may_abandon && self.has_replacement(worker, 0);
                let waits = WaitState { since: times.began, has_tokens: false, preempted: false };
                watchdog.poll(cx, worker, waits, leaves).map(Err)
            }
            ready => ready,
        });
        let stream = stream.await?;
        Ok(AttemptStream { stream, selected, watchdog, times, is_waiting: false, preempted: false })
    }

    /// The same, by itself.
    pub(super) fn attempt_detached(
        &self,
    ) -> BoxFuture<'static, Result<AttemptStream, ServiceError>> {
        let (next, context) = (self.next.clone(), Arc::clone(&self.context));
        let mut call = self.call.clone();
        if self.max_tokens > 0 {
            // The limit is decided already, and is the same whichever worker is faster.
            let stopping = call.request.stopping.get_or_insert_default();
            stopping.max_tokens = Some(self.max_tokens);
        }
        let retryable = Self { next, context, call, max_tokens: self.max_tokens };
        async move { retryable.attempt(retryable.call.next_attempt(), true).await }.boxed()
    }

    /// Whether somebody else could do it better: nobody is asked who is left alone.
    pub(super) fn has_hedge_worker(&self, worker: &Worker) -> bool {
        let model = self.call.request.model.as_str();
        self.context
            .pool
            .fleet()
            .others(model, worker)
            .any(|other| !other.is_ejected() && !other.liveness.is_stalled())
    }

    /// Whether another worker could take the call over, with so many free tokens in its KV cache.
    pub(super) fn has_replacement(&self, worker: &Worker, free_tokens: u64) -> bool {
        let digest = self.call.only_digest.as_deref();
        let model = self.call.request.model.as_str();
        let room = self.call.sequence_tokens.unwrap_or(0);
        self.context.pool.fleet().others(model, worker).any(|other| {
            let free = other.free_kv_tokens().unwrap_or(0);
            let has_room = other.room() >= room
                && other.max_num_seqs() >= num_choices(&self.call.request)
                && (free_tokens == 0 || (free >= free_tokens && !other.outstanding.is_full()));
            other.fits(digest) && has_room && !other.liveness.is_stalled()
        })
    }

    /// Tokens that another worker must be able to hold, where `worker` refused the call for want of room, or may have:
    /// what is too long for its context may fit into a longer one.
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

    /// Ends a request with which two engine steps have panicked, and refuses its content from now on.
    pub(super) fn check_panics(&self, error: &ServiceError) -> Result<(), ServiceError> {
        if self.call.panics.count() < quarantine::PANIC_LIMIT {
            return Ok(());
        }
        let refused = self.context.quarantine.add(&self.call.request, &error.to_string());
        warn!(parent: &self.call.span, %refused, "quarantined");
        Err(refused)
    }
}

//! The attempts of a call at workers, one after the other, and the stream of one of them.

use std::{
    future::poll_fn,
    sync::Arc,
    task::{Context, Poll},
};

use futures::{FutureExt, StreamExt, future::BoxFuture};
use stoker_shared::ServiceError;
use tokio::time::Instant;
use tower::ServiceExt;
use tracing::debug;

use super::{Item, Shared, spent::Seen, watchdog::Watchdog};
use crate::{
    call::{Call, Chosen, EventStream, Generate},
    pool::worker::Worker,
};

/// A call that can be made again.
pub(super) struct Attempts<S> {
    pub(super) next: S,
    pub(super) shared: Arc<Shared>,
    pub(super) call: Call,
}

/// A stream of one worker.
pub(super) struct Attempt {
    stream: EventStream,
    pub(super) chosen: Chosen,
    watchdog: Watchdog,
    pub(super) seen: Seen,
    /// The next event is awaited. A client that does not read makes nobody wait.
    waits: bool,
}

impl Attempt {
    /// The next event, or why there will be none.
    pub(super) fn poll_event(
        &mut self,
        cx: &mut Context<'_>,
        replaceable: impl Fn(&Worker) -> bool,
    ) -> Poll<Option<Item>> {
        if let Poll::Ready(item) = self.stream.poll_next_unpin(cx) {
            self.waits = false;
            return Poll::Ready(item);
        }
        if !self.waits {
            self.waits = true;
            self.seen.last = Instant::now();
        }
        let Some(worker) = self.chosen.get() else { return Poll::Pending };
        let begun = self.seen.first_token.is_some();
        let stalled = self.watchdog.poll(cx, worker, self.seen.last, begun, replaceable);
        stalled.map(|stalled| Some(Err(stalled)))
    }
}

impl<S: Generate> Attempts<S> {
    /// Tries until a worker accepts. Nothing is promised to the client yet.
    pub(super) async fn first(&self) -> Result<Attempt, ServiceError> {
        let mut made = 0;
        loop {
            let last = made + 1 == self.shared.config.retry_attempts;
            let error = match self.make(self.call.again(), !last).await {
                Ok(attempt) => return Ok(attempt),
                Err(error) => error,
            };
            made += 1;
            let again = error.is_retryable_elsewhere()
                && made < self.shared.config.retry_attempts
                && !self.call.deadline.is_over()
                && (error.is_free_elsewhere() || self.shared.budget.withdraw());
            if !again {
                return Err(error);
            }
            debug!(parent: &self.call.span, %error, "trying another worker");
            self.shared.metrics.retried(&error);
        }
    }

    /// Calls a worker, and waits until it accepts. Leaves it before that only if it `may_leave`.
    pub(super) async fn make(&self, call: Call, may_leave: bool) -> Result<Attempt, ServiceError> {
        let seen = Seen::new();
        let chosen = call.chosen.clone();
        let mut watchdog = Watchdog::new(self.shared.patience);
        let mut accepted = Box::pin(self.next.clone().oneshot(call));
        let stream = poll_fn(|cx| match accepted.poll_unpin(cx) {
            Poll::Pending => {
                let Some(worker) = chosen.get() else { return Poll::Pending };
                let leaves = |worker: &Worker| may_leave && self.replaceable(worker);
                watchdog.poll(cx, worker, seen.began, false, leaves).map(Err)
            }
            ready => ready,
        });
        let stream = stream.await?;
        Ok(Attempt { stream, chosen, watchdog, seen, waits: false })
    }

    /// The same, by itself.
    pub(super) fn make_apart(&self) -> BoxFuture<'static, Result<Attempt, ServiceError>> {
        let (next, shared) = (self.next.clone(), Arc::clone(&self.shared));
        let attempts = Self { next, shared, call: self.call.clone() };
        async move { attempts.make(attempts.call.again(), true).await }.boxed()
    }

    /// Whether somebody else could do it better: nobody is asked who is left alone.
    pub(super) fn hedgeable(&self, worker: &Worker) -> bool {
        let model = self.call.request.model.as_str();
        self.shared
            .pool
            .fleet()
            .others(model, worker)
            .any(|other| !other.is_ejected() && !other.life.is_standing())
    }

    /// Whether somebody else could do the worker's job.
    pub(super) fn replaceable(&self, worker: &Worker) -> bool {
        let digest = self.call.only_digest.as_deref();
        let model = self.call.request.model.as_str();
        self.shared.pool.fleet().has_other(model, worker, digest)
    }
}

//! Another worker, whenever one is lost: before the first token by asking again, after it by going on exactly
//! where the answer stood.

mod budget;
mod config;
mod hedge;
mod kept;
mod spent;
mod watchdog;

use std::{
    future::poll_fn,
    mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::{Duration, SystemTime},
};

use futures::{FutureExt, Stream, StreamExt, future::BoxFuture};
use stoker_proto::v1::{GenerateResponse, Routing, generate_response::Event};
use stoker_shared::{ServiceError, backoff::Backoff, telemetry::names::span};
use tokio::time::Instant;
use tower::{Service, ServiceExt};
use tracing::{debug, info, warn};

use crate::{
    call::{Call, Chosen, EventStream, Generate, continuations, last_timings},
    memory,
    metrics::Metrics,
    pool::{Pool, worker::Worker},
};
pub(crate) use budget::Budget;
pub use config::ResumeConfig;
use hedge::Hedge;
use kept::Kept;
use spent::{Seen, Spent};
use watchdog::{Patience, Watchdog};

/// What a stream is made of.
type Item = Result<GenerateResponse, ServiceError>;

/// Between two attempts to find a worker.
const PAUSE: Duration = Duration::from_millis(20);
/// When a client whose answer was cut off should come back.
const COME_BACK: Duration = Duration::from_secs(1);

/// What all calls share.
#[derive(Debug)]
pub(crate) struct Shared {
    config: ResumeConfig,
    patience: Patience,
    pool: Pool,
    budget: Budget,
    /// For the tokens of started answers.
    memory: memory::Budget,
    metrics: Metrics,
}

impl Shared {
    pub(crate) fn new(config: &ResumeConfig, pool: &Pool, metrics: &Metrics) -> Arc<Self> {
        Arc::new(Self {
            config: config.clone(),
            patience: Patience {
                standing: config.stall_patience(),
                moving: config.hard_stall_budget,
            },
            pool: pool.clone(),
            budget: Budget::default(),
            memory: memory::Budget::new(config.resume_memory.as_u64()),
            metrics: metrics.clone(),
        })
    }
}

/// Keeps an accepted call going, whatever becomes of its workers.
#[derive(Debug, Clone)]
pub(crate) struct Resume<S> {
    next: S,
    shared: Arc<Shared>,
}

impl<S> Resume<S> {
    pub(crate) fn new(next: S, shared: Arc<Shared>) -> Self {
        Self { next, shared }
    }
}

impl<S: Generate> Service<Call> for Resume<S> {
    type Response = EventStream;
    type Error = ServiceError;
    type Future = BoxFuture<'static, Result<EventStream, ServiceError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ServiceError>> {
        // Readiness counts once, and there may be several calls: each asks for its own.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, call: Call) -> Self::Future {
        self.shared.budget.deposit();
        let attempts = Attempts { next: self.next.clone(), shared: Arc::clone(&self.shared), call };
        async move {
            let first = attempts.first().await?;
            let answer = Box::new(Answer::new(attempts, first));
            Ok(Events::Coming(answer).boxed())
        }
        .boxed()
    }
}

/// A call that can be made again.
struct Attempts<S> {
    next: S,
    shared: Arc<Shared>,
    call: Call,
}

/// A stream of one worker.
struct Attempt {
    stream: EventStream,
    chosen: Chosen,
    watchdog: Watchdog,
    seen: Seen,
    /// Set while the next event is awaited. A client that does not read makes nobody wait.
    waits: Option<Instant>,
}

impl Attempt {
    /// The next event, or why there will be none.
    fn poll_event(
        &mut self,
        cx: &mut Context<'_>,
        replaceable: impl Fn(&Worker) -> bool,
    ) -> Poll<Option<Item>> {
        if let Poll::Ready(item) = self.stream.poll_next_unpin(cx) {
            self.waits = None;
            self.seen.last = Instant::now();
            return Poll::Ready(item);
        }
        let since = *self.waits.get_or_insert_with(Instant::now);
        let begun = self.seen.first_token.is_some();
        self.watchdog.poll(cx, since, begun, replaceable).map(|stalled| Some(Err(stalled)))
    }
}

impl<S: Generate> Attempts<S> {
    /// Tries until a worker accepts. Nothing is promised to the client yet.
    async fn first(&self) -> Result<Attempt, ServiceError> {
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
    async fn make(&self, call: Call, may_leave: bool) -> Result<Attempt, ServiceError> {
        let seen = Seen::new();
        let chosen = call.chosen.clone();
        let mut watchdog = Watchdog::new(chosen.clone(), self.shared.patience);
        let mut accepted = Box::pin(self.next.clone().oneshot(call));
        let stream = poll_fn(|cx| match accepted.poll_unpin(cx) {
            Poll::Pending => {
                let leaves = |worker: &Worker| may_leave && self.replaceable(worker);
                watchdog.poll(cx, seen.began, false, leaves).map(Err)
            }
            ready => ready,
        });
        let stream = stream.await?;
        Ok(Attempt { stream, chosen, watchdog, seen, waits: None })
    }

    /// The same, by itself.
    fn make_apart(&self) -> BoxFuture<'static, Result<Attempt, ServiceError>> {
        let (next, shared) = (self.next.clone(), Arc::clone(&self.shared));
        let attempts = Self { next, shared, call: self.call.clone() };
        async move { attempts.make(attempts.call.again(), true).await }.boxed()
    }

    /// Whether somebody else could do it better: nobody is asked who is left alone.
    fn hedgeable(&self, worker: &Worker) -> bool {
        let model = self.call.request.model.as_str();
        self.shared
            .pool
            .fleet()
            .others(model, worker)
            .any(|other| !other.is_ejected() && !other.life.is_standing())
    }

    /// Whether somebody else could do the worker's job.
    fn replaceable(&self, worker: &Worker) -> bool {
        let digest = self.call.only_digest.as_deref();
        let model = self.call.request.model.as_str();
        self.shared.pool.fleet().has_other(model, worker, digest)
    }
}

/// An answer that somebody goes on with, or why nobody does.
type Resumed<S> = (Box<Answer<S>>, Result<(), ServiceError>);

/// The events for the client.
enum Events<S> {
    /// A worker sends them. They are read where they lie: most of what is here is looked at once a stream.
    Coming(Box<Answer<S>>),
    /// Another worker is looked for.
    Resuming(BoxFuture<'static, Resumed<S>>),
    Over,
}

impl<S: Generate> Stream for Events<S> {
    type Item = Item;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Item>> {
        loop {
            match &mut *self {
                Self::Over => return Poll::Ready(None),
                Self::Coming(answer) => match ready!(answer.poll_event(cx)) {
                    Some(Ok(mut event)) => {
                        if answer.keep(&mut event) {
                            return Poll::Ready(Some(Ok(event)));
                        }
                    }
                    // After the last event the client has all of it, whatever becomes of the worker.
                    Some(Err(error)) if !answer.complete => {
                        if let Self::Coming(mut answer) = mem::replace(&mut *self, Self::Over) {
                            let goes_on = async move {
                                let result = answer.go_on(error).await;
                                (answer, result)
                            };
                            *self = Self::Resuming(goes_on.boxed());
                        }
                    }
                    Some(Err(_)) | None => *self = Self::Over,
                },
                Self::Resuming(goes_on) => {
                    let (answer, result) = ready!(goes_on.poll_unpin(cx));
                    match result {
                        Ok(()) => *self = Self::Coming(answer),
                        Err(error) => {
                            *self = Self::Over;
                            return Poll::Ready(Some(Err(error)));
                        }
                    }
                }
            }
        }
    }
}

/// An answer on its way to the client, from whichever worker.
struct Answer<S> {
    attempts: Attempts<S>,
    /// `None` once it has failed.
    current: Option<Attempt>,
    hedge: Hedge,
    kept: Kept,
    spent: Spent,
    /// Workers that were lost; those that drained do not count.
    losses: u32,
    /// The last event is out.
    complete: bool,
}

impl<S: Generate> Answer<S> {
    fn new(attempts: Attempts<S>, first: Attempt) -> Self {
        let kept = Kept::new(continuations(&attempts.call.request), &attempts.shared.memory);
        let hedge = Hedge::new(attempts.shared.config.hedge_after);
        Self {
            attempts,
            current: Some(first),
            hedge,
            kept,
            spent: Spent::default(),
            losses: 0,
            complete: false,
        }
    }

    /// The next event of the worker, or of a second one that was faster.
    fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Option<Item>> {
        let may_leave = self.may_lose_another() && !self.lacks_something();
        let Self { attempts, current, hedge, .. } = self;
        let Some(current) = current else { return Poll::Ready(None) };
        if let Some(token) = hedge.won() {
            return Poll::Ready(Some(Ok(token)));
        }
        let event = current.poll_event(cx, |worker| may_leave && attempts.replaceable(worker));
        hedge.race(cx, attempts, current, event)
    }

    /// Notes an event on its way to the client. False if the client has it already.
    fn keep(&mut self, event: &mut GenerateResponse) -> bool {
        let Self { attempts, current, kept, spent, complete, .. } = self;
        let Attempts { shared, call, .. } = attempts;
        let Some(current) = current else { return false };
        if matches!(event.event, Some(Event::Token(_))) && current.seen.first_token.is_none() {
            current.seen.first_token = Some(current.seen.last);
        }
        let was_kept = !kept.is_forgotten();
        let news = kept.event(event);
        if was_kept && kept.is_forgotten() {
            shared.metrics.forgotten();
            warn!(
                parent: &call.span,
                limit = %shared.config.resume_memory,
                "this answer cannot be resumed any more: --resume-memory is full"
            );
        }
        if news && call.only_digest.is_none() && kept.has_begun() {
            // From here on a part of the answer is out, and only the same weights can go on.
            call.only_digest = current.chosen.get().map(|w| w.info.digest.as_str().into());
        }
        if let Some(timings) = last_timings(event) {
            spent.complete(timings);
            *complete = true;
        }
        news
    }

    /// Finds another worker after `error`, or says why the answer ends here.
    async fn go_on(&mut self, error: ServiceError) -> Result<(), ServiceError> {
        // Dropped at once: the worker may stop, and whatever it still sends reaches nobody.
        let Some(Attempt { chosen, seen: lost, .. }) = self.current.take() else {
            return Err(error);
        };
        self.hedge = Hedge::Off;
        if !self.may_go_on(&error) {
            return Err(self.interrupted(error));
        }
        self.losses += u32::from(!matches!(error, ServiceError::Draining(_)));
        if let Some(worker) = chosen.get() {
            // A second attempt may have been tried after it, and is not the one to avoid.
            self.attempts.call.tried.with(|tried| tried.push(worker.id.clone()));
        }
        let shared = Arc::clone(&self.attempts.shared);
        let end = match error {
            // Its silence is no work.
            ServiceError::Stalled(_) | ServiceError::Lost(_) => lost.last,
            _ => Instant::now(),
        };
        let clock = SystemTime::now() - end.elapsed();
        self.spent.lost(&lost, end);
        info!(parent: &self.attempts.call.span, %error, tokens = self.kept.tokens, "looking for a worker to go on");

        if lost.last == lost.began {
            // It brought nothing, and so might the next: not in a tight circle.
            tokio::time::sleep(PAUSE).await;
        }
        let attempt = self.take_over().await?;
        let took = attempt.seen.began.saturating_duration_since(end);
        self.spent.taken_over(took);
        self.attempts.call.span.record("resumes", self.spent.resumes);
        self.attempts.call.trace.stage(span::RESUME, clock, took);
        shared.metrics.resumed(&error, took);
        self.current = Some(attempt);
        Ok(())
    }

    fn may_go_on(&self, error: &ServiceError) -> bool {
        // A worker is drained by somebody who knows what he does; all else may be the request's own fault.
        let within = matches!(error, ServiceError::Draining(_)) || self.may_lose_another();
        error.is_retryable_elsewhere() && within && !self.lacks_something()
    }

    fn may_lose_another(&self) -> bool {
        self.losses < self.attempts.shared.config.resume_limit
    }

    /// Whether the next worker could not be told all that it has to know.
    fn lacks_something(&self) -> bool {
        let nameless = self.attempts.call.only_digest.as_deref() == Some("");
        self.kept.has_begun() && (self.kept.is_forgotten() || nameless)
    }

    /// A worker that goes on, as soon as there is one.
    async fn take_over(&mut self) -> Result<Attempt, ServiceError> {
        let until = Instant::now() + self.attempts.shared.config.resume_wait;
        let mut fleet = self.attempts.shared.pool.watch();
        let mut backoff = Backoff::default();
        self.kept.taken_over();
        loop {
            // Seen now, so that a worker that comes while one is asked is not missed.
            fleet.mark_unchanged();
            let mut call = self.attempts.call.again();
            if let Some(digest) = call.only_digest.as_deref() {
                let routing: &mut Routing = call.request.routing.get_or_insert_default();
                routing.resume = self.kept.resume(digest);
            }
            let error = match self.attempts.make(call, true).await {
                Ok(attempt) => return Ok(attempt),
                Err(error) => error,
            };
            debug!(parent: &self.attempts.call.span, %error, "nobody has taken over yet");
            // A model without workers may be forgotten before the next one comes.
            let lasting = !error.is_retryable_elsewhere()
                && !matches!(error, ServiceError::UnknownModel { .. });
            if lasting || Instant::now() >= until {
                return Err(self.interrupted(error));
            }
            let left = until.saturating_duration_since(Instant::now());
            // The fleet changes often while it is in trouble.
            tokio::time::sleep(PAUSE.min(left)).await;
            tokio::select! {
                () = tokio::time::sleep(backoff.next_wait().min(left)) => {}
                changed = fleet.changed() => if changed.is_err() { return Err(self.interrupted(error)) },
            }
        }
    }

    /// The error for the client. One that has a part of the answer is told how much.
    fn interrupted(&self, error: ServiceError) -> ServiceError {
        let gone =
            error.is_retryable_elsewhere() || matches!(error, ServiceError::UnknownModel { .. });
        if self.kept.has_begun() && gone {
            ServiceError::Interrupted {
                reason: error.to_string(),
                retry_after: COME_BACK,
                prompt_tokens: self.kept.prompt_tokens,
                completion_tokens: self.kept.tokens,
            }
        } else {
            error
        }
    }
}

#[cfg(test)]
mod tests;

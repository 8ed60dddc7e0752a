//! The response to one call, across the workers that generate it.

use std::{
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use stoker_proto::v1::{GenerateResponse, Routing, generate_response::Event};
use stoker_shared::{ServiceError, backoff::Backoff};
use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::{
    Item,
    attempts::{AttemptStream, RetryableCall},
    hedge::Hedge,
    lost_time::LostTime,
    resume_state::ResumeState,
};
use crate::call::{Generate, Stage, last_timings, num_choices};

/// Pause before the next attempt if the last worker sent no token.
const RETRY_PAUSE: Duration = Duration::from_millis(20);
/// Maximum interval between two searches for a worker. A search sends nothing to workers known to
/// be full.
const RECHECK_INTERVAL: Duration = Duration::from_millis(80);
/// Retry-after for a client whose response was interrupted.
const INTERRUPTED_RETRY_AFTER: Duration = Duration::from_secs(1);

/// A response that streams to the client, from one worker at a time.
pub(super) struct ResponseStream<S> {
    retryable: RetryableCall<S>,
    /// Stream of the current attempt; `None` once it has failed.
    current: Option<AttemptStream>,
    hedge: Hedge,
    state: ResumeState,
    lost_time: LostTime,
    /// Number of workers lost. Draining workers do not count.
    lost_workers: u32,
    /// Whether the last event was sent.
    pub(super) complete: bool,
}

impl<S: Generate> ResponseStream<S> {
    pub(super) fn new(retryable: RetryableCall<S>, first: AttemptStream) -> Self {
        let state =
            ResumeState::new(num_choices(&retryable.call.request), &retryable.context.memory);
        let hedge = Hedge::new(retryable.context.config.hedge_after);
        Self {
            retryable,
            current: Some(first),
            hedge,
            state,
            lost_time: LostTime::default(),
            lost_workers: 0,
            complete: false,
        }
    }

    /// Polls the next event of the worker, or of a faster hedge.
    pub(super) fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Option<Item>> {
        let Self { retryable, current, hedge, state, lost_workers, .. } = self;
        let Some(current) = current else { return Poll::Ready(None) };
        if let Some(token) = hedge.take_first_token() {
            return Poll::Ready(Some(Ok(token)));
        }
        let event = current.poll_event(cx, |worker, preempted| {
            let free_tokens = if preempted { state.tokens_to_recompute() } else { 0 };
            has_resumes_left(retryable, *lost_workers)
                && !is_unresumable(retryable, state)
                && retryable.has_replacement(worker, free_tokens)
        });
        hedge.race(cx, retryable, current, event)
    }

    /// Records an event before it is sent to the client. Returns false if the client already has
    /// it.
    pub(super) fn record(&mut self, event: &mut GenerateResponse) -> bool {
        let Self { retryable, current, state, lost_time, complete, .. } = self;
        let RetryableCall { context, call, max_tokens, .. } = retryable;
        let Some(current) = current else { return false };
        if matches!(event.event, Some(Event::Token(_))) && current.times.first_token.is_none() {
            current.times.first_token = Some(Instant::now());
        }
        let was_resumable = !state.is_unresumable();
        let is_new = state.record(event);
        if was_resumable && state.is_unresumable() {
            context.metrics.unresumable();
            warn!(
                parent: &call.span,
                limit = %context.config.resume_memory,
                "this response can no longer be resumed: --resume-memory is full"
            );
        }
        if is_new && call.only_digest.is_none() && state.has_begun() {
            // The client has a part of the response, which only the same weights can continue.
            call.only_digest = current.selected.get().map(|w| w.info.digest.as_str().into());
        }
        if matches!(event.event, Some(Event::Accepted(_))) {
            (call.sequence_tokens, *max_tokens) = (state.sequence_tokens(), state.max_tokens);
        }
        if let Some(timings) = last_timings(event) {
            lost_time.complete(timings);
            *complete = true;
        }
        is_new
    }

    /// Resumes on another worker after `error`, or returns the error that ends the response.
    pub(super) async fn resume(&mut self, error: ServiceError) -> Result<(), ServiceError> {
        // Dropped immediately, so that the worker stops and its events are discarded.
        let Some(AttemptStream { selected, times: lost, .. }) = self.current.take() else {
            return Err(error);
        };
        self.hedge = Hedge::Off;
        self.retryable.check_panics(&error)?;
        if !self.may_resume(&error) {
            return Err(self.interrupted(error));
        }
        self.lost_workers += u32::from(!is_planned(&error));
        if let Some(worker) = selected.get() {
            // A hedge may have been sent after it, but this is the worker to avoid.
            self.retryable.call.tried.with(|tried| tried.push(worker.instance.clone()));
        }
        let context = Arc::clone(&self.retryable.context);
        let end = match error {
            // The time since the last event was no work.
            ServiceError::Stalled(_) | ServiceError::Lost(_) | ServiceError::Preempted(_) => {
                lost.last
            }
            _ => Instant::now(),
        };
        self.retryable.call.timeline.enter_at(Stage::Resume, end, Vec::new);
        if let Some(worker) = selected.get() {
            self.retryable.call.attempts.lost(&worker.id, end, &error);
        }
        self.retryable.call.cause = Some(error.reason());
        self.lost_time.add_attempt(&lost, end);
        info!(
            parent: &self.retryable.call.span,
            %error,
            tokens = self.state.tokens,
            "resuming on another worker"
        );

        if lost.first_token.is_none() {
            // The next attempt may send no token either: avoids a tight loop.
            tokio::time::sleep(RETRY_PAUSE).await;
        }
        let attempt = self.find_worker().await?;
        let took = attempt.times.began.saturating_duration_since(end);
        self.lost_time.resumes += 1;
        self.retryable.call.span.record("resumes", self.lost_time.resumes);
        context.metrics.resumed(&error, took);
        self.current = Some(attempt);
        Ok(())
    }

    fn may_resume(&self, error: &ServiceError) -> bool {
        let within_limit =
            is_planned(error) || has_resumes_left(&self.retryable, self.lost_workers);
        error.is_retryable_elsewhere()
            && within_limit
            && !is_unresumable(&self.retryable, &self.state)
    }

    /// Waits for a worker that resumes the response, for at most `--resume-timeout`.
    async fn find_worker(&mut self) -> Result<AttemptStream, ServiceError> {
        let until = Instant::now() + self.retryable.context.config.resume_timeout;
        let mut fleet = self.retryable.context.pool.watch();
        let mut backoff = Backoff::default();
        self.state.start_resume();
        loop {
            // Before the attempt, so that a worker that joins during it is not missed.
            fleet.mark_unchanged();
            let mut call = self.retryable.call.next_attempt();
            let selected = call.selected.clone();
            let routing: &mut Routing = call.request.routing.get_or_insert_default();
            routing.resume = Some(self.state.resume(call.only_digest.as_deref()));
            let error = match self.retryable.attempt(call, true).await {
                Ok(attempt) => return Ok(attempt),
                Err(error) => error,
            };
            self.retryable.call.timeline.enter(Stage::Resume);
            debug!(
                parent: &self.retryable.call.span,
                %error,
                "no worker has resumed the response yet"
            );
            self.retryable.check_panics(&error)?;
            // A model without workers may be removed before its next worker joins.
            let is_permanent = !error.is_retryable_elsewhere()
                && !matches!(error, ServiceError::UnknownModel { .. });
            if is_permanent || Instant::now() >= until {
                return Err(self.interrupted(error));
            }
            let wait = match (selected.get(), &error) {
                (None, _) => RECHECK_INTERVAL.mul_f64(rand::random_range(0.5..1.0)),
                (Some(worker), ServiceError::Overloaded { .. }) => {
                    worker.outstanding.mark_full();
                    RECHECK_INTERVAL.mul_f64(rand::random_range(0.5..1.0))
                }
                // Any other failure of a worker may persist.
                (Some(_), _) => backoff.next_delay(),
            };
            let remaining = until.saturating_duration_since(Instant::now());
            // Limits the rate of attempts while the fleet changes often.
            tokio::time::sleep(RETRY_PAUSE.min(remaining)).await;
            tokio::select! {
                () = tokio::time::sleep(wait.min(remaining)) => {}
                changed = fleet.changed() => if changed.is_err() {
                    return Err(self.interrupted(error));
                },
            }
        }
    }

    /// Converts `error` to the client's error, with the token counts if the response has begun.
    fn interrupted(&self, error: ServiceError) -> ServiceError {
        if let ServiceError::ExceedsWorker { what, needed_tokens } = error {
            let (tokens, prompt) = (self.state.tokens, self.state.prompt_tokens);
            let what = format!(
                "no worker can continue this response: {what}; its prompt has {prompt} tokens, and \
                 it was cut off after {tokens} of at most {} tokens",
                self.state.max_tokens
            );
            return ServiceError::ExceedsWorker { what, needed_tokens };
        }
        let is_temporary =
            error.is_retryable_elsewhere() || matches!(error, ServiceError::UnknownModel { .. });
        if self.state.has_begun() && is_temporary {
            ServiceError::Interrupted {
                reason: error.to_string(),
                retry_after: INTERRUPTED_RETRY_AFTER,
                prompt_tokens: self.state.prompt_tokens,
                completion_tokens: self.state.tokens,
            }
        } else {
            error
        }
    }
}

/// Whether a stream left its worker because the worker drains or has preempted it. Any other error
/// may be caused by the request itself.
fn is_planned(error: &ServiceError) -> bool {
    matches!(error, ServiceError::Draining(_) | ServiceError::Preempted(_))
}

fn has_resumes_left<S>(retryable: &RetryableCall<S>, lost_workers: u32) -> bool {
    lost_workers < retryable.context.config.max_resumes
}

/// Whether the state that another worker would need to continue the response is incomplete.
fn is_unresumable<S>(retryable: &RetryableCall<S>, state: &ResumeState) -> bool {
    let unknown_digest = retryable.call.only_digest.as_deref() == Some("");
    state.has_begun() && (state.is_unresumable() || unknown_digest)
}

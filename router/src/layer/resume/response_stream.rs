//! One answer, from whichever worker: what the client has of it, and how it goes on.

use std::{
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, SystemTime},
};

use stoker_proto::v1::{GenerateResponse, Routing, generate_response::Event};
use stoker_shared::{ServiceError, backoff::Backoff, telemetry::names::span};
use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::{
    Item,
    attempts::{AttemptStream, RetryableCall},
    hedge::Hedge,
    lost_time::LostTime,
    resume_state::ResumeState,
};
use crate::call::{Generate, last_timings, num_choices};

/// Before another worker is looked for, where the last one brought nothing.
const RETRY_PAUSE: Duration = Duration::from_millis(20);
/// Between two looks for a worker. A look at workers that are known to be full sends nothing.
const RECHECK_INTERVAL: Duration = Duration::from_millis(80);
/// When a client whose answer was cut off should come back.
const INTERRUPTED_RETRY_AFTER: Duration = Duration::from_secs(1);

/// An answer on its way to the client, from whichever worker.
pub(super) struct ResponseStream<S> {
    retryable: RetryableCall<S>,
    /// `None` once it has failed.
    current: Option<AttemptStream>,
    hedge: Hedge,
    state: ResumeState,
    lost_time: LostTime,
    /// Workers that were lost; those that drained do not count.
    failures: u32,
    /// The last event is out.
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
            failures: 0,
            complete: false,
        }
    }

    /// The next event of the worker, or of a second one that was faster.
    pub(super) fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Option<Item>> {
        let Self { retryable, current, hedge, state, failures, .. } = self;
        let Some(current) = current else { return Poll::Ready(None) };
        if let Some(token) = hedge.take_first_token() {
            return Poll::Ready(Some(Ok(token)));
        }
        let event = current.poll_event(cx, |worker, preempted| {
            let room = if preempted { state.tokens_to_recompute() } else { 0 };
            has_resumes_left(retryable, *failures)
                && !is_unresumable(retryable, state)
                && retryable.has_replacement(worker, room)
        });
        hedge.race(cx, retryable, current, event)
    }

    /// Notes an event on its way to the client. False if the client has it already.
    pub(super) fn record(&mut self, event: &mut GenerateResponse) -> bool {
        let Self { retryable, current, state, lost_time, complete, .. } = self;
        let RetryableCall { context, call, max_tokens, .. } = attempts;
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
                "this answer cannot be resumed any more: --resume-memory is full"
            );
        }
        if is_new && call.only_digest.is_none() && state.has_begun() {
            // From here on a part of the answer is out, and only the same weights can go on.
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

    /// Finds another worker after `error`, or says why the answer ends here.
    pub(super) async fn resume(&mut self, error: ServiceError) -> Result<(), ServiceError> {
        // Dropped at once: the worker may stop, and whatever it still sends reaches nobody.
        let Some(AttemptStream { selected, times: lost, .. }) = self.current.take() else {
            return Err(error);
        };
        self.hedge = Hedge::Off;
        self.retryable.check_panics(&error)?;
        if !self.may_resume(&error) {
            return Err(self.interrupted(error));
        }
        self.failures += u32::from(!is_planned(&error));
        if let Some(worker) = selected.get() {
            // A second attempt may have been tried after it, and is not the one to avoid.
            self.retryable.call.tried.with(|tried| tried.push(worker.instance.clone()));
        }
        let context = Arc::clone(&self.retryable.context);
        let end = match error {
            // Its silence is no work.
            ServiceError::Stalled(_) | ServiceError::Lost(_) | ServiceError::Preempted(_) => {
                lost.last
            }
            _ => Instant::now(),
        };
        let clock = SystemTime::now() - end.elapsed();
        self.lost_time.add_attempt(&lost, end);
        info!(parent: &self.retryable.call.span, %error, tokens = self.state.tokens, "looking for a worker to go on");

        if lost.first_token.is_none() {
            // It brought nothing, and so might the next: not in a tight circle.
            tokio::time::sleep(RETRY_PAUSE).await;
        }
        let attempt = self.find_worker().await?;
        let took = attempt.times.began.saturating_duration_since(end);
        self.lost_time.add_resume(took);
        self.retryable.call.span.record("resumes", self.lost_time.resumes);
        self.retryable.call.trace.stage(span::RESUME, clock, took);
        context.metrics.resumed(&error, took);
        self.current = Some(attempt);
        Ok(())
    }

    fn may_resume(&self, error: &ServiceError) -> bool {
        let within = is_planned(error) || has_resumes_left(&self.retryable, self.failures);
        error.is_retryable_elsewhere() && within && !is_unresumable(&self.retryable, &self.state)
    }

    /// A worker that goes on, as soon as there is one.
    async fn find_worker(&mut self) -> Result<AttemptStream, ServiceError> {
        let until = Instant::now() + self.retryable.context.config.resume_timeout;
        let mut fleet = self.retryable.context.pool.watch();
        let mut backoff = Backoff::default();
        self.state.start_resume();
        loop {
            // AttemptTimes now, so that a worker that comes while one is asked is not missed.
            fleet.mark_unchanged();
            let mut call = self.retryable.call.next_attempt();
            let selected = call.selected.clone();
            let routing: &mut Routing = call.request.routing.get_or_insert_default();
            routing.resume = Some(self.state.resume(call.only_digest.as_deref()));
            let error = match self.retryable.attempt(call, true).await {
                Ok(attempt) => return Ok(attempt),
                Err(error) => error,
            };
            debug!(parent: &self.retryable.call.span, %error, "no worker has taken over yet");
            self.retryable.check_panics(&error)?;
            // A model without workers may be forgotten before the next one comes.
            let lasting = !error.is_retryable_elsewhere()
                && !matches!(error, ServiceError::UnknownModel { .. });
            if lasting || Instant::now() >= until {
                return Err(self.interrupted(error));
            }
            let wait = match (selected.get(), &error) {
                (None, _) => RECHECK_INTERVAL.mul_f64(rand::random_range(0.5..1.0)),
                (Some(worker), ServiceError::Overloaded { .. }) => {
                    worker.outstanding.mark_full();
                    RECHECK_INTERVAL.mul_f64(rand::random_range(0.5..1.0))
                }
                // Something else is wrong with it, and may stay so.
                (Some(_), _) => backoff.next_wait(),
            };
            let left = until.saturating_duration_since(Instant::now());
            // The fleet changes often while it is in trouble.
            tokio::time::sleep(RETRY_PAUSE.min(left)).await;
            tokio::select! {
                () = tokio::time::sleep(wait.min(left)) => {}
                changed = fleet.changed() => if changed.is_err() { return Err(self.interrupted(error)) },
            }
        }
    }

    /// The error for the client. One that has a part of the response is told how much.
    fn interrupted(&self, error: ServiceError) -> ServiceError {
        if let ServiceError::ExceedsWorker { what, needed_tokens } = error {
            let (tokens, prompt) = (self.state.tokens, self.state.prompt_tokens);
            let what = format!(
                "no worker can continue this response: {what}; its prompt has {prompt} tokens, and it is cut off \
                 after {tokens} of at most {}",
                self.state.max_tokens
            );
            return ServiceError::ExceedsWorker { what, needed_tokens };
        }
        let gone =
            error.is_retryable_elsewhere() || matches!(error, ServiceError::UnknownModel { .. });
        if self.state.has_begun() && gone {
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

/// Whether a worker was left, or lets its streams go, for a good reason: an operator drains it, or it is busy. Everything
/// else may be the request's own doing.
fn is_planned(error: &ServiceError) -> bool {
    matches!(error, ServiceError::Draining(_) | ServiceError::Preempted(_))
}

fn has_resumes_left<S>(retryable: &RetryableCall<S>, failures: u32) -> bool {
    failures < retryable.context.config.max_resumes
}

/// Whether the next worker could not be told all that it has to know.
fn is_unresumable<S>(retryable: &RetryableCall<S>, state: &ResumeState) -> bool {
    let unknown_digest = retryable.call.only_digest.as_deref() == Some("");
    state.has_begun() && (state.is_unresumable() || unknown_digest)
}

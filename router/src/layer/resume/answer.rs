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
    attempts::{Attempt, Attempts},
    hedge::Hedge,
    lost_time::LostTime,
    resume_state::ResumeState,
};
use crate::call::{Generate, continuations, last_timings};

/// Before another worker is looked for, where the last one brought nothing.
const PAUSE: Duration = Duration::from_millis(20);
/// Between two looks for a worker. A look at workers that are known to be full sends nothing.
const LOOK_AGAIN: Duration = Duration::from_millis(80);
/// When a client whose answer was cut off should come back.
const COME_BACK: Duration = Duration::from_secs(1);

/// An answer on its way to the client, from whichever worker.
pub(super) struct Answer<S> {
    attempts: Attempts<S>,
    /// `None` once it has failed.
    current: Option<Attempt>,
    hedge: Hedge,
    kept: ResumeState,
    spent: LostTime,
    /// Workers that were lost; those that drained do not count.
    losses: u32,
    /// The last event is out.
    pub(super) complete: bool,
}

impl<S: Generate> Answer<S> {
    pub(super) fn new(attempts: Attempts<S>, first: Attempt) -> Self {
        let kept = ResumeState::new(continuations(&attempts.call.request), &attempts.shared.memory);
        let hedge = Hedge::new(attempts.shared.config.hedge_after);
        Self {
            attempts,
            current: Some(first),
            hedge,
            kept,
            spent: LostTime::default(),
            losses: 0,
            complete: false,
        }
    }

    /// The next event of the worker, or of a second one that was faster.
    pub(super) fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Option<Item>> {
        let Self { attempts, current, hedge, kept, losses, .. } = self;
        let Some(current) = current else { return Poll::Ready(None) };
        if let Some(token) = hedge.won() {
            return Poll::Ready(Some(Ok(token)));
        }
        let event = current.poll_event(cx, |worker, preempted| {
            let room = if preempted { kept.known_tokens() } else { 0 };
            may_lose_another(attempts, *losses)
                && !lacks_something(attempts, kept)
                && attempts.replaceable(worker, room)
        });
        hedge.race(cx, attempts, current, event)
    }

    /// Notes an event on its way to the client. False if the client has it already.
    pub(super) fn keep(&mut self, event: &mut GenerateResponse) -> bool {
        let Self { attempts, current, kept, spent, complete, .. } = self;
        let Attempts { shared, call, max_tokens, .. } = attempts;
        let Some(current) = current else { return false };
        if matches!(event.event, Some(Event::Token(_))) && current.seen.first_token.is_none() {
            current.seen.first_token = Some(Instant::now());
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
        if matches!(event.event, Some(Event::Accepted(_))) {
            (call.room, *max_tokens) = (kept.room(), kept.max_tokens);
        }
        if let Some(timings) = last_timings(event) {
            spent.complete(timings);
            *complete = true;
        }
        news
    }

    /// Finds another worker after `error`, or says why the answer ends here.
    pub(super) async fn resume(&mut self, error: ServiceError) -> Result<(), ServiceError> {
        // Dropped at once: the worker may stop, and whatever it still sends reaches nobody.
        let Some(Attempt { chosen, seen: lost, .. }) = self.current.take() else {
            return Err(error);
        };
        self.hedge = Hedge::Off;
        self.attempts.check_poison(&error)?;
        if !self.may_go_on(&error) {
            return Err(self.interrupted(error));
        }
        self.losses += u32::from(!is_on_purpose(&error));
        if let Some(worker) = chosen.get() {
            // A second attempt may have been tried after it, and is not the one to avoid.
            self.attempts.call.tried.with(|tried| tried.push(worker.instance.clone()));
        }
        let shared = Arc::clone(&self.attempts.shared);
        let end = match error {
            // Its silence is no work.
            ServiceError::Stalled(_) | ServiceError::Lost(_) | ServiceError::Preempted(_) => {
                lost.last
            }
            _ => Instant::now(),
        };
        let clock = SystemTime::now() - end.elapsed();
        self.spent.lost(&lost, end);
        info!(parent: &self.attempts.call.span, %error, tokens = self.kept.tokens, "looking for a worker to go on");

        if lost.first_token.is_none() {
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
        let within = is_on_purpose(error) || may_lose_another(&self.attempts, self.losses);
        error.is_retryable_elsewhere() && within && !lacks_something(&self.attempts, &self.kept)
    }

    /// A worker that goes on, as soon as there is one.
    async fn take_over(&mut self) -> Result<Attempt, ServiceError> {
        let until = Instant::now() + self.attempts.shared.config.resume_timeout;
        let mut fleet = self.attempts.shared.pool.watch();
        let mut backoff = Backoff::default();
        self.kept.taken_over();
        loop {
            // AttemptTimes now, so that a worker that comes while one is asked is not missed.
            fleet.mark_unchanged();
            let mut call = self.attempts.call.again();
            let chosen = call.chosen.clone();
            let routing: &mut Routing = call.request.routing.get_or_insert_default();
            routing.resume = Some(self.kept.resume(call.only_digest.as_deref()));
            let error = match self.attempts.make(call, true).await {
                Ok(attempt) => return Ok(attempt),
                Err(error) => error,
            };
            debug!(parent: &self.attempts.call.span, %error, "no worker has taken over yet");
            self.attempts.check_poison(&error)?;
            // A model without workers may be forgotten before the next one comes.
            let lasting = !error.is_retryable_elsewhere()
                && !matches!(error, ServiceError::UnknownModel { .. });
            if lasting || Instant::now() >= until {
                return Err(self.interrupted(error));
            }
            let wait = match (chosen.get(), &error) {
                (None, _) => LOOK_AGAIN.mul_f64(rand::random_range(0.5..1.0)),
                (Some(worker), ServiceError::Overloaded { .. }) => {
                    worker.outstanding.mark_full();
                    LOOK_AGAIN.mul_f64(rand::random_range(0.5..1.0))
                }
                // Something else is wrong with it, and may stay so.
                (Some(_), _) => backoff.next_delay(),
            };
            let left = until.saturating_duration_since(Instant::now());
            // The fleet changes often while it is in trouble.
            tokio::time::sleep(PAUSE.min(left)).await;
            tokio::select! {
                () = tokio::time::sleep(wait.min(left)) => {}
                changed = fleet.changed() => if changed.is_err() { return Err(self.interrupted(error)) },
            }
        }
    }

    /// The error for the client. One that has a part of the response is told how much.
    fn interrupted(&self, error: ServiceError) -> ServiceError {
        if let ServiceError::ExceedsWorker { what, needed_tokens } = error {
            let (tokens, prompt) = (self.kept.tokens, self.kept.prompt_tokens);
            let what = format!(
                "no worker can continue this response: {what}; its prompt has {prompt} tokens, and it is cut off \
                 after {tokens} of at most {}",
                self.kept.max_tokens
            );
            return ServiceError::ExceedsWorker { what, needed_tokens };
        }
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

/// Whether a worker was left, or lets its streams go, for a good reason: an operator drains it, or it is busy. Everything
/// else may be the request's own doing.
fn is_on_purpose(error: &ServiceError) -> bool {
    matches!(error, ServiceError::Draining(_) | ServiceError::Preempted(_))
}

fn may_lose_another<S>(attempts: &Attempts<S>, losses: u32) -> bool {
    losses < attempts.shared.config.max_resumes
}

/// Whether the next worker could not be told all that it has to know.
fn lacks_something<S>(attempts: &Attempts<S>, kept: &ResumeState) -> bool {
    let nameless = attempts.call.only_digest.as_deref() == Some("");
    kept.has_begun() && (kept.is_forgotten() || nameless)
}

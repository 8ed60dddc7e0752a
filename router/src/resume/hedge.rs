//! Hedging: a second attempt if the first one sends no token in time. The attempt with the first
//! token wins.

use std::{
    mem,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use futures::{FutureExt, future::BoxFuture};
use stoker_proto::v1::{GenerateResponse, generate_response::Event};
use stoker_shared::ServiceError;
use tokio::time::Sleep;

use super::{
    Item,
    attempts::{AttemptStream, RetryableCall},
};
use crate::call::Generate;

/// State of the second attempt.
pub(super) enum Hedge {
    /// Disabled, or already decided.
    Off,
    /// Starts when the timer fires.
    Later(Pin<Box<Sleep>>),
    /// Sent, and not accepted yet.
    Sent(BoxFuture<'static, Result<AttemptStream, ServiceError>>),
    /// Accepted without a token yet, with its `Accepted` event once received.
    Accepted(Box<AttemptStream>, Option<GenerateResponse>),
    /// Faster than the first attempt. Its `Accepted` event was returned; this is its first token.
    Won(GenerateResponse),
}

impl Hedge {
    /// Schedules a hedge `after` this time without a token; `None` disables it.
    pub(super) fn new(after: Option<Duration>) -> Self {
        after.map_or(Self::Off, |after| Self::Later(Box::pin(tokio::time::sleep(after))))
    }

    /// Takes the first token of a second attempt that has just won.
    pub(super) fn take_first_token(&mut self) -> Option<GenerateResponse> {
        // Called for every event, so `self` is moved only if there is a token.
        if !matches!(self, Self::Won(_)) {
            return None;
        }
        match mem::replace(self, Self::Off) {
            Self::Won(token) => Some(token),
            _ => None,
        }
    }

    /// Decides between the next item of the first attempt and that of the second one. The winner
    /// becomes `current`, and the other one is dropped.
    pub(super) fn race<S: Generate>(
        &mut self,
        cx: &mut Context<'_>,
        retryable: &RetryableCall<S>,
        current: &mut AttemptStream,
        first: Poll<Option<Item>>,
    ) -> Poll<Option<Item>> {
        if matches!(self, Self::Off) {
            return first;
        }
        match &first {
            Poll::Ready(Some(Ok(event))) if is_accepted(event) => return first,
            Poll::Ready(Some(Ok(_)) | None) => {
                if !matches!(self, Self::Later(_)) {
                    retryable.context.metrics.hedged("first");
                }
                *self = Self::Off;
                return first;
            }
            // The second attempt, if accepted, continues alone.
            Poll::Ready(Some(Err(_))) => return self.fail_over(current).unwrap_or(first),
            Poll::Pending => {}
        }
        self.advance(cx, retryable, current)
    }

    fn advance<S: Generate>(
        &mut self,
        cx: &mut Context<'_>,
        retryable: &RetryableCall<S>,
        current: &mut AttemptStream,
    ) -> Poll<Option<Item>> {
        loop {
            match self {
                Self::Off | Self::Won(_) => return Poll::Pending,
                Self::Later(timer) => {
                    ready!(timer.poll_unpin(cx));
                    let has_worker =
                        current.selected.get().is_some_and(|w| retryable.has_hedge_worker(w));
                    *self = if has_worker && retryable.context.retry_budget.withdraw() {
                        Self::Sent(retryable.attempt_detached())
                    } else {
                        Self::Off
                    };
                }
                Self::Sent(sent) => {
                    *self = match ready!(sent.poll_unpin(cx)) {
                        Ok(attempt) => Self::Accepted(Box::new(attempt), None),
                        Err(_) => Self::Off,
                    };
                }
                Self::Accepted(second, accepted) => {
                    let event =
                        second.poll_event(cx, |worker, _| retryable.has_replacement(worker, 0));
                    match ready!(event) {
                        Some(Ok(event)) if is_accepted(&event) => *accepted = Some(event),
                        Some(Ok(event)) => {
                            retryable.context.metrics.hedged("second");
                            let accepted = accepted.take();
                            self.swap(current);
                            // The client gets the `Accepted` event of the winner before its token.
                            let Some(accepted) = accepted else {
                                return Poll::Ready(Some(Ok(event)));
                            };
                            *self = Self::Won(event);
                            return Poll::Ready(Some(Ok(accepted)));
                        }
                        Some(Err(_)) | None => *self = Self::Off,
                    }
                }
            }
        }
    }

    /// Switches to the second attempt, if it was accepted, after the first one has failed.
    fn fail_over(&mut self, current: &mut AttemptStream) -> Option<Poll<Option<Item>>> {
        let accepted = match self {
            Self::Accepted(_, accepted) => accepted.take(),
            _ => None,
        };
        let accepted = accepted?;
        self.swap(current);
        Some(Poll::Ready(Some(Ok(accepted))))
    }

    /// Replaces the first attempt, which is dropped, by the second one.
    fn swap(&mut self, current: &mut AttemptStream) {
        if let Self::Accepted(second, _) = mem::replace(self, Self::Off) {
            *current = *second;
        }
    }
}

fn is_accepted(event: &GenerateResponse) -> bool {
    matches!(event.event, Some(Event::Accepted(_)))
}

//! Another worker, as long as the client has no token yet.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    task::{Context, Poll},
};

use futures::{FutureExt, StreamExt, future::BoxFuture, stream};
use stoker_proto::v1::{GenerateResponse, generate_response::Event};
use stoker_shared::ServiceError;
use tower::{Service, ServiceExt};
use tracing::debug;

use crate::{
    call::{Call, EventStream, Generate},
    metrics::Metrics,
};

/// Every request pays one in, and a retry costs five: at most 20 % extra load, however bad it gets.
const RETRY_COST: u32 = 5;
/// What a quiet hour saves up, and what the first requests of all find: ten retries.
const MOST_SAVED: u32 = 10 * RETRY_COST;

/// What all requests may spend on retries together.
#[derive(Debug, Clone)]
pub(crate) struct Budget(Arc<AtomicU32>);

impl Default for Budget {
    fn default() -> Self {
        Self(Arc::new(AtomicU32::new(MOST_SAVED)))
    }
}

impl Budget {
    fn deposit(&self) {
        self.update(|saved| (saved < MOST_SAVED).then_some(saved + 1));
    }

    fn withdraw(&self) -> bool {
        self.update(|saved| saved.checked_sub(RETRY_COST))
    }

    fn update(&self, change: impl FnMut(u32) -> Option<u32>) -> bool {
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, change).is_ok()
    }
}

/// Repeats a call that failed before its first token.
#[derive(Debug, Clone)]
pub(crate) struct Retry<S> {
    next: S,
    most: u32,
    budget: Budget,
    metrics: Metrics,
}

impl<S> Retry<S> {
    pub(crate) fn new(next: S, most: u32, budget: Budget, metrics: Metrics) -> Self {
        Self { next, most, budget, metrics }
    }
}

impl<S: Generate> Service<Call> for Retry<S> {
    type Response = EventStream;
    type Error = ServiceError;
    type Future = BoxFuture<'static, Result<EventStream, ServiceError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ServiceError>> {
        // Readiness counts once, and there may be several calls: each asks for its own.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, call: Call) -> Self::Future {
        self.budget.deposit();
        let mut attempts = Attempts { retry: self.clone(), call };
        async move {
            let stream = attempts.start().await?;
            Ok(until_first_token(attempts, stream))
        }
        .boxed()
    }
}

/// A call that can be made again.
struct Attempts<S> {
    retry: Retry<S>,
    /// With the number of the attempt to make next.
    call: Call,
}

impl<S: Generate> Attempts<S> {
    /// Tries until a worker accepts.
    async fn start(&mut self) -> Result<EventStream, ServiceError> {
        loop {
            let call = self.call.clone();
            self.call.span.record("attempts", call.attempt);
            self.call.attempt += 1;
            match self.retry.next.clone().oneshot(call).await {
                Ok(stream) => return Ok(stream),
                Err(error) => self.allow(error)?,
            }
        }
    }

    /// Fails with `error` unless it is worth another attempt, and one is left.
    fn allow(&self, error: ServiceError) -> Result<(), ServiceError> {
        let again = error.is_retryable_elsewhere()
            && self.call.attempt <= self.retry.most
            && !self.call.deadline.is_over()
            // A worker that drains did nothing for the call: going elsewhere is no extra load.
            && (matches!(error, ServiceError::Draining(_)) || self.retry.budget.withdraw());
        if again {
            debug!(parent: &self.call.span, %error, "trying another worker");
            self.retry.metrics.retried(&error);
            Ok(())
        } else {
            Err(error)
        }
    }
}

/// The events of `stream`; those of another attempt instead if it fails before the first token.
fn until_first_token<S: Generate>(attempts: Attempts<S>, stream: EventStream) -> EventStream {
    let begun = Begun { stream, attempts: Some(attempts) };
    stream::unfold(begun, |mut begun| async move {
        let item = begun.next().await?;
        Some((item, begun))
    })
    .boxed()
}

struct Begun<S> {
    stream: EventStream,
    /// Until the first token.
    attempts: Option<Attempts<S>>,
}

impl<S: Generate> Begun<S> {
    async fn next(&mut self) -> Option<Result<GenerateResponse, ServiceError>> {
        loop {
            match (self.stream.next().await?, &mut self.attempts) {
                // Said again by another attempt, so that the client knows who really answers.
                (Ok(event), Some(_)) if matches!(event.event, Some(Event::Accepted(_))) => {
                    return Some(Ok(event));
                }
                (Ok(event), _) => {
                    // From here on a part of the answer is out, and only a resume could go on.
                    self.attempts = None;
                    return Some(Ok(event));
                }
                (Err(error), None) => return Some(Err(error)),
                (Err(error), Some(attempts)) => {
                    let again = match attempts.allow(error) {
                        Ok(()) => attempts.start().await,
                        Err(error) => Err(error),
                    };
                    match again {
                        Ok(stream) => self.stream = stream,
                        Err(error) => {
                            self.stream = stream::empty().boxed();
                            return Some(Err(error));
                        }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use std::sync::Mutex;

    use stoker_proto::v1::PromptLogprobs;
    use tower::service_fn;

    use super::*;
    use crate::layer::support::{accepted, call, event, events, finished, token};

    type Answer = Result<Vec<Result<GenerateResponse, ServiceError>>, ServiceError>;

    /// Gives these answers, one a call, and counts the calls.
    fn answers(list: Vec<Answer>) -> (impl Generate, Arc<AtomicU32>) {
        let list = Arc::new(Mutex::new(list.into_iter()));
        let calls = Arc::new(AtomicU32::new(0));
        let counted = Arc::clone(&calls);
        let service = service_fn(move |call: Call| {
            let made = counted.fetch_add(1, Ordering::Relaxed) + 1;
            assert_eq!(call.attempt, made, "attempts count from 1");
            let answer = list.lock().unwrap().next().unwrap();
            async { answer.map(events) }
        });
        (service, calls)
    }

    fn down() -> ServiceError {
        ServiceError::unavailable("down")
    }

    async fn run(list: Vec<Answer>) -> (Vec<Result<GenerateResponse, ServiceError>>, u32) {
        let (below, calls) = answers(list);
        let retry = Retry::new(below, 3, Budget::default(), Metrics::default());
        let items = match retry.oneshot(call()).await {
            Ok(stream) => stream.collect().await,
            Err(error) => vec![Err(error)],
        };
        (items, calls.load(Ordering::Relaxed))
    }

    #[tokio::test]
    async fn goes_on_elsewhere_until_the_first_token() {
        let good = vec![Ok(accepted("c", 1)), Ok(token()), Ok(finished())];
        let (items, calls) =
            run(vec![Err(down()), Ok(vec![Ok(accepted("b", 1)), Err(down())]), Ok(good)]).await;
        assert_eq!(calls, 3);
        // The client is told of the change.
        let told = [Ok(accepted("b", 1)), Ok(accepted("c", 1)), Ok(token()), Ok(finished())];
        assert_eq!(items, told);
    }

    #[tokio::test]
    async fn never_after_a_part_of_the_answer() {
        let prompt = event(Event::Prompt(PromptLogprobs::default()));
        for part in [token(), prompt] {
            let (items, calls) =
                run(vec![Ok(vec![Ok(accepted("a", 1)), Ok(part), Err(down())])]).await;
            assert_eq!(calls, 1);
            assert_eq!(items.last(), Some(&Err(down())));
        }
    }

    #[tokio::test]
    async fn only_for_errors_that_another_worker_might_not_have() {
        let error = ServiceError::Internal("NaN logits".into());
        let (items, calls) = run(vec![Err(error.clone())]).await;
        assert_eq!((items, calls), (vec![Err(error)], 1));
    }

    #[tokio::test]
    async fn gives_up_after_the_last_attempt() {
        let (items, calls) = run(vec![Err(down()), Err(down()), Err(down())]).await;
        assert_eq!((items, calls), (vec![Err(down())], 3));
    }

    #[tokio::test]
    async fn a_storm_costs_no_more_than_the_budget() {
        let calls = Arc::new(AtomicU32::new(0));
        let counted = Arc::clone(&calls);
        let below = service_fn(move |_: Call| {
            counted.fetch_add(1, Ordering::Relaxed);
            async { Err::<EventStream, _>(down()) }
        });
        let retry = Retry::new(below, 3, Budget::default(), Metrics::default());
        for _ in 0..1_000 {
            assert!(retry.clone().oneshot(call()).await.is_err());
        }
        let extra = calls.load(Ordering::Relaxed) - 1_000;
        assert_eq!(extra, (1_000 + MOST_SAVED) / RETRY_COST - 1);
    }
}

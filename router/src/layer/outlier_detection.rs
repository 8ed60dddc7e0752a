//! Tells a worker's health how each call went, and how long the worker let it wait.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use futures::{FutureExt, Stream, StreamExt, future::BoxFuture};
use stoker_proto::v1::{GenerateResponse, generate_response::Event};
use stoker_shared::ServiceError;
use tokio::time::Instant;
use tower::{Service, ServiceExt};

use crate::{
    call::{EventStream, num_choices},
    endpoint::Dispatch,
    policy::resume,
    pool::health::AttemptPermit,
};

/// Tokens of an response that make one measurement.
const SAMPLE_TOKENS: u64 = 32;
/// Fewer at its end make none: they may have come in one message.
const MIN_SAMPLE_TOKENS: u64 = 8;
/// What even an empty prompt takes, in tokens of one.
const PROMPT_OVERHEAD_TOKENS: u64 = 64;

/// Follows every call to its end.
#[derive(Debug, Clone)]
pub(crate) struct OutlierDetection<S>(S);

impl<S> OutlierDetection<S> {
    pub(crate) fn new(endpoint: S) -> Self {
        Self(endpoint)
    }
}

impl<S> Service<Dispatch> for OutlierDetection<S>
where
    S: Service<Dispatch, Response = EventStream, Error = ServiceError, Future: Send>,
    S: Clone + Send + 'static,
{
    type Response = EventStream;
    type Error = ServiceError;
    type Future = BoxFuture<'static, Result<EventStream, ServiceError>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ServiceError>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, mut dispatch: Dispatch) -> Self::Future {
        let permit = dispatch.permit.take();
        let resume = resume(&dispatch.call.request);
        let ended = resume.map_or(0, |r| r.choices.iter().filter(|c| c.finished.is_some()).count());
        let choices = num_choices(&dispatch.call.request).saturating_sub(ended as u32).max(1);
        let resumed = resume.is_some();
        let endpoint = self.0.clone();
        async move {
            let sent = Instant::now();
            let mut observation = CallObservation { permit, choices, resumed, ..CallObservation::default() };
            match endpoint.oneshot(dispatch).await {
                Ok(stream) => {
                    observation.waited = sent.elapsed();
                    if let Some(permit) = &observation.permit {
                        // The client may never come for it.
                        permit.is_read(false);
                    }
                    Ok(MeasuredStream { stream, waiting_since: None, observation }.boxed())
                }
                Err(error) => {
                    observation.failed(&error);
                    Err(error)
                }
            }
        }
        .boxed()
    }
}

/// What one call has come to so far.
#[derive(Default)]
struct CallObservation {
    permit: Option<AttemptPermit>,
    /// Continuations that go on.
    choices: u32,
    /// It had to read more than the prompt.
    resumed: bool,
    /// Before the first token, then waiting_since the last measurement. Only what the worker took: while the client
    /// does not read, nobody waits for the worker.
    waited: Duration,
    /// The same when the worker preempted the response: until its next token, it waits for others, which says nothing
    /// about the worker's speed.
    until_preempted: Option<Duration>,
    /// Before the first token, once it is there.
    first: Option<Duration>,
    /// Since the last measurement.
    tokens: u64,
}

impl CallObservation {
    fn event(&mut self, event: &GenerateResponse) {
        match &event.event {
            Some(Event::Preempted(_)) => {
                self.until_preempted.get_or_insert(self.waited);
            }
            Some(Event::Token(delta)) => {
                if let Some(waited) = self.until_preempted.take() {
                    self.waited = waited;
                }
                if self.first.is_none() {
                    self.first = Some(std::mem::take(&mut self.waited));
                    return;
                }
                self.tokens += delta.ids.len() as u64;
                if self.tokens >= SAMPLE_TOKENS {
                    self.measure();
                }
            }
            Some(Event::Finished(finished)) => {
                if self.tokens >= MIN_SAMPLE_TOKENS {
                    self.measure();
                }
                self.choices = self.choices.saturating_sub(1).max(1);
                let Some(usage) = finished.usage else { return };
                // What a cache has need not be read again.
                let read = usage.prompt_tokens.saturating_sub(usage.cached_prompt_tokens);
                let work = u32::try_from(u64::from(read) + PROMPT_OVERHEAD_TOKENS).unwrap_or(u32::MAX);
                if let Some(permit) = &mut self.permit {
                    permit.ended(self.first.filter(|_| !self.resumed).map(|first| first / work));
                }
            }
            _ => {}
        }
    }

    fn measure(&mut self) {
        let tokens = u32::try_from(std::mem::take(&mut self.tokens)).unwrap_or(u32::MAX);
        // Continuations are made side by side.
        let each = std::mem::take(&mut self.waited) * self.choices / tokens.max(1);
        if let Some(permit) = &mut self.permit {
            permit.goes_well(each);
        }
    }

    fn failed(&mut self, error: &ServiceError) {
        if let Some(permit) = &mut self.permit {
            permit.failed(error);
        }
    }
}

struct MeasuredStream {
    stream: EventStream,
    /// The next event is asked for waiting_since then, and is not there.
    waiting_since: Option<Instant>,
    observation: CallObservation,
}

impl Stream for MeasuredStream {
    type Item = Result<GenerateResponse, ServiceError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        let polled = this.stream.poll_next_unpin(cx);
        if let Some(permit) = &this.observation.permit {
            permit.is_read(polled.is_pending());
        }
        if polled.is_pending() {
            this.waiting_since.get_or_insert_with(Instant::now);
        }
        let item = ready!(polled);
        if let Some(waiting_since) = this.waiting_since.take() {
            this.observation.waited += waiting_since.elapsed();
        }
        match &item {
            Some(Ok(event)) => this.observation.event(event),
            Some(Err(error)) => this.observation.failed(error),
            None => {}
        }
        Poll::Ready(item)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use std::sync::Arc;

    use futures::stream;
    use stoker_proto::v1::{Finished, Usage};
    use tower::service_fn;

    use super::*;
    use crate::{
        layer::support::{accepted, call, event, events, token},
        pool::{health::Health, worker::tests::worker},
    };

    type Items = Vec<Result<GenerateResponse, ServiceError>>;

    const FIRST: Duration = Duration::from_millis(640);
    const EACH: Duration = Duration::from_millis(20);

    /// A stream that pauses before its first token and between tokens.
    fn paced(tokens: u32) -> EventStream {
        let usage = Usage { prompt_tokens: 1_000, cached_prompt_tokens: 936, ..Usage::default() };
        let end = Finished { usage: Some(usage), ..Finished::default() };
        let tokens = stream::iter(0..tokens).then(|i| async move {
            tokio::time::sleep(if i == 0 { FIRST } else { EACH }).await;
            Ok(token())
        });
        let end = stream::iter([Ok(event(Event::Finished(end)))]);
        stream::iter([Ok(accepted("a", 1_000))]).chain(tokens).chain(end).boxed()
    }

    /// Sends one call through the layer. The client takes `pause` for each event.
    async fn run(
        health: &Arc<Health>,
        response: impl FnOnce() -> Result<EventStream, ServiceError> + Clone + Send + 'static,
        pause: Duration,
    ) -> Items {
        let below = service_fn(move |_: Dispatch| std::future::ready(response.clone()()));
        let dispatch =
            Dispatch { call: call(), worker: worker("a", "m", ""), permit: health.enter() };
        match OutlierDetection::new(below).oneshot(dispatch).await {
            Err(error) => vec![Err(error)],
            Ok(mut stream) => {
                let mut items = Vec::new();
                while let Some(item) = stream.next().await {
                    items.push(item);
                    tokio::time::sleep(pause).await;
                }
                items
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn measures_what_the_worker_takes() {
        let health = Arc::default();
        let items = run(&health, || Ok(paced(100)), Duration::ZERO).await;
        assert_eq!(items.len(), 102);
        // 64 tokens had to be read, and each prompt counts for 64 more.
        assert_eq!(health.snapshot(), (0, Some(FIRST / 128), Some(EACH)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_is_slow_does_not_make_the_worker_slow() {
        let health = Arc::default();
        run(&health, || Ok(paced(100)), Duration::from_secs(1)).await;
        let (_, _, next) = health.snapshot();
        assert!(next.unwrap() <= EACH, "{next:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_few_tokens_make_no_measurement() {
        let health = Arc::default();
        run(&health, || Ok(paced(MIN_SAMPLE_TOKENS as u32)), Duration::ZERO).await;
        assert_eq!(health.told(), (0, Some(FIRST / 128), None));
    }

    #[tokio::test]
    async fn failures_count_wherever_they_come() {
        let lost = || ServiceError::unavailable("lost");
        let health = Arc::default();
        assert_eq!(run(&health, move || Err(lost()), Duration::ZERO).await, [Err(lost())]);
        assert_eq!(health.snapshot().0, 1);
        let broken = move || Ok(events([Ok(accepted("a", 1)), Ok(token()), Err(lost())]));
        assert_eq!(run(&health, broken, Duration::ZERO).await.len(), 3);
        assert_eq!(health.snapshot().0, 2);
        run(&health, || Ok(paced(0)), Duration::ZERO).await;
        assert_eq!(health.snapshot().0, 0, "a good end");
    }
}

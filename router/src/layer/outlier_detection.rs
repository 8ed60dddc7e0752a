//! Reports the result and the latencies of each call to its worker's health.

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

/// Tokens of a response per latency sample.
const SAMPLE_TOKENS: u64 = 32;
/// Minimum tokens of the last sample of a response: fewer may have arrived in one message.
const MIN_SAMPLE_TOKENS: u64 = 8;
/// Fixed cost of a prefill, in prompt tokens.
const PROMPT_OVERHEAD_TOKENS: u64 = 64;

/// Observes every call to its end.
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
            let mut observation =
                CallObservation { permit, choices, resumed, ..CallObservation::default() };
            match endpoint.oneshot(dispatch).await {
                Ok(stream) => {
                    observation.waited = sent.elapsed();
                    if let Some(permit) = &observation.permit {
                        // The client may never read the stream.
                        permit.on_poll(false);
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

/// Measurements of one call.
#[derive(Default)]
struct CallObservation {
    permit: Option<AttemptPermit>,
    /// Number of unfinished choices.
    choices: u32,
    /// Whether the worker had to prefill generated tokens too.
    resumed: bool,
    /// Time spent waiting for the worker, up to the first token or since the last sample. Time in
    /// which the client does not read is excluded.
    waited: Duration,
    /// `waited` at the time when the worker preempted the response. The wait until its next token
    /// depends on other sequences and is excluded.
    until_preempted: Option<Duration>,
    /// Time to first token, once it has arrived.
    first: Option<Duration>,
    /// Tokens since the last sample.
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
                // Cached tokens are not prefilled.
                let read = usage.prompt_tokens.saturating_sub(usage.cached_prompt_tokens);
                let work =
                    u32::try_from(u64::from(read) + PROMPT_OVERHEAD_TOKENS).unwrap_or(u32::MAX);
                if let Some(permit) = &mut self.permit {
                    permit.on_complete(
                        self.first.filter(|_| !self.resumed).map(|first| first / work),
                    );
                }
            }
            _ => {}
        }
    }

    fn measure(&mut self) {
        let tokens = u32::try_from(std::mem::take(&mut self.tokens)).unwrap_or(u32::MAX);
        // Choices are decoded concurrently.
        let each = std::mem::take(&mut self.waited) * self.choices / tokens.max(1);
        if let Some(permit) = &mut self.permit {
            permit.on_progress(each);
        }
    }

    fn failed(&mut self, error: &ServiceError) {
        if let Some(permit) = &mut self.permit {
            permit.failed(error);
        }
    }
}

/// A stream that measures how long it waits for its worker.
struct MeasuredStream {
    stream: EventStream,
    /// Since when a poll for the next event has been pending.
    waiting_since: Option<Instant>,
    observation: CallObservation,
}

impl Stream for MeasuredStream {
    type Item = Result<GenerateResponse, ServiceError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        let polled = this.stream.poll_next_unpin(cx);
        if let Some(permit) = &this.observation.permit {
            permit.on_poll(polled.is_pending());
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
        pool::{health::Health, worker::tests::worker},
        tests::support::{accepted, call, event, events, token},
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

    /// Sends one call through the layer. The client pauses for `pause` after each event.
    async fn run(
        health: &Arc<Health>,
        response: impl FnOnce() -> Result<EventStream, ServiceError> + Clone + Send + 'static,
        pause: Duration,
    ) -> Items {
        let below = service_fn(move |_: Dispatch| std::future::ready(response.clone()()));
        let dispatch =
            Dispatch { call: call(), worker: worker("a", "m", ""), permit: health.try_acquire() };
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
    async fn measures_the_latencies_of_the_worker() {
        let health = Arc::default();
        let items = run(&health, || Ok(paced(100)), Duration::ZERO).await;
        assert_eq!(items.len(), 102);
        // 64 tokens were not cached, and each prompt counts for 64 more.
        assert_eq!(health.snapshot(), (0, Some(FIRST / 128), Some(EACH)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_client_does_not_add_to_the_latencies() {
        let health = Arc::default();
        run(&health, || Ok(paced(100)), Duration::from_secs(1)).await;
        let (_, _, next) = health.snapshot();
        assert!(next.unwrap() <= EACH, "{next:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_few_tokens_make_no_sample() {
        let health = Arc::default();
        run(&health, || Ok(paced(MIN_SAMPLE_TOKENS as u32)), Duration::ZERO).await;
        assert_eq!(health.snapshot(), (0, Some(FIRST / 128), None));
    }

    #[tokio::test]
    async fn failures_count_before_and_within_the_stream() {
        let lost = || ServiceError::unavailable("lost");
        let health = Arc::default();
        assert_eq!(run(&health, move || Err(lost()), Duration::ZERO).await, [Err(lost())]);
        assert_eq!(health.snapshot().0, 1);
        let broken = move || Ok(events([Ok(accepted("a", 1)), Ok(token()), Err(lost())]));
        assert_eq!(run(&health, broken, Duration::ZERO).await.len(), 3);
        assert_eq!(health.snapshot().0, 2);
        run(&health, || Ok(paced(0)), Duration::ZERO).await;
        assert_eq!(health.snapshot().0, 0, "a success resets the count");
    }
}

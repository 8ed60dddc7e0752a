//! One span and one log line a request, and the timings that only the outermost layer can know.

use std::{
    task::{Context, Poll},
    time::Duration,
};

use futures::{FutureExt, future::BoxFuture};
use stoker_proto::v1::{FinishReason, GenerateResponse, Timings, Usage, generate_response::Event};
use stoker_shared::{ServiceError, validate::MAX_REQUEST_ID};
use tokio::time::Instant;
use tower::Service;
use tracing::{Instrument, Span, field::Empty, info, info_span};

use crate::call::{Call, EventStream, Generate, Observe, last_timings, observe};

/// Follows a request from its arrival to its last event.
#[derive(Debug, Clone)]
pub(crate) struct Trace<S>(S);

impl<S> Trace<S> {
    pub(crate) fn new(next: S) -> Self {
        Self(next)
    }
}

impl<S: Generate> Service<Call> for Trace<S> {
    type Response = EventStream;
    type Error = ServiceError;
    type Future = BoxFuture<'static, Result<EventStream, ServiceError>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ServiceError>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, mut call: Call) -> Self::Future {
        if call.request.request_id.is_empty() {
            call.request.request_id = uuid::Uuid::now_v7().to_string();
        }
        let span = span(&call.request.request_id);
        call.span = span.clone();
        let mut record = Record::new(call.arrived, span.clone());
        // Made inside the span, since a layer may log before its future is polled.
        let work = span.in_scope(|| self.0.call(call)).instrument(span);
        async move {
            match work.await {
                Ok(stream) => Ok(observe(stream, record)),
                Err(error) => {
                    record.failed(&error);
                    Err(error)
                }
            }
        }
        .boxed()
    }
}

/// The span of a request. Everything that is not known yet is recorded later, by whoever knows it.
fn span(request_id: &str) -> Span {
    // The trace comes before validation: an id that will be refused does not reach the log.
    let valid = request_id.len() <= MAX_REQUEST_ID && request_id.is_ascii();
    let valid = valid && request_id.bytes().all(|b| b.is_ascii_graphic());
    info_span!(
        "generate",
        request_id = if valid { request_id } else { "(invalid)" },
        model = Empty,
        worker = Empty,
        attempts = Empty,
        prompt_tokens = Empty,
        tokens = Empty,
        outcome = Empty,
        error = Empty,
        admission_ms = Empty,
        first_token_ms = Empty,
        total_ms = Empty,
    )
}

/// What a request has come to so far. Written down when it is dropped, so that a client that goes away
/// at any moment leaves its line too.
struct Record {
    arrived: Instant,
    span: Span,
    tokens: usize,
    first_token: Option<Duration>,
    /// Of the last event.
    reason: Option<FinishReason>,
    usage: Option<Usage>,
    outcome: &'static str,
}

impl Record {
    fn new(arrived: Instant, span: Span) -> Self {
        Self {
            arrived,
            span,
            tokens: 0,
            first_token: None,
            reason: None,
            usage: None,
            outcome: ServiceError::Cancelled.reason(),
        }
    }
}

impl Observe for Record {
    fn event(&mut self, event: &mut GenerateResponse) {
        if let Some(timings) = last_timings(event) {
            let total = self.arrived.elapsed();
            complete(timings, total);
            if let Some(admission) = std_duration(timings.admission) {
                self.span.record("admission_ms", millis(admission));
            }
        }
        match &event.event {
            Some(Event::Token(delta)) => {
                self.tokens += delta.ids.len();
                self.first_token.get_or_insert_with(|| self.arrived.elapsed());
            }
            Some(Event::Accepted(accepted)) => {
                self.span.record("prompt_tokens", accepted.prompt_tokens);
            }
            Some(Event::Finished(finished)) => {
                self.reason = Some(finished.reason());
                self.usage = finished.usage;
            }
            Some(Event::Prompt(_)) | None => {}
        }
    }

    fn failed(&mut self, error: &ServiceError) {
        self.outcome = error.reason();
        // Debug quotes what a client or a worker wrote, so that it cannot forge a line.
        self.span.record("error", tracing::field::debug(error.to_string()));
    }

    fn ended(&mut self) {
        self.outcome = match self.reason {
            Some(FinishReason::Stop) => "stop",
            Some(FinishReason::Length) => "length",
            _ => "cancelled by the worker",
        };
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let tokens = self.usage.map_or(self.tokens as u64, |usage| usage.completion_tokens.into());
        let span = &self.span;
        span.record("tokens", tokens);
        span.record("outcome", self.outcome);
        if let Some(first) = self.first_token {
            span.record("first_token_ms", millis(first));
        }
        span.record("total_ms", millis(self.arrived.elapsed()));
        info!(parent: span, "request over");
    }
}

/// Adds the router's own stages. What neither the queue here nor the worker accounts for is `route`:
/// choosing, dispatch, attempts that came to nothing, and the way in between. So the stages sum to `total`.
fn complete(timings: &mut Timings, total: Duration) {
    let elsewhere = std_duration(timings.admission).unwrap_or_default()
        + std_duration(timings.worker_total).unwrap_or_default();
    timings.route = proto_duration(total.saturating_sub(elsewhere));
    timings.total = proto_duration(total);
}

fn std_duration(duration: Option<prost_types::Duration>) -> Option<Duration> {
    duration.and_then(|d| d.try_into().ok())
}

fn proto_duration(duration: Duration) -> Option<prost_types::Duration> {
    duration.try_into().ok()
}

fn millis(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use futures::TryStreamExt;
    use stoker_proto::v1::Finished;
    use tower::{ServiceExt, service_fn};

    use super::*;
    use crate::layer::support::{Recorder, accepted, call, events, finished, token};

    #[tokio::test]
    async fn draws_an_id_and_keeps_a_given_one() {
        let below = Recorder::default();
        drop(Trace::new(below.clone()).oneshot(call()).await.unwrap());
        let mut named = call();
        named.request.request_id = "mine".into();
        drop(Trace::new(below.clone()).oneshot(named).await.unwrap());
        let ids: Vec<_> = below.take().into_iter().map(|c| c.request.request_id).collect();
        let drawn = uuid::Uuid::parse_str(&ids[0]).unwrap();
        assert_eq!(drawn.get_version_num(), 7);
        assert_eq!(ids[1], "mine");
    }

    #[tokio::test(start_paused = true)]
    async fn stages_sum_to_the_wall_time() {
        let below = service_fn(|_: Call| async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            let mut last = finished();
            let timings = last_timings(&mut last).unwrap();
            timings.admission = proto_duration(Duration::from_millis(20));
            timings.worker_total = proto_duration(Duration::from_millis(70));
            Ok::<_, ServiceError>(events([Ok(accepted("w", 3)), Ok(token()), Ok(last)]))
        });
        let stream = Trace::new(below).oneshot(call()).await.unwrap();
        let all: Vec<_> = stream.try_collect().await.unwrap();
        let Some(Event::Finished(Finished { timings, .. })) = &all[2].event else {
            panic!("{all:?}")
        };
        let timings = timings.unwrap();
        let of = |d| std_duration(d).unwrap();
        assert_eq!(of(timings.total), Duration::from_millis(100));
        assert_eq!(of(timings.route), Duration::from_millis(10));
    }
}

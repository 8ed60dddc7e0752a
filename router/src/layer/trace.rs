//! One span, one log line and one metrics update per request, and the timings that only the
//! outermost layer knows.

mod request_log;

use std::{
    task::{Context, Poll},
    time::Duration,
};

use futures::{FutureExt, future::BoxFuture};
use stoker_proto::{
    duration::{from_wire, to_wire},
    v1::Timings,
};
use stoker_shared::ServiceError;
use tower::Service;
use tracing::Instrument;

use crate::{
    call::{Call, EventStream, Generate, observe},
    metrics::Metrics,
};
use request_log::RequestLog;

/// Traces a request from its arrival to its last event.
#[derive(Debug, Clone)]
pub(crate) struct Trace<S> {
    next: S,
    metrics: Metrics,
}

impl<S> Trace<S> {
    pub(crate) fn new(next: S, metrics: Metrics) -> Self {
        Self { next, metrics }
    }
}

impl<S: Generate> Service<Call> for Trace<S> {
    type Response = EventStream;
    type Error = ServiceError;
    type Future = BoxFuture<'static, Result<EventStream, ServiceError>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ServiceError>> {
        self.next.poll_ready(cx)
    }

    fn call(&mut self, mut call: Call) -> Self::Future {
        if call.request.request_id.is_empty() {
            call.request.request_id = uuid::Uuid::now_v7().to_string();
        }
        let mut request_log = RequestLog::start(&mut call, &self.metrics);
        let span = call.span.clone();
        // Called inside the span, since a layer may log before its future is polled.
        let work = span.in_scope(|| self.next.call(call)).instrument(span);
        async move {
            match work.await {
                Ok(stream) => Ok(observe(stream, request_log)),
                Err(error) => {
                    request_log.refused(&error);
                    Err(error)
                }
            }
        }
        .boxed()
    }
}

/// Adds the router's own stages. `route` is the time that admission, workers and resumes do not
/// account for: worker selection, dispatch, failed attempts and the network. So the stages sum to
/// `total`.
fn complete(timings: &mut Timings, total: Duration) {
    let elsewhere = from_wire(timings.admission).unwrap_or_default()
        + from_wire(timings.worker_total).unwrap_or_default()
        + from_wire(timings.resume).unwrap_or_default();
    timings.route = to_wire(total.saturating_sub(elsewhere));
    timings.total = to_wire(total);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use futures::TryStreamExt;
    use stoker_proto::v1::{Finished, generate_response::Event};
    use tower::{ServiceExt, service_fn};

    use super::*;
    use crate::{
        call::last_timings,
        layer::support::{Recorder, accepted, call, events, finished, token},
    };

    fn traced(below: &Recorder) -> Trace<Recorder> {
        Trace::new(below.clone(), Metrics::default())
    }

    #[tokio::test]
    async fn generates_an_id_unless_one_is_given() {
        let below = Recorder::default();
        drop(traced(&below).oneshot(call()).await.unwrap());
        let mut named = call();
        named.request.request_id = "mine".into();
        drop(traced(&below).oneshot(named).await.unwrap());
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
            timings.admission = to_wire(Duration::from_millis(20));
            timings.worker_total = to_wire(Duration::from_millis(70));
            Ok::<_, ServiceError>(events([Ok(accepted("w", 3)), Ok(token()), Ok(last)]))
        });
        let stream = Trace::new(below, Metrics::default()).oneshot(call()).await.unwrap();
        let all: Vec<_> = stream.try_collect().await.unwrap();
        let Some(Event::Finished(Finished { timings, .. })) = &all[2].event else {
            panic!("{all:?}")
        };
        let timings = timings.as_ref().unwrap();
        let of = |d| from_wire(d).unwrap();
        assert_eq!(of(timings.total), Duration::from_millis(100));
        assert_eq!(of(timings.route), Duration::from_millis(10));
    }
}

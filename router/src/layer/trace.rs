//! One span, one log line and one metrics update per request, and the timings of the router's own
//! stages.

mod content;
mod request_log;

use std::{
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures::{FutureExt, StreamExt, future::BoxFuture};
use stoker_shared::{ServiceError, observed::Observed};
use tower::Service;
use tracing::Instrument;

use crate::{
    RequestLogConfig,
    call::{Call, EventStream, Generate},
    metrics::Metrics,
    requests::Requests,
};
use request_log::RequestLog;

/// What is recorded of all requests, and where.
#[derive(Debug, Default)]
pub(crate) struct RequestLogContext {
    metrics: Metrics,
    requests: Requests,
    /// Duration from which a request is logged as slow.
    slow: Option<Duration>,
    /// Whether spans have prompts and responses.
    content: bool,
}

impl RequestLogContext {
    pub(crate) fn new(
        config: &RequestLogConfig,
        metrics: &Metrics,
        requests: &Requests,
    ) -> Arc<Self> {
        Arc::new(Self {
            metrics: metrics.clone(),
            requests: requests.clone(),
            slow: config.slow_request_log,
            content: config.trace_content,
        })
    }
}

/// Traces a request from its arrival to its last event.
#[derive(Debug, Clone)]
pub(crate) struct Trace<S> {
    next: S,
    log: Arc<RequestLogContext>,
}

impl<S> Trace<S> {
    pub(crate) fn new(next: S, log: Arc<RequestLogContext>) -> Self {
        Self { next, log }
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
        let mut request_log = RequestLog::start(&mut call, &self.log);
        let span = call.span.clone();
        // Called inside the span, since a layer may log before its future is polled.
        let work = span.in_scope(|| self.next.call(call)).instrument(span);
        async move {
            match work.await {
                Ok(stream) => Ok(Observed::new(stream, request_log).boxed()),
                Err(error) => {
                    request_log.refused(&error);
                    Err(error)
                }
            }
        }
        .boxed()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use futures::TryStreamExt;
    use stoker_proto::{
        duration::or_zero,
        v1::{Finished, generate_response::Event},
    };
    use tower::{ServiceExt, service_fn};

    use super::*;
    use crate::{
        call::Stage,
        tests::support::{Recorder, accepted, call, events, finished, token},
    };

    fn traced(below: &Recorder) -> Trace<Recorder> {
        Trace::new(below.clone(), Arc::default())
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

    /// 50 ms in each stage that the layers below enter: they are in that stage alone, and the whole
    /// is their sum.
    #[tokio::test(start_paused = true)]
    async fn a_delay_at_each_boundary_is_in_one_stage() {
        const DELAY: Duration = Duration::from_millis(50);
        let stages = [Stage::Admission, Stage::Route, Stage::Attempt, Stage::Resume];
        for delayed in stages {
            let below = service_fn(move |call: Call| async move {
                let pause = async |stage| {
                    tokio::time::sleep(if stage == delayed { DELAY } else { Duration::ZERO }).await;
                };
                pause(Stage::Admission).await;
                call.timeline.enter(Stage::Route);
                pause(Stage::Route).await;
                call.timeline.enter(Stage::Attempt);
                pause(Stage::Attempt).await;
                call.timeline.enter(Stage::Resume);
                pause(Stage::Resume).await;
                call.timeline.enter(Stage::Attempt);
                Ok::<_, ServiceError>(events([Ok(accepted("w", 3)), Ok(token()), Ok(finished())]))
            });
            let stream = Trace::new(below, Arc::default()).oneshot(call()).await.unwrap();
            let all: Vec<_> = stream.try_collect().await.unwrap();
            let Some(Event::Finished(Finished { timings, .. })) = &all[2].event else {
                panic!("{all:?}")
            };
            let timings = timings.as_ref().unwrap();
            let of = |stage| or_zero(stage);
            let times = [timings.admission, timings.route, timings.attempts, timings.resume];
            let expected =
                stages.map(|stage| if stage == delayed { DELAY } else { Duration::ZERO });
            assert_eq!(times.map(of), expected, "{delayed:?}");
            assert_eq!(of(timings.total), DELAY);
        }
    }
}

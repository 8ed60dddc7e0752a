//! A bounded number of running streams, and a bounded queue in front of them.

use std::{
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, SystemTime},
};

use futures::{FutureExt, future::BoxFuture};
use stoker_proto::v1::GenerateResponse;
use stoker_shared::{ServiceError, deadline::Deadline, telemetry::names::span};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Instant,
};
use tower::{Service, ServiceExt};

use crate::{
    RouterConfig,
    call::{Call, EventStream, Generate, Observe, last_timings, observe},
    metrics::Metrics,
};

/// The places that all calls share.
#[derive(Debug, Clone)]
pub(crate) struct Places {
    /// First come, first served: tokio's semaphore hands permits out in order.
    running: Arc<Semaphore>,
    waiting: Arc<Semaphore>,
    config: Arc<RouterConfig>,
    metrics: Metrics,
}

impl Places {
    pub(crate) fn new(config: &RouterConfig, metrics: Metrics) -> Self {
        Self {
            running: Arc::new(Semaphore::new(config.max_concurrent as usize)),
            waiting: Arc::new(Semaphore::new(config.queue_size as usize)),
            config: Arc::new(config.clone()),
            metrics,
        }
    }

    /// Waits for a place. Whoever stops waiting leaves the queue at once.
    async fn take(self, deadline: Deadline) -> Result<OwnedSemaphorePermit, ServiceError> {
        // Nobody barges in: while others wait, every permit that comes free is theirs already.
        if let Ok(permit) = Arc::clone(&self.running).try_acquire_owned() {
            return Ok(permit);
        }
        let Ok(_queued) = self.waiting.try_acquire() else {
            return Err(self.refused("wait already"));
        };
        let _counted = self.metrics.queued();
        let limit = self.config.queue_timeout;
        let patience = deadline.remaining().map_or(limit, |left| left.min(limit));
        match tokio::time::timeout(patience, self.running.clone().acquire_owned()).await {
            Ok(Ok(permit)) => Ok(permit),
            Ok(Err(_)) => Err(ServiceError::Internal("admission is closed".into())),
            Err(_) if deadline.is_over() => {
                Err(ServiceError::DeadlineExceeded { stage: "while queued".into() })
            }
            Err(_) => Err(self.refused("wait, and none came free within --queue-timeout")),
        }
    }

    fn refused(&self, why: &str) -> ServiceError {
        let RouterConfig { max_concurrent, queue_size, .. } = *self.config;
        ServiceError::Overloaded {
            what: format!(
                "{max_concurrent} streams run (--max-concurrent) and up to {queue_size} \
                 requests (--queue-size) {why}"
            ),
            // Spread out: clients that were refused together must not come back together.
            retry_after: Duration::from_millis(rand::random_range(500..1_500)),
        }
    }
}

/// Lets a call pass when there is a place, and holds the place until the stream is over.
#[derive(Debug, Clone)]
pub(crate) struct Admission<S> {
    next: S,
    places: Places,
}

impl<S> Admission<S> {
    pub(crate) fn new(next: S, places: Places) -> Self {
        Self { next, places }
    }
}

impl<S: Generate> Service<Call> for Admission<S> {
    type Response = EventStream;
    type Error = ServiceError;
    type Future = BoxFuture<'static, Result<EventStream, ServiceError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ServiceError>> {
        // Waiting needs the call's deadline, so it happens in `call`, within the queue's bound.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, call: Call) -> Self::Future {
        let next = self.next.clone();
        let places = self.places.clone();
        async move {
            let (came, clock) = (Instant::now(), SystemTime::now());
            let (metrics, deadline) = (places.metrics.clone(), call.deadline);
            let permit = places.take(deadline).await?;
            let waited = came.elapsed();
            metrics.admitted(waited);
            call.trace.stage(span::ADMISSION, clock, waited);
            let stream = next.oneshot(call).await?;
            Ok(observe(stream, Admitted { waited, _permit: permit }))
        }
        .boxed()
    }
}

struct Admitted {
    waited: Duration,
    _permit: OwnedSemaphorePermit,
}

impl Observe for Admitted {
    fn event(&mut self, event: &mut GenerateResponse) {
        if let Some(timings) = last_timings(event) {
            timings.admission = self.waited.try_into().ok();
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use futures::{StreamExt, future::join_all, stream};
    use tokio::sync::mpsc;
    use tower::service_fn;

    use super::*;
    use crate::layer::support::{call, events, finished, token};

    fn config(max_concurrent: u32, queue_size: u32) -> RouterConfig {
        RouterConfig {
            max_concurrent,
            queue_size,
            queue_timeout: Duration::from_secs(10),
            ..Default::default()
        }
    }

    /// Answers with a stream that never ends by itself.
    fn endless(config: &RouterConfig) -> (Admission<impl Generate>, Places) {
        let places = Places::new(config, Metrics::default());
        let below = service_fn(|_: Call| async {
            let tokens = stream::iter([Ok(token())]).chain(stream::pending());
            Ok::<_, ServiceError>(tokens.boxed())
        });
        (Admission::new(below, places.clone()), places)
    }

    #[tokio::test(start_paused = true)]
    async fn the_place_is_held_until_the_last_event() {
        let places = Places::new(&config(1, 0), Metrics::default());
        let below = service_fn(|_: Call| async {
            Ok::<_, ServiceError>(events([Ok(token()), Ok(finished())]))
        });
        let admission = Admission::new(below, places.clone());
        let mut stream = admission.clone().oneshot(call()).await.unwrap();
        assert!(stream.next().await.is_some());
        assert_eq!(places.running.available_permits(), 0);
        assert!(stream.next().await.is_some());
        assert!(stream.next().await.is_none());
        assert_eq!(places.running.available_permits(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_full_queue_refuses_and_says_when_to_come_back() {
        let (admission, _) = endless(&config(1, 1));
        let _running = admission.clone().oneshot(call()).await.unwrap();
        let mut queued = admission.clone().oneshot(call()).boxed();
        assert!(futures::poll!(&mut queued).is_pending());
        match admission.clone().oneshot(call()).await.err() {
            Some(ServiceError::Overloaded { what, retry_after }) => {
                assert!(what.contains("1 streams run"), "{what}");
                assert!(retry_after >= Duration::from_millis(500));
            }
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_queue_is_first_come_first_served() {
        let (order, mut came) = mpsc::unbounded_channel();
        let below = service_fn(move |call: Call| {
            order.send(call.request.request_id).unwrap();
            async { Ok::<_, ServiceError>(events([Ok(finished())])) }
        });
        let admission = Admission::new(below, Places::new(&config(1, 100), Metrics::default()));
        let calls = (0..50).map(|i| {
            let mut call = call();
            call.request.request_id = i.to_string();
            let admission = admission.clone();
            async move {
                let stream = admission.oneshot(call).await.unwrap();
                // Others get in line before this place comes free.
                tokio::task::yield_now().await;
                stream.collect::<Vec<_>>().await
            }
        });
        join_all(calls).await;
        drop(admission);
        let mut seen = Vec::new();
        while let Some(id) = came.recv().await {
            seen.push(id.parse::<u32>().unwrap());
        }
        assert_eq!(seen, (0..50).collect::<Vec<_>>());
    }

    #[tokio::test(start_paused = true)]
    async fn a_deadline_that_passes_in_the_queue_frees_the_place_in_it() {
        let (admission, places) = endless(&config(1, 1));
        let running = admission.clone().oneshot(call()).await.unwrap();
        let hurried = Call { deadline: Deadline::after(Duration::from_secs(1)), ..call() };
        let error = admission.clone().oneshot(hurried).await.err();
        let stage = "while queued".into();
        assert_eq!(error, Some(ServiceError::DeadlineExceeded { stage }));
        assert_eq!(places.waiting.available_permits(), 1);
        // The one that left is not handed the next place either.
        drop(running);
        assert!(admission.oneshot(call()).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_longer_than_the_queue_timeout() {
        let (admission, _) = endless(&config(1, 1));
        let _running = admission.clone().oneshot(call()).await.unwrap();
        let start = Instant::now();
        let error = admission.oneshot(call()).await.err();
        assert!(matches!(error, Some(ServiceError::Overloaded { .. })));
        assert_eq!(start.elapsed(), Duration::from_secs(10));
    }
}

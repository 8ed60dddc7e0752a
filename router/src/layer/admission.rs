//! A bounded number of running streams, and a bounded and fair queue in front of them.

mod slots;
mod wait_estimate;

use std::task::{Context, Poll};

use futures::{FutureExt, StreamExt, future::BoxFuture};
use stoker_proto::v1::GenerateRequest;
use stoker_shared::{
    ServiceError,
    observed::{Observe, Observed},
    validate,
};
use tokio::time::Instant;
use tower::{Service, ServiceExt};

use crate::{
    call::{Call, EventStream, Generate, Stage},
    metrics::Metrics,
    policy::{ModelStats, RequestCost},
};
pub(crate) use slots::Slots;
use slots::{Slot, SlotRequest};

/// Admits a call once it has a slot, and holds the slot until the stream ends.
#[derive(Debug, Clone)]
pub(crate) struct Admission<S> {
    next: S,
    slots: Slots,
    metrics: Metrics,
}

impl<S> Admission<S> {
    pub(crate) fn new(next: S, slots: Slots, metrics: Metrics) -> Self {
        Self { next, slots, metrics }
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
        let Self { next, slots, metrics } = self.clone();
        async move {
            let queued_at = Instant::now();
            let request = SlotRequest {
                priority: validate::priority(&call.request),
                tenant: &call.tenant,
                tokens: tokens(&call.request),
            };
            let slot = slots.acquire(request, call.deadline).await?;
            metrics.admitted(queued_at.elapsed());
            call.timeline.enter(Stage::Route);
            let stream = next.oneshot(call).await?;
            Ok(Observed::new(stream, Admitted(slot)).boxed())
        }
        .boxed()
    }
}

/// Estimates the tokens of a request, prompt and completions, for fair queueing between tenants and
/// for their limits.
pub(crate) fn tokens(request: &GenerateRequest) -> u64 {
    // The model is not resolved yet, so its statistics cannot be used.
    let RequestCost { prompt, completions } = ModelStats::default().estimate(request);
    completions.into_iter().fold(prompt, u64::saturating_add)
}

/// Holds the slot.
struct Admitted(#[expect(dead_code, reason = "only dropped")] Slot);

impl Observe for Admitted {}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use std::time::Duration;

    use futures::{future::join_all, stream};
    use stoker_shared::deadline::Deadline;
    use tokio::sync::mpsc;
    use tower::service_fn;

    use super::*;
    use crate::{
        RouterConfig,
        tests::support::{call, events, finished, token},
    };

    fn config(max_concurrent_streams: u32, queue_size: u32) -> RouterConfig {
        RouterConfig {
            max_concurrent_streams,
            queue_size,
            queue_timeout: Duration::from_secs(10),
            ..Default::default()
        }
    }

    fn admission<S>(below: S, config: &RouterConfig) -> Admission<S> {
        let metrics = Metrics::default();
        Admission::new(below, Slots::new(config, metrics.clone()), metrics)
    }

    /// Returns an admission layer whose streams never end by themselves.
    fn endless(config: &RouterConfig) -> Admission<impl Generate> {
        let below = service_fn(|_: Call| async {
            let tokens = stream::iter([Ok(token())]).chain(stream::pending());
            Ok::<_, ServiceError>(tokens.boxed())
        });
        admission(below, config)
    }

    #[tokio::test(start_paused = true)]
    async fn the_slot_is_held_until_the_last_event() {
        let below = service_fn(|_: Call| async {
            Ok::<_, ServiceError>(events([Ok(token()), Ok(finished())]))
        });
        let admission = admission(below, &config(1, 0));
        let slots = admission.slots.clone();
        let mut stream = admission.clone().oneshot(call()).await.unwrap();
        assert!(stream.next().await.is_some());
        assert_eq!(slots.free_and_waiting(), (0, 0));
        assert!(stream.next().await.is_some());
        assert!(stream.next().await.is_none());
        assert_eq!(slots.free_and_waiting(), (1, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_full_queue_refuses_with_retry_after() {
        let admission = endless(&config(1, 1));
        let _running = admission.clone().oneshot(call()).await.unwrap();
        let mut queued = admission.clone().oneshot(call()).boxed();
        assert!(futures::poll!(&mut queued).is_pending());
        match admission.clone().oneshot(call()).await.err() {
            Some(ServiceError::Overloaded { what, retry_after }) => {
                assert!(what.contains("1 streams are running"), "{what}");
                assert!(retry_after >= Duration::from_millis(500));
            }
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_queue_is_first_come_first_served() {
        let (sender, mut order) = mpsc::channel(50);
        let below = service_fn(move |call: Call| {
            sender.try_send(call.request.request_id).unwrap();
            async { Ok::<_, ServiceError>(events([Ok(finished())])) }
        });
        let admission = admission(below, &config(1, 100));
        let calls = (0..50).map(|i| {
            let mut call = call();
            call.request.request_id = i.to_string();
            let admission = admission.clone();
            async move {
                let stream = admission.oneshot(call).await.unwrap();
                // Other calls enter the queue before this slot is released.
                tokio::task::yield_now().await;
                stream.collect::<Vec<_>>().await
            }
        });
        join_all(calls).await;
        drop(admission);
        let mut seen = Vec::new();
        while let Some(id) = order.recv().await {
            seen.push(id.parse::<u32>().unwrap());
        }
        assert_eq!(seen, (0..50).collect::<Vec<_>>());
    }

    #[tokio::test(start_paused = true)]
    async fn a_deadline_that_passes_in_the_queue_removes_the_call_from_it() {
        let admission = endless(&config(1, 1));
        let running = admission.clone().oneshot(call()).await.unwrap();
        let hurried = Call { deadline: Deadline::after(Duration::from_secs(1)), ..call() };
        let error = admission.clone().oneshot(hurried).await.err();
        let stage = "while queued".into();
        assert_eq!(error, Some(ServiceError::DeadlineExceeded { stage }));
        assert_eq!(admission.slots.free_and_waiting(), (0, 0));
        // The next slot is not granted to the call that left.
        drop(running);
        assert!(admission.oneshot(call()).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn no_call_waits_longer_than_the_queue_timeout() {
        let admission = endless(&config(1, 1));
        let _running = admission.clone().oneshot(call()).await.unwrap();
        let start = Instant::now();
        let error = admission.oneshot(call()).await.err();
        assert!(matches!(error, Some(ServiceError::Overloaded { .. })));
        assert_eq!(start.elapsed(), Duration::from_secs(10));
    }

    #[tokio::test(start_paused = true)]
    async fn a_tenant_is_limited_to_its_maximum_of_requests() {
        let tenant_header = Some("x-tenant".to_owned());
        let tenant_max_concurrent_streams = Some(2);
        let config = RouterConfig { tenant_header, tenant_max_concurrent_streams, ..config(1, 10) };
        let admission = endless(&config);
        let of = |tenant: &str| {
            let call = Call { tenant: tenant.into(), ..call() };
            admission.clone().oneshot(call).boxed()
        };
        let running = of("a").await.unwrap();
        let mut waiting = [of("a"), of("b")];
        for call in &mut waiting {
            assert!(futures::poll!(call).is_pending());
        }
        let Some(ServiceError::Overloaded { what, .. }) = of("a").await.err() else {
            panic!("a request above the limit was admitted")
        };
        assert!(what.starts_with("2 requests of this tenant are running or waiting"), "{what}");
        // Both running and waiting requests count until they are dropped.
        drop(running);
        drop(waiting);
        assert!(of("a").await.is_ok());
        assert!(admission.slots.has_no_tenants());
    }

    #[test]
    fn a_request_costs_its_prompt_and_the_limits_of_its_choices() {
        use stoker_proto::v1::{Sampling, Stopping};
        let request = GenerateRequest {
            stopping: Some(Stopping { max_tokens: Some(100), ..Default::default() }),
            sampling: Some(Sampling { num_sequences: Some(3), ..Default::default() }),
            ..*call().request
        };
        assert_eq!(tokens(&request), 4 + 300);
    }
}

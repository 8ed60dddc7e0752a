//! The layer of the drain gate: the entrance of the stack, which a drain closes.

use std::task::{Context, Poll};

use futures::{FutureExt, StreamExt, future::BoxFuture};
use stoker_shared::{
    ServiceError,
    drain::{CallGuard, DrainGate},
    observed::{Observe, Observed},
};
use tower::Service;

use crate::call::{Call, EventStream, Generate};

/// Admits calls while its gate is open.
#[derive(Debug, Clone)]
pub(crate) struct Gated<S> {
    next: S,
    gate: DrainGate,
}

impl<S> Gated<S> {
    pub(crate) fn new(next: S, gate: DrainGate) -> Self {
        Self { next, gate }
    }
}

impl<S: Generate> Service<Call> for Gated<S> {
    type Response = EventStream;
    type Error = ServiceError;
    type Future = BoxFuture<'static, Result<EventStream, ServiceError>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ServiceError>> {
        self.next.poll_ready(cx)
    }

    fn call(&mut self, call: Call) -> Self::Future {
        let Some((guard, cut)) = self.gate.enter() else {
            let error = ServiceError::unavailable("the router is draining");
            return futures::future::err(error).boxed();
        };
        let work = self.next.call(call);
        let cut_now = self.gate.cut().clone();
        async move {
            let stream = cut_now.run_until_cancelled(work).await.ok_or_else(cut_off)??;
            let stream = cut.end(stream, || Err(cut_off()));
            Ok(Observed::new(stream, InFlight { _call: guard }).boxed())
        }
        .boxed()
    }
}

/// Holds the guard of a call while its stream runs.
struct InFlight {
    _call: CallGuard,
}

impl Observe for InFlight {}

fn cut_off() -> ServiceError {
    ServiceError::unavailable("the router shut down before the response was complete")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use std::pin::pin;

    use futures::stream;
    use tower::{ServiceExt, service_fn};

    use super::*;
    use crate::tests::support::{call, events, token};

    fn endless(gate: &DrainGate) -> Gated<impl Generate> {
        let below = service_fn(|_: Call| async {
            let tokens = stream::iter([Ok(token())]).chain(stream::pending());
            Ok::<_, ServiceError>(tokens.boxed())
        });
        Gated::new(below, gate.clone())
    }

    #[tokio::test]
    async fn a_call_is_in_flight_until_its_stream_has_ended() {
        let gate = DrainGate::default();
        let below = service_fn(|_: Call| async { Ok::<_, ServiceError>(events([Ok(token())])) });
        let service = Gated::new(below, gate.clone());
        let stream = service.clone().oneshot(call()).await.unwrap();
        gate.close();
        let refused = service.oneshot(call()).await.err();
        assert!(matches!(refused, Some(ServiceError::Unavailable { .. })));
        let mut empty = pin!(gate.drained(None));
        assert!(futures::poll!(&mut empty).is_pending());
        stream.collect::<Vec<_>>().await;
        assert_eq!(empty.await, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn cutting_off_ends_streams_and_waiting_calls() {
        let gate = DrainGate::default();
        let mut stream = endless(&gate).oneshot(call()).await.unwrap();
        assert!(stream.next().await.unwrap().is_ok());
        let never = service_fn(|_: Call| futures::future::pending());
        let mut waiting = Gated::new(never, gate.clone()).oneshot(call()).boxed();
        assert!(futures::poll!(&mut waiting).is_pending());
        gate.cut_off();
        assert_eq!(stream.next().await.unwrap().unwrap_err(), cut_off());
        assert!(stream.next().await.is_none());
        assert_eq!(waiting.await.err(), Some(cut_off()));
        assert_eq!(gate.drained(None).await, 0);
    }
}

//! The entrance of the stack, which a drain closes.

use std::{
    collections::HashMap,
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use futures::{
    FutureExt, StreamExt,
    future::BoxFuture,
    stream::{self, AbortHandle, AbortRegistration, Abortable},
};
use stoker_shared::ServiceError;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tower::Service;

use crate::call::{Call, EventStream, Generate, Observe, observe};

/// Counts the calls in flight. Once closed, it refuses new ones.
#[derive(Debug, Clone, Default)]
pub(crate) struct DrainGate(Arc<GateState>);

#[derive(Debug, Default)]
struct GateState {
    in_flight: Mutex<InFlight>,
    departed: Notify,
    draining: CancellationToken,
    closed: CancellationToken,
    cut: CancellationToken,
}

#[derive(Debug, Default)]
struct InFlight {
    next: u64,
    streams: HashMap<u64, AbortHandle>,
    /// Number of responses that are not fully delivered to their clients.
    undelivered: usize,
}

impl InFlight {
    fn calls(&self) -> usize {
        // Most calls are in both counts.
        self.streams.len().max(self.undelivered)
    }
}

impl DrainGate {
    /// Begins a drain: clients get GOAWAY, but calls that they have begun are still admitted until the
    /// gate closes.
    pub(crate) fn begin_drain(&self) {
        self.0.draining.cancel();
    }

    /// Refuses new calls from now on.
    pub(crate) fn close(&self) {
        self.begin_drain();
        // Under the lock, so that every call is either counted or refused.
        let _locked = self.0.in_flight();
        self.0.closed.cancel();
    }

    /// Returns the token that is cancelled when a drain begins.
    pub(crate) fn draining(&self) -> &CancellationToken {
        &self.0.draining
    }

    /// Returns the token that is cancelled when calls are cut off.
    pub(crate) fn cut(&self) -> &CancellationToken {
        &self.0.cut
    }

    /// Waits until no call is in flight, for at most `timeout`. Returns the number of calls still
    /// in flight.
    pub(crate) async fn drained(&self, timeout: Option<Duration>) -> usize {
        let empty = async {
            loop {
                let mut departed = pin!(self.0.departed.notified());
                departed.as_mut().enable();
                if self.0.in_flight().calls() == 0 {
                    break;
                }
                departed.await;
            }
        };
        match timeout {
            Some(timeout) => {
                let _ = tokio::time::timeout(timeout, empty).await;
            }
            None => empty.await,
        }
        self.0.in_flight().calls()
    }

    /// Counts a response as undelivered until the guard is dropped. A drain waits for it.
    pub(crate) fn undelivered(&self) -> Undelivered {
        self.0.in_flight().undelivered += 1;
        Undelivered(Arc::clone(&self.0))
    }

    /// Ends all calls in flight with UNAVAILABLE.
    pub(crate) fn cut_off(&self) {
        self.close();
        self.0.cut.cancel();
        for stream in self.0.in_flight().streams.values() {
            stream.abort();
        }
    }

    fn enter(&self) -> Result<(DrainGuard, AbortRegistration), ServiceError> {
        let mut in_flight = self.0.in_flight();
        if self.0.closed.is_cancelled() {
            return Err(ServiceError::unavailable("the router is draining"));
        }
        let id = in_flight.next;
        in_flight.next += 1;
        let (handle, registration) = AbortHandle::new_pair();
        in_flight.streams.insert(id, handle);
        let gate = Arc::clone(&self.0);
        Ok((DrainGuard { gate, id }, registration))
    }
}

impl GateState {
    fn in_flight(&self) -> MutexGuard<'_, InFlight> {
        self.in_flight.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Guard of a response that is not fully delivered to its client.
pub(crate) struct Undelivered(Arc<GateState>);

impl Drop for Undelivered {
    fn drop(&mut self) {
        self.0.in_flight().undelivered -= 1;
        self.0.departed.notify_waiters();
    }
}

/// Guard of one call in flight.
struct DrainGuard {
    gate: Arc<GateState>,
    id: u64,
}

impl Observe for DrainGuard {}

impl Drop for DrainGuard {
    fn drop(&mut self) {
        self.gate.in_flight().streams.remove(&self.id);
        self.gate.departed.notify_waiters();
    }
}

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
        let (guard, registration) = match self.gate.enter() {
            Ok(entered) => entered,
            Err(error) => return futures::future::err(error).boxed(),
        };
        let work = self.next.call(call);
        let cut = self.gate.0.cut.clone();
        async move {
            let stream = cut.run_until_cancelled(work).await.ok_or_else(cut_off)??;
            Ok(observe(abortable(stream, registration), guard))
        }
        .boxed()
    }
}

fn cut_off() -> ServiceError {
    ServiceError::unavailable("the router shut down before the response was complete")
}

/// Ends `stream` with an error when it is cut off. Costs one atomic load per token, and no lock.
fn abortable(stream: EventStream, registration: AbortRegistration) -> EventStream {
    let mut stream = Abortable::new(stream, registration);
    stream::poll_fn(move |cx| match stream.poll_next_unpin(cx) {
        Poll::Ready(None) if stream.is_aborted() => Poll::Ready(Some(Err(cut_off()))),
        item => item,
    })
    .boxed()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use tower::{ServiceExt, service_fn};

    use super::*;
    use crate::layer::support::{call, events, token};

    fn endless(gate: &DrainGate) -> Gated<impl Generate> {
        let below = service_fn(|_: Call| async {
            let tokens = stream::iter([Ok(token())]).chain(stream::pending());
            Ok::<_, ServiceError>(tokens.boxed())
        });
        Gated::new(below, gate.clone())
    }

    #[tokio::test(start_paused = true)]
    async fn a_closed_gate_refuses_calls_and_waits_for_those_in_flight() {
        let gate = DrainGate::default();
        let below = service_fn(|_: Call| async { Ok::<_, ServiceError>(events([Ok(token())])) });
        let service = Gated::new(below, gate.clone());
        let stream = service.clone().oneshot(call()).await.unwrap();
        gate.close();
        assert!(matches!(
            service.oneshot(call()).await.err(),
            Some(ServiceError::Unavailable { .. })
        ));
        assert_eq!(gate.drained(Some(Duration::from_secs(1))).await, 1);
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

//! The entrance of a process, which a drain closes: it counts the calls in flight, refuses new ones,
//! and cuts off those that take too long.

use std::{
    collections::HashMap,
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::Poll,
    time::Duration,
};

use futures::{
    FutureExt, Stream, StreamExt, future,
    stream::{self, AbortHandle, AbortRegistration, Abortable},
};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// Counts the calls in flight. Once closed, it refuses new ones. Clones share one state.
#[derive(Debug, Clone, Default)]
pub struct DrainGate(Arc<GateState>);

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
    calls: HashMap<u64, AbortHandle>,
    /// Number of responses that are not fully delivered to their clients.
    undelivered: usize,
}

impl InFlight {
    fn count(&self) -> usize {
        // Most calls are in both counts.
        self.calls.len().max(self.undelivered)
    }
}

impl DrainGate {
    /// Begins a drain: clients get GOAWAY, but calls that they have begun are still admitted until the
    /// gate closes.
    pub fn begin_drain(&self) {
        self.0.draining.cancel();
    }

    /// Refuses new calls from now on.
    pub fn close(&self) {
        self.begin_drain();
        // Under the lock, so that every call is either counted or refused.
        let _locked = self.0.in_flight();
        self.0.closed.cancel();
    }

    /// Returns the token that is cancelled when a drain begins.
    pub fn draining(&self) -> &CancellationToken {
        &self.0.draining
    }

    /// Returns the token that is cancelled when calls are cut off.
    pub fn cut(&self) -> &CancellationToken {
        &self.0.cut
    }

    /// Counts a call, or returns none if the gate is closed. The call is in flight until the guard is
    /// dropped.
    pub fn enter(&self) -> Option<(CallGuard, CutOff)> {
        let mut in_flight = self.0.in_flight();
        if self.0.closed.is_cancelled() {
            return None;
        }
        let id = in_flight.next;
        in_flight.next += 1;
        let (handle, registration) = AbortHandle::new_pair();
        in_flight.calls.insert(id, handle);
        Some((CallGuard { gate: Arc::clone(&self.0), id }, CutOff(registration)))
    }

    /// Counts a response as undelivered until the guard is dropped. A drain waits for it.
    pub fn undelivered(&self) -> Undelivered {
        self.0.in_flight().undelivered += 1;
        Undelivered(Arc::clone(&self.0))
    }

    /// Waits until no call is in flight, for at most `timeout`. Returns the number of calls still
    /// in flight.
    pub async fn drained(&self, timeout: Option<Duration>) -> usize {
        let empty = async {
            loop {
                let mut departed = pin!(self.0.departed.notified());
                departed.as_mut().enable();
                if self.0.in_flight().count() == 0 {
                    break;
                }
                departed.await;
            }
        };
        match timeout {
            Some(timeout) => drop(tokio::time::timeout(timeout, empty).await),
            None => empty.await,
        }
        self.0.in_flight().count()
    }

    /// Ends the streams of all calls in flight with an error.
    pub fn cut_off(&self) {
        self.close();
        self.0.cut.cancel();
        for call in self.0.in_flight().calls.values() {
            call.abort();
        }
    }
}

impl GateState {
    fn in_flight(&self) -> MutexGuard<'_, InFlight> {
        self.in_flight.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Guard of one call in flight.
#[derive(Debug)]
pub struct CallGuard {
    gate: Arc<GateState>,
    id: u64,
}

impl Drop for CallGuard {
    fn drop(&mut self) {
        self.gate.in_flight().calls.remove(&self.id);
        self.gate.departed.notify_waiters();
    }
}

/// Guard of a response that is not fully delivered to its client.
#[derive(Debug)]
pub struct Undelivered(Arc<GateState>);

impl Drop for Undelivered {
    fn drop(&mut self) {
        self.0.in_flight().undelivered -= 1;
        self.0.departed.notify_waiters();
    }
}

/// Whether a call is cut off.
#[derive(Debug)]
pub struct CutOff(AbortRegistration);

impl CutOff {
    /// Ends `stream` with `last` when the call is cut off, unless it has just ended by itself. Costs
    /// one atomic load per item, and no lock.
    pub fn end<S: Stream>(self, stream: S, last: fn() -> S::Item) -> impl Stream<Item = S::Item> {
        let mut stream = Box::pin(stream);
        let handle = self.0.handle();
        let mut cut = Abortable::new(future::pending::<()>(), self.0);
        let mut ended = false;
        stream::poll_fn(move |cx| {
            if ended {
                return Poll::Ready(None);
            }
            let item = stream.poll_next_unpin(cx);
            // Polled only where it must wake the task.
            let is_cut = handle.is_aborted() || item.is_pending() && cut.poll_unpin(cx).is_ready();
            if is_cut && !matches!(item, Poll::Ready(None)) {
                ended = true;
                return Poll::Ready(Some(last()));
            }
            item
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_closed_gate_refuses_calls_and_waits_for_those_in_flight() {
        let gate = DrainGate::default();
        let (guard, _cut) = gate.enter().unwrap();
        let response = gate.undelivered();
        gate.begin_drain();
        drop(gate.enter().expect("a drain that has only begun admits calls"));
        gate.close();
        assert!(gate.enter().is_none());
        let second = Some(Duration::from_secs(1));
        assert_eq!(gate.drained(second).await, 1, "the call and its response count once");
        drop(guard);
        assert_eq!(gate.drained(second).await, 1, "the response is not read yet");
        let mut empty = pin!(gate.drained(None));
        assert!(futures::poll!(&mut empty).is_pending());
        drop(response);
        assert_eq!(empty.await, 0);
    }

    #[tokio::test]
    async fn cutting_off_ends_streams_once() {
        let gate = DrainGate::default();
        let (_guard, cut) = gate.enter().unwrap();
        let mut stream = pin!(cut.end(stream::iter([1]).chain(stream::pending()), || 0));
        assert_eq!(stream.next().await, Some(1));
        assert!(futures::poll!(stream.next()).is_pending());
        gate.cut_off();
        assert_eq!(stream.next().await, Some(0));
        assert_eq!(stream.next().await, None);
        assert!(gate.enter().is_none() && gate.cut().is_cancelled());
    }

    #[tokio::test]
    async fn a_stream_that_ends_before_has_no_other_end() {
        let gate = DrainGate::default();
        let (guard, cut) = gate.enter().unwrap();
        let mut stream = pin!(cut.end(stream::iter([1]), || 0));
        assert_eq!(stream.next().await, Some(1));
        gate.cut_off();
        assert_eq!(stream.next().await, None);
        drop(guard);
    }
}

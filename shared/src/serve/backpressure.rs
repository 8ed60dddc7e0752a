//! Responses whose clients read slowly, or do not read at all.
//!
//! HTTP/2 polls a response for its next event only when its client has a flow-control window for
//! it. A client that does not read would keep everything that its response holds: a slot of a
//! worker, a load reservation, an admission permit. So a response that is not polled is read here,
//! into memory that is accounted for, and its resources are released as soon as the work is done. A
//! response of which the client reads nothing for the write-stall timeout is ended.

use std::{
    collections::VecDeque,
    future::poll_fn,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    task::{Context, Poll, Wake, Waker, ready},
    time::Duration,
};

use futures::{Stream, StreamExt, stream::BoxStream, task::AtomicWaker};
use prometheus_client::metrics::counter::Counter;
use prost::Message;
use tokio::{
    sync::Notify,
    time::{Instant, sleep_until},
};
use tokio_util::task::AbortOnDropHandle;
use tonic::Status;

use crate::memory::{MemoryBudget, MemoryReservation};

/// A response with a ready event that is not polled for this long is read on behalf of its client.
const SLOW_READER_DELAY: Duration = Duration::from_secs(1);
/// Interval of the checks for slow readers.
const CHECK_INTERVAL: Duration = Duration::from_millis(500);
/// Maximum number of bytes that are buffered for one client: some thousand events.
const MAX_BUFFERED: u64 = 512 << 10;
/// Approximate overhead of a buffered event, in bytes.
const EVENT_OVERHEAD: usize = 128;

/// A resource that is held until the client has read the whole response, or the response is ended.
pub type ResponseGuard = Box<dyn Send>;

/// Monitors all responses of a process. Clones share the same state.
#[derive(Debug, Clone)]
pub struct Backpressure(Arc<Monitor>);

#[derive(Debug)]
struct Monitor {
    responses: Arc<Mutex<Vec<Weak<dyn SlowReaderCheck>>>>,
    timeout: Duration,
    memory: MemoryBudget,
    ended: Counter,
    _checks: AbortOnDropHandle<()>,
}

/// A response with any type of events.
trait SlowReaderCheck: Send + Sync {
    /// Starts to read the response if its client is slow.
    fn check(self: Arc<Self>);
}

impl Backpressure {
    /// Ends responses of which clients read nothing for `timeout`. Buffered events count against
    /// `memory`. Must be called within a tokio runtime.
    pub fn new(timeout: Duration, memory: MemoryBudget) -> Self {
        let responses = Arc::<Mutex<Vec<Weak<dyn SlowReaderCheck>>>>::default();
        let checks = tokio::spawn(check_for_slow_readers(Arc::clone(&responses)));
        Self(Arc::new(Monitor {
            responses,
            timeout,
            memory,
            ended: Counter::default(),
            _checks: AbortOnDropHandle::new(checks),
        }))
    }

    /// Returns the counter of responses that were ended.
    pub fn ended(&self) -> Counter {
        self.0.ended.clone()
    }

    /// Monitors `stream`. `guard` is dropped once the client has read the last event, or the
    /// response is ended.
    pub fn watch<T: Message + 'static>(
        &self,
        stream: BoxStream<'static, Result<T, Status>>,
        guard: ResponseGuard,
    ) -> Response<T> {
        let response = Arc::new(MonitoredResponse {
            state: Mutex::new(State {
                stream: Some(stream),
                buffered: VecDeque::new(),
                reservation: self.0.memory.reservation(),
                is_buffering: false,
                ended_with: None,
                guard: Some(guard),
                ready: Arc::new(ReadySince::now()),
            }),
            client_activity: Notify::new(),
            timeout: self.0.timeout,
            ended: self.0.ended.clone(),
        });
        let check: Arc<dyn SlowReaderCheck> = Arc::clone(&response) as _;
        lock(&self.0.responses).push(Arc::downgrade(&check));
        Response(response)
    }
}

async fn check_for_slow_readers(responses: Arc<Mutex<Vec<Weak<dyn SlowReaderCheck>>>>) {
    loop {
        tokio::time::sleep(CHECK_INTERVAL).await;
        let mut open = Vec::new();
        lock(&responses).retain(|response| match response.upgrade() {
            Some(response) => {
                open.push(response);
                true
            }
            None => false,
        });
        for response in open {
            response.check();
        }
    }
}

fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The events of a response as the client reads them. Dropping it ends the response.
#[derive(Debug)]
pub struct Response<T>(Arc<MonitoredResponse<T>>);

#[derive(Debug)]
struct MonitoredResponse<T> {
    state: Mutex<State<T>>,
    /// Notified when the client polls again or is gone.
    client_activity: Notify,
    timeout: Duration,
    ended: Counter,
}

type Item<T> = Result<T, Status>;

struct State<T> {
    /// `None` after the last event.
    stream: Option<BoxStream<'static, Item<T>>>,
    /// Events that were read on behalf of the client, each with its reserved bytes.
    buffered: VecDeque<(Item<T>, u64)>,
    reservation: MemoryReservation,
    is_buffering: bool,
    /// The error for a client that polls after the response was ended.
    ended_with: Option<Status>,
    guard: Option<ResponseGuard>,
    ready: Arc<ReadySince>,
}

/// Time since when the response could have been polled: since its last event was read, or since the
/// next one was ready. The second matters because HTTP/2 polls for more than it can send: a client
/// may have waited for an event and not poll for it when it is ready.
#[derive(Debug, Default)]
struct ReadySince {
    poller: AtomicWaker,
    /// `None` while the client waits for an event.
    since: Mutex<Option<Instant>>,
}

impl ReadySince {
    fn now() -> Self {
        Self { since: Mutex::new(Some(Instant::now())), ..Self::default() }
    }

    fn since(&self) -> Option<Instant> {
        *lock(&self.since)
    }

    fn set(&self, since: Option<Instant>) {
        *lock(&self.since) = since;
    }
}

impl Wake for ReadySince {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        lock(&self.since).get_or_insert_with(Instant::now);
        self.poller.wake();
    }
}

impl<T> std::fmt::Debug for State<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State").field("buffered", &self.buffered.len()).finish_non_exhaustive()
    }
}

impl<T> State<T> {
    fn end(&mut self) {
        (self.stream, self.guard) = (None, None);
        self.buffered.clear();
        let _ = self.reservation.set(0);
    }
}

impl<T: Message + 'static> State<T> {
    /// Polls the next event for the client.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Item<T>>> {
        self.ready.set(None);
        let item = if let Some(status) = self.ended_with.take() {
            Some(Err(status))
        } else if let Some((item, bytes)) = self.buffered.pop_front() {
            self.reservation.shrink(bytes);
            Some(item)
        } else if let Some(stream) = &mut self.stream {
            self.ready.poller.register(cx.waker());
            let waker = Waker::from(Arc::clone(&self.ready));
            ready!(stream.poll_next_unpin(&mut Context::from_waker(&waker)))
        } else {
            None
        };
        match &item {
            Some(_) => self.ready.set(Some(Instant::now())),
            None => self.end(),
        }
        Poll::Ready(item)
    }

    /// Buffers events for a client that has not polled since `since`. Ready once it polls again or
    /// is gone.
    fn poll_for_client(&mut self, since: Instant, cx: &mut Context<'_>) -> Poll<()> {
        if self.ready.since() != Some(since) {
            self.is_buffering = false;
            return Poll::Ready(());
        }
        // Events beyond the limit are not read, so flow control slows down their sender.
        while self.reservation.bytes() < MAX_BUFFERED
            && let Some(stream) = &mut self.stream
        {
            match ready!(stream.poll_next_unpin(cx)) {
                Some(item) => {
                    let size = item.as_ref().map_or(0, Message::encoded_len) + EVENT_OVERHEAD;
                    let grown = self.reservation.grow(size as u64);
                    self.buffered.push_back((item, if grown { size as u64 } else { 0 }));
                    if !grown {
                        return Poll::Pending;
                    }
                }
                None => self.stream = None,
            }
        }
        Poll::Pending
    }
}

impl<T: Message + 'static> MonitoredResponse<T> {
    /// Buffers events until the client polls again or is gone, or the response is ended.
    async fn read_for_client(self: Arc<Self>, since: Instant) {
        let deadline = sleep_until(since + self.timeout);
        tokio::pin!(deadline);
        loop {
            // Enabled before the state is read, so that no notification is missed.
            let activity = self.client_activity.notified();
            tokio::pin!(activity);
            activity.as_mut().enable();
            tokio::select! {
                biased;
                () = poll_fn(|cx| lock(&self.state).poll_for_client(since, cx)) => return,
                () = activity => {}
                () = &mut deadline => break,
            }
        }
        let mut state = lock(&self.state);
        if state.ready.since() != Some(since) {
            state.is_buffering = false;
            return;
        }
        state.end();
        let waited = self.timeout.as_secs_f64();
        state.ended_with = Some(Status::cancelled(format!(
            "the client read nothing of this response for {waited} s (--write-stall-timeout)"
        )));
        self.ended.inc();
        tracing::info!(waited, "a response was ended: its client reads nothing of it");
    }
}

impl<T: Message + 'static> SlowReaderCheck for MonitoredResponse<T> {
    fn check(self: Arc<Self>) {
        let since = {
            let mut state = lock(&self.state);
            let slow = state.ready.since().filter(|since| since.elapsed() >= SLOW_READER_DELAY);
            let Some(since) = slow.filter(|_| !state.is_buffering && state.guard.is_some()) else {
                return;
            };
            state.is_buffering = true;
            since
        };
        // A separate task, so that events are read when they are ready: the latency of workers is
        // measured.
        tokio::spawn(self.read_for_client(since));
    }
}

impl<T: Message + 'static> Stream for Response<T> {
    type Item = Item<T>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Item<T>>> {
        let mut state = lock(&self.0.state);
        let polled = state.poll(cx);
        if state.is_buffering {
            self.0.client_activity.notify_waiters();
        }
        polled
    }
}

impl<T> Drop for Response<T> {
    fn drop(&mut self) {
        let mut state = lock(&self.0.state);
        state.ready.set(None);
        state.end();
        self.0.client_activity.notify_waiters();
    }
}

#[cfg(test)]
mod tests;

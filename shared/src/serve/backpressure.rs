//! Responses whose clients are slow to read, or do not read at all.
//!
//! HTTP/2 polls a response for its next event only once its client has room for it. A client that takes nothing would
//! keep everything that its response holds: a worker's slot, a reservation, a place in admission. So a response that is not
//! polled is read here, into memory that is accounted for, and what it holds is free as soon as the work is done. A response
//! of which the client takes nothing for the write-stall timeout is ended.

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

/// A response with an event ready that is not polled for this long is read on its client's behalf.
const SLOW: Duration = Duration::from_secs(1);
/// Between two searches for such responses.
const LOOK: Duration = Duration::from_millis(500);
/// What is read for one client, at most, in bytes: some thousand events.
const MOST: u64 = 512 << 10;
/// What an event takes beside its bytes, roughly.
const EVENT: usize = 128;

/// What is held until the client has taken all of a response, or the response is ended.
pub type Held = Box<dyn Send>;

/// Watches all responses of a process. Clones share it.
#[derive(Debug, Clone)]
pub struct Backpressure(Arc<Watch>);

#[derive(Debug)]
struct Watch {
    all: Arc<Mutex<Vec<Weak<dyn Look>>>>,
    timeout: Duration,
    memory: MemoryBudget,
    ended: Counter,
    _search: AbortOnDropHandle<()>,
}

/// A response, whatever its events are.
trait Look: Send + Sync {
    /// Begins to read it if its client is slow.
    fn look(self: Arc<Self>);
}

impl Backpressure {
    /// Ends responses of which clients take nothing for `timeout`. What is read for clients counts against `memory`. Needs
    /// tokio.
    pub fn new(timeout: Duration, memory: MemoryBudget) -> Self {
        let all = Arc::<Mutex<Vec<Weak<dyn Look>>>>::default();
        let search = tokio::spawn(slow_responses(Arc::clone(&all)));
        Self(Arc::new(Watch {
            all,
            timeout,
            memory,
            ended: Counter::default(),
            _search: AbortOnDropHandle::new(search),
        }))
    }

    /// Counts the responses that were ended.
    pub fn ended(&self) -> Counter {
        self.0.ended.clone()
    }

    /// Watches `stream`. `held` is dropped once the client has taken the last event, or the response is ended.
    pub fn watch<T: Message + 'static>(
        &self,
        stream: BoxStream<'static, Result<T, Status>>,
        held: Held,
    ) -> Response<T> {
        let response = Arc::new(Shared {
            state: Mutex::new(State {
                stream: Some(stream),
                read: VecDeque::new(),
                hold: self.0.memory.reservation(),
                is_read_here: false,
                ended_with: None,
                held: Some(held),
                ready: Arc::new(Ready::now()),
            }),
            news: Notify::new(),
            timeout: self.0.timeout,
            ended: self.0.ended.clone(),
        });
        let look: Arc<dyn Look> = Arc::clone(&response) as _;
        lock(&self.0.all).push(Arc::downgrade(&look));
        Response(response)
    }
}

async fn slow_responses(all: Arc<Mutex<Vec<Weak<dyn Look>>>>) {
    loop {
        tokio::time::sleep(LOOK).await;
        let mut open = Vec::new();
        lock(&all).retain(|response| match response.upgrade() {
            Some(response) => {
                open.push(response);
                true
            }
            None => false,
        });
        for response in open {
            response.look();
        }
    }
}

fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The events of a response, for its client. Dropping it ends the response.
#[derive(Debug)]
pub struct Response<T>(Arc<Shared<T>>);

#[derive(Debug)]
struct Shared<T> {
    state: Mutex<State<T>>,
    /// The client polls again, or is gone.
    news: Notify,
    timeout: Duration,
    ended: Counter,
}

type Item<T> = Result<T, Status>;

struct State<T> {
    /// `None` once it is over.
    stream: Option<BoxStream<'static, Item<T>>>,
    /// What was read on the client's behalf, and what each part holds.
    read: VecDeque<(Item<T>, u64)>,
    hold: MemoryReservation,
    is_read_here: bool,
    /// The error for a client that polls after all.
    ended_with: Option<Status>,
    held: Option<Held>,
    ready: Arc<Ready>,
}

/// When the response could have been polled again: since its last event was taken, or since the next one was there. The
/// second tells too, since HTTP/2 polls for more than it can send: it may wait for an event, with others in hand, and not
/// come for it.
#[derive(Debug, Default)]
struct Ready {
    poller: AtomicWaker,
    /// `None` while the client waits for an event.
    since: Mutex<Option<Instant>>,
}

impl Ready {
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

impl Wake for Ready {
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
        f.debug_struct("State").field("read", &self.read.len()).finish_non_exhaustive()
    }
}

impl<T> State<T> {
    fn end(&mut self) {
        (self.stream, self.held) = (None, None);
        self.read.clear();
        let _ = self.hold.set(0);
    }
}

impl<T: Message + 'static> State<T> {
    /// For the client.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Item<T>>> {
        self.ready.set(None);
        let item = if let Some(status) = self.ended_with.take() {
            Some(Err(status))
        } else if let Some((item, bytes)) = self.read.pop_front() {
            self.hold.shrink(bytes);
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

    /// For a client that has not polled `since` then. Ready once it polls again, or is gone.
    fn poll_for_client(&mut self, since: Instant, cx: &mut Context<'_>) -> Poll<()> {
        if self.ready.since() != Some(since) {
            self.is_read_here = false;
            return Poll::Ready(());
        }
        // The rest stays where it is, and HTTP/2 holds back its sender.
        while self.hold.bytes() < MOST
            && let Some(stream) = &mut self.stream
        {
            match ready!(stream.poll_next_unpin(cx)) {
                Some(item) => {
                    let size = item.as_ref().map_or(0, Message::encoded_len) + EVENT;
                    let grown = self.hold.grow(size as u64);
                    self.read.push_back((item, if grown { size as u64 } else { 0 }));
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

impl<T: Message + 'static> Shared<T> {
    /// Reads the response until its client polls again or is gone, or the response is ended.
    async fn read_for_client(self: Arc<Self>, since: Instant) {
        let deadline = sleep_until(since + self.timeout);
        tokio::pin!(deadline);
        loop {
            // Enabled before the state is read, so that no notice in between is missed.
            let news = self.news.notified();
            tokio::pin!(news);
            news.as_mut().enable();
            tokio::select! {
                biased;
                () = poll_fn(|cx| lock(&self.state).poll_for_client(since, cx)) => return,
                () = news => {}
                () = &mut deadline => break,
            }
        }
        let mut state = lock(&self.state);
        if state.ready.since() != Some(since) {
            state.is_read_here = false;
            return;
        }
        state.end();
        let waited = self.timeout.as_secs_f64();
        state.ended_with = Some(Status::cancelled(format!(
            "the client took nothing of this response for {waited} s (--write-stall-timeout)"
        )));
        self.ended.inc();
        tracing::info!(waited, "a response was ended: its client takes nothing of it");
    }
}

impl<T: Message + 'static> Look for Shared<T> {
    fn look(self: Arc<Self>) {
        let since = {
            let mut state = lock(&self.state);
            let slow = state.ready.since().filter(|since| since.elapsed() >= SLOW);
            let Some(since) = slow.filter(|_| !state.is_read_here && state.held.is_some()) else {
                return;
            };
            state.is_read_here = true;
            since
        };
        // A task of its own, so that an event is read when it comes: how long workers take is measured.
        tokio::spawn(self.read_for_client(since));
    }
}

impl<T: Message + 'static> Stream for Response<T> {
    type Item = Item<T>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Item<T>>> {
        let mut state = lock(&self.0.state);
        let polled = state.poll(cx);
        if state.is_read_here {
            self.0.news.notify_waiters();
        }
        polled
    }
}

impl<T> Drop for Response<T> {
    fn drop(&mut self) {
        let mut state = lock(&self.0.state);
        state.ready.set(None);
        state.end();
        self.0.news.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use futures::stream;
    use stoker_proto::v1::Load;

    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(30);

    fn event(step: u64) -> Result<Load, Status> {
        Ok(Load { step, ..Load::default() })
    }

    /// Dropped with the work.
    struct Work(Arc<()>);

    /// A response of `events`, one every 10 ms, and what is held for its work and for its client.
    fn response(
        events: u64,
        memory: &MemoryBudget,
    ) -> (Backpressure, Response<Load>, Arc<()>, Arc<()>) {
        let watch = Backpressure::new(TIMEOUT, memory.clone());
        let (work, held) = (Arc::new(()), Arc::new(()));
        let holds = Work(Arc::clone(&work));
        let events = stream::iter(0..events).then(move |step| {
            let _ = &holds.0;
            async move {
                tokio::time::sleep(Duration::from_millis(10)).await;
                event(step)
            }
        });
        let response = watch.watch(events.boxed(), Box::new(Arc::clone(&held)));
        (watch, response, work, held)
    }

    fn is_free(held: &Arc<()>) -> bool {
        Arc::strong_count(held) == 1
    }

    #[tokio::test(start_paused = true)]
    async fn the_work_of_a_response_that_nobody_reads_is_over_when_it_is_done() {
        let memory = MemoryBudget::new(1 << 20);
        let (_watch, mut response, work, held) = response(50, &memory);
        assert_eq!(response.next().await.unwrap().unwrap().step, 0);
        assert!(!is_free(&work));
        tokio::time::sleep(Duration::from_secs(3)).await;
        assert!(is_free(&work) && !is_free(&held) && memory.reserved() > 0);
        // It comes back, and has all of it.
        let rest: Vec<_> = response.by_ref().map(|event| event.unwrap().step).collect().await;
        assert_eq!(rest, (1..50).collect::<Vec<_>>());
        assert!(is_free(&held) && memory.reserved() == 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_response_of_which_nothing_is_taken_is_ended_with_an_error() {
        let memory = MemoryBudget::new(1 << 20);
        let (watch, mut response, work, held) = response(1_000_000, &memory);
        response.next().await.unwrap().unwrap();
        let since = Instant::now();
        while !is_free(&held) {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        assert!(
            since.elapsed() >= TIMEOUT && since.elapsed() < TIMEOUT + SLOW,
            "{:?}",
            since.elapsed()
        );
        assert!(is_free(&work) && memory.reserved() == 0 && watch.ended().get() == 1);
        let error = response.next().await.unwrap().unwrap_err();
        assert_eq!(error.code(), tonic::Code::Cancelled);
        assert!(response.next().await.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_takes_an_event_now_and_then_is_kept() {
        let memory = MemoryBudget::new(1 << 20);
        let (watch, mut response, _work, _held) = response(20, &memory);
        for step in 0..20 {
            assert_eq!(response.next().await.unwrap().unwrap().step, step);
            tokio::time::sleep(TIMEOUT - SLOW).await;
        }
        assert!(response.next().await.is_none() && watch.ended().get() == 0);
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_waited_and_does_not_poll_for_what_is_ready_is_slow_too() {
        let memory = MemoryBudget::new(1 << 20);
        let (_watch, mut response, work, held) = response(50, &memory);
        // As one that has a frame in hand which it cannot send.
        assert!(futures::poll!(response.next()).is_pending());
        tokio::time::sleep(Duration::from_secs(3)).await;
        assert!(is_free(&work) && !is_free(&held) && memory.reserved() > 0);
        let all: Vec<_> = response.by_ref().map(|event| event.unwrap().step).collect().await;
        assert_eq!(all, (0..50).collect::<Vec<_>>());
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_waits_for_the_next_event_is_no_slow_reader() {
        let watch = Backpressure::new(TIMEOUT, MemoryBudget::new(1 << 20));
        let late = stream::once(async {
            tokio::time::sleep(TIMEOUT * 3).await;
            event(7)
        });
        let mut response = watch.watch(late.boxed(), Box::new(()));
        assert_eq!(response.next().await.unwrap().unwrap().step, 7);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_read_for_slow_ones_stays_within_the_memory() {
        let memory = MemoryBudget::new(1 << 10);
        let (_watch, mut response, work, _held) = response(1_000, &memory);
        response.next().await.unwrap().unwrap();
        tokio::time::sleep(TIMEOUT / 2).await;
        assert!(!is_free(&work) && memory.reserved() <= 1 << 10);
        let rest: Vec<_> = response.by_ref().map(|event| event.unwrap().step).collect().await;
        assert_eq!(rest, (1..1_000).collect::<Vec<_>>());
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_left_of_one_that_is_dropped() {
        let memory = MemoryBudget::new(1 << 20);
        let (_watch, mut response, work, held) = response(1_000_000, &memory);
        response.next().await.unwrap().unwrap();
        tokio::time::sleep(SLOW * 3).await;
        assert!(memory.reserved() > 0);
        drop(response);
        assert!(is_free(&work) && is_free(&held) && memory.reserved() == 0);
    }
}

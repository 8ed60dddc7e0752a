//! Responses whose clients are slow to read, or do not read at all.
//!
//! HTTP/2 asks for the next event of a response only once its client has room for it. A client that takes nothing would
//! so hold everything that its response holds: a slot of a worker, a reservation, a place. So a response that nobody asks
//! for is read from here on, into memory that is accounted for, and what it holds is free as soon as the work is done. A
//! client that has taken nothing for the write-stall timeout is given up.

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

use crate::memory::{Budget, Hold};

/// A response that nobody has asked for the next event of for so long is read on its client's behalf.
const SLOW: Duration = Duration::from_secs(1);
/// How often slow ones are looked for.
const LOOK: Duration = Duration::from_millis(500);
/// What is read for one client, at most, in bytes: some thousand events.
const MOST: u64 = 512 << 10;
/// What an event takes beside its bytes, about.
const EVENT: usize = 128;

/// What is held until the client has taken all of a response, or is given up.
pub type Held = Box<dyn Send>;

/// Watches all responses of a process. Clones share it.
#[derive(Debug, Clone)]
pub struct Backpressure(Arc<Watch>);

#[derive(Debug)]
struct Watch {
    all: Arc<Mutex<Vec<Weak<dyn Look>>>>,
    timeout: Duration,
    memory: Budget,
    ended: Counter,
    _looks: AbortOnDropHandle<()>,
}

/// A response, whatever its events are.
trait Look: Send + Sync {
    /// Begins to read it if its client is slow.
    fn look(self: Arc<Self>);
}

impl Backpressure {
    /// Gives clients up that take nothing for `timeout`. What is read for them counts against `memory`. Needs tokio.
    pub fn new(timeout: Duration, memory: Budget) -> Self {
        let all = Arc::<Mutex<Vec<Weak<dyn Look>>>>::default();
        let looks = tokio::spawn(look_again_and_again(Arc::clone(&all)));
        Self(Arc::new(Watch {
            all,
            timeout,
            memory,
            ended: Counter::default(),
            _looks: AbortOnDropHandle::new(looks),
        }))
    }

    /// Counts the responses that were given up.
    pub fn ended(&self) -> Counter {
        self.0.ended.clone()
    }

    /// Watches `stream`. `held` is dropped once the client has taken the last event, or is given up.
    pub fn watch<T: Message + 'static>(
        &self,
        stream: BoxStream<'static, Result<T, Status>>,
        held: Held,
    ) -> Response<T> {
        let response = Arc::new(Shared {
            state: Mutex::new(State {
                stream: Some(stream),
                read: VecDeque::new(),
                hold: self.0.memory.hold(),
                untaken_since: Some(Instant::now()),
                is_read_here: false,
                given_up: None,
                held: Some(held),
                ready: Arc::default(),
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

async fn look_again_and_again(all: Arc<Mutex<Vec<Weak<dyn Look>>>>) {
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
    /// The client asks again, or is gone.
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
    hold: Hold,
    /// When the client was given the last event; `None` while it waits for one.
    untaken_since: Option<Instant>,
    is_read_here: bool,
    /// What the client is told should it ask after all.
    given_up: Option<Status>,
    held: Option<Held>,
    ready: Arc<Ready>,
}

/// Notes when an event is there that the client was waiting for, on its way to whoever is to ask for it: where that has a
/// part of the response in hand that it cannot send, it does not ask.
#[derive(Debug, Default)]
struct Ready {
    asks: AtomicWaker,
    since: Mutex<Option<Instant>>,
}

impl Wake for Ready {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        lock(&self.since).get_or_insert_with(Instant::now);
        self.asks.wake();
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
        self.untaken_since = None;
        *lock(&self.ready.since) = None;
        let item = if let Some(status) = self.given_up.take() {
            Some(Err(status))
        } else if let Some((item, bytes)) = self.read.pop_front() {
            self.hold.shrink(bytes);
            Some(item)
        } else if let Some(stream) = &mut self.stream {
            self.ready.asks.register(cx.waker());
            let waker = Waker::from(Arc::clone(&self.ready));
            ready!(stream.poll_next_unpin(&mut Context::from_waker(&waker)))
        } else {
            None
        };
        match &item {
            Some(_) => self.untaken_since = Some(Instant::now()),
            None => self.end(),
        }
        Poll::Ready(item)
    }

    /// For a client that has not asked `since` then. Ready once it asks again, or is gone.
    fn poll_for_client(&mut self, since: Instant, cx: &mut Context<'_>) -> Poll<()> {
        if self.untaken_since != Some(since) {
            self.is_read_here = false;
            return Poll::Ready(());
        }
        // Beyond that it stays where it is, and HTTP/2 holds back whoever sends it.
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
    /// Reads the response until its client asks again, is gone, or is given up.
    async fn read_for_client(self: Arc<Self>, since: Instant) {
        let deadline = sleep_until(since + self.timeout);
        tokio::pin!(deadline);
        loop {
            // Whoever is told between the look and the wait is not missed.
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
        if state.untaken_since != Some(since) {
            state.is_read_here = false;
            return;
        }
        state.end();
        let waited = self.timeout.as_secs_f64();
        state.given_up = Some(Status::cancelled(format!(
            "the client took nothing of this response for {waited} s (--write-stall-timeout)"
        )));
        self.ended.inc();
        tracing::info!(waited, "a client that takes nothing of its response is given up");
    }
}

impl<T: Message + 'static> Look for Shared<T> {
    fn look(self: Arc<Self>) {
        let since = {
            let mut state = lock(&self.state);
            let ready = *lock(&state.ready.since);
            let slow = state.untaken_since.or(ready).filter(|since| since.elapsed() >= SLOW);
            let Some(since) = slow.filter(|_| !state.is_read_here && state.held.is_some()) else {
                return;
            };
            (state.is_read_here, state.untaken_since) = (true, Some(since));
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
        state.untaken_since = None;
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
    fn response(events: u64, memory: &Budget) -> (Backpressure, Response<Load>, Arc<()>, Arc<()>) {
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
        let memory = Budget::new(1 << 20);
        let (_watch, mut response, work, held) = response(50, &memory);
        assert_eq!(response.next().await.unwrap().unwrap().step, 0);
        assert!(!is_free(&work));
        tokio::time::sleep(Duration::from_secs(3)).await;
        assert!(is_free(&work) && !is_free(&held) && memory.held() > 0);
        // It comes back, and has all of it.
        let rest: Vec<_> = response.by_ref().map(|event| event.unwrap().step).collect().await;
        assert_eq!(rest, (1..50).collect::<Vec<_>>());
        assert!(is_free(&held) && memory.held() == 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_nothing_is_given_up_and_told_so_if_it_asks() {
        let memory = Budget::new(1 << 20);
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
        assert!(is_free(&work) && memory.held() == 0 && watch.ended().get() == 1);
        let told = response.next().await.unwrap().unwrap_err();
        assert_eq!(told.code(), tonic::Code::Cancelled);
        assert!(response.next().await.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_takes_an_event_now_and_then_is_kept() {
        let memory = Budget::new(1 << 20);
        let (watch, mut response, _work, _held) = response(20, &memory);
        for step in 0..20 {
            assert_eq!(response.next().await.unwrap().unwrap().step, step);
            tokio::time::sleep(TIMEOUT - SLOW).await;
        }
        assert!(response.next().await.is_none() && watch.ended().get() == 0);
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_waited_and_does_not_come_for_what_is_ready_is_slow_too() {
        let memory = Budget::new(1 << 20);
        let (_watch, mut response, work, held) = response(50, &memory);
        // As one that has a frame in hand which it cannot send.
        assert!(futures::poll!(response.next()).is_pending());
        tokio::time::sleep(Duration::from_secs(3)).await;
        assert!(is_free(&work) && !is_free(&held) && memory.held() > 0);
        let all: Vec<_> = response.by_ref().map(|event| event.unwrap().step).collect().await;
        assert_eq!(all, (0..50).collect::<Vec<_>>());
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_waits_for_the_next_event_is_no_slow_reader() {
        let watch = Backpressure::new(TIMEOUT, Budget::new(1 << 20));
        let late = stream::once(async {
            tokio::time::sleep(TIMEOUT * 3).await;
            event(7)
        });
        let mut response = watch.watch(late.boxed(), Box::new(()));
        assert_eq!(response.next().await.unwrap().unwrap().step, 7);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_read_for_slow_ones_stays_within_the_memory() {
        let memory = Budget::new(1 << 10);
        let (_watch, mut response, work, _held) = response(1_000, &memory);
        response.next().await.unwrap().unwrap();
        tokio::time::sleep(TIMEOUT / 2).await;
        assert!(!is_free(&work) && memory.held() <= 1 << 10);
        let rest: Vec<_> = response.by_ref().map(|event| event.unwrap().step).collect().await;
        assert_eq!(rest, (1..1_000).collect::<Vec<_>>());
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_left_of_one_that_is_dropped() {
        let memory = Budget::new(1 << 20);
        let (_watch, mut response, work, held) = response(1_000_000, &memory);
        response.next().await.unwrap().unwrap();
        tokio::time::sleep(SLOW * 3).await;
        assert!(memory.held() > 0);
        drop(response);
        assert!(is_free(&work) && is_free(&held) && memory.held() == 0);
    }
}

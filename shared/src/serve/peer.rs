//! The peer of a connection, as its requests see it: its address and open calls.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{sync::Semaphore, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::tls::PeerIdentity;

/// Maximum total size of incomplete requests of a connection, in KiB: four of the largest.
pub(super) const UPLOAD_KIB: usize = 16 << 10;

/// For how long a client may go on to reset calls before its connection is read more slowly, and for
/// how long reading pauses at most, in microseconds.
const RESET_BURST: u64 = 1_000_000;
const MAX_PAUSE: u64 = 1_000_000;
/// Age of a call from which a reset is none that is early, in microseconds.
const EARLY: u64 = 1_000_000;

/// Time limits for a peer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Timeouts {
    /// Time limit for the HTTP/2 preface.
    pub(super) handshake: Duration,
    /// Time limit for a write to make progress.
    pub(super) write: Duration,
    /// Maximum age of the connection, with the grace of its calls.
    pub(super) age: Option<Duration>,
}

/// The peer of a connection. Stored in the extensions of every request.
#[derive(Debug, Clone)]
pub struct Peer(Arc<PeerState>);

#[derive(Debug)]
struct PeerState {
    address: SocketAddr,
    opened: Instant,
    /// The open calls, and the number of the next one.
    calls: Mutex<(HashMap<u64, Weak<CallState>>, u64)>,
    idle_since: Mutex<Instant>,
    /// Permits for incomplete requests, in KiB.
    uploads: Arc<Semaphore>,
    closed: CancellationToken,
    /// Calls a second that the client may reset early; 0 for any number.
    max_early_resets: u32,
    /// When the last early reset would have come at that rate, in microseconds since the connection
    /// was opened.
    resets_until: AtomicU64,
    /// Whether the client sends the calls of many others.
    is_router: AtomicBool,
    /// Set once the client's certificate is verified.
    identity: OnceLock<PeerIdentity>,
}

impl Peer {
    pub(super) fn new(address: SocketAddr, max_early_resets: u32) -> Self {
        Self(Arc::new(PeerState {
            address,
            opened: Instant::now(),
            calls: Mutex::default(),
            idle_since: Mutex::new(Instant::now()),
            uploads: Arc::new(Semaphore::new(UPLOAD_KIB)),
            closed: CancellationToken::new(),
            max_early_resets,
            resets_until: AtomicU64::new(0),
            is_router: AtomicBool::new(false),
            identity: OnceLock::new(),
        }))
    }

    /// Returns whether the peer is on this machine: its address is in 127.0.0.0/8 or ::1.
    pub fn is_loopback(&self) -> bool {
        self.0.address.ip().to_canonical().is_loopback()
    }

    /// Returns who the peer is, if it has presented a certificate that --tls-client-ca verifies.
    pub fn identity(&self) -> Option<&PeerIdentity> {
        self.0.identity.get()
    }

    /// Sets who the peer is, once.
    pub(super) fn identify(&self, identity: PeerIdentity) {
        let _ = self.0.identity.set(identity);
    }

    /// Returns the address of the peer.
    pub fn address(&self) -> SocketAddr {
        self.0.address
    }

    /// Marks the peer as a router, whose resets are those of its clients.
    pub fn set_router(&self) {
        self.0.is_router.store(true, Ordering::Relaxed);
    }

    /// Returns for how long nothing more is to be read, since the client resets calls too fast.
    pub(super) fn pause(&self) -> Option<Duration> {
        let until = self.0.resets_until.load(Ordering::Relaxed).checked_sub(RESET_BURST)?;
        let pause = until.checked_sub(self.0.now())?;
        Some(Duration::from_micros(pause)).filter(|pause| !pause.is_zero())
    }

    /// Returns how long the connection has had no open calls, or `None` if it has any. A call whose
    /// client has read nothing for `stall`, although there is something to read, does not count.
    pub(super) fn idle(&self, stall: Duration) -> Option<Duration> {
        let idle = lock(&self.0.idle_since).elapsed();
        let calls = lock(&self.0.calls);
        let mut stalled = calls.0.values().filter_map(Weak::upgrade).map(|call| call.unread());
        stalled.try_fold(idle, |idle, unread| {
            let unread = unread.filter(|unread| *unread >= stall)?;
            Some(idle.min(unread))
        })
    }

    /// Closes the connection.
    pub(super) fn close(&self) {
        self.0.closed.cancel();
    }

    /// Returns a token that is cancelled to close the connection.
    pub(super) fn closed(&self) -> &CancellationToken {
        &self.0.closed
    }

    /// Counts a call as open until the returned [`OpenCall`] is dropped.
    pub(super) fn call(&self) -> OpenCall {
        let mut calls = lock(&self.0.calls);
        let (open, next) = &mut *calls;
        let (peer, number) = (self.clone(), *next);
        let begun = self.0.now();
        let (is_settled, unread_since) = (AtomicBool::new(false), AtomicU64::new(0));
        let call = Arc::new(CallState { peer, number, begun, is_settled, unread_since });
        open.insert(number, Arc::downgrade(&call));
        *next += 1;
        OpenCall(call)
    }
}

impl PeerState {
    /// Microseconds since the connection was opened.
    fn now(&self) -> u64 {
        self.opened.elapsed().as_micros() as u64
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One open call of a connection. Clones are the same call, which is open until all are dropped.
#[derive(Debug, Clone)]
pub(super) struct OpenCall(Arc<CallState>);

#[derive(Debug)]
struct CallState {
    peer: Peer,
    number: u64,
    /// In microseconds since the connection was opened.
    begun: u64,
    /// Whether the client has read a part of the response, or has reset the call before.
    is_settled: AtomicBool,
    /// Since when the client could read a part of the response and did not, in microseconds since
    /// the connection was opened, plus one; 0 while there is nothing to read.
    unread_since: AtomicU64,
}

impl OpenCall {
    /// Returns the permits of the connection for incomplete requests, in KiB.
    pub(super) fn uploads(&self) -> &Arc<Semaphore> {
        &self.0.peer.0.uploads
    }

    /// Records whether the response has a part that the client has yet to read.
    pub(super) fn set_unread(&self, is_unread: bool) {
        let CallState { peer, unread_since, .. } = &*self.0;
        let since = if is_unread { peer.0.now() + 1 } else { 0 };
        unread_since.store(since, Ordering::Relaxed);
    }

    /// Records that the client has read a part of the response, or that there is none to read.
    pub(super) fn settle(&self) {
        self.0.is_settled.store(true, Ordering::Relaxed);
    }

    /// Counts the call as reset early, unless it is settled or was counted before.
    pub(super) fn reset(&self) {
        let CallState { peer: Peer(peer), begun, is_settled, .. } = &*self.0;
        if is_settled.swap(true, Ordering::Relaxed) {
            return;
        }
        let Some(cost) = 1_000_000_u64.checked_div(peer.max_early_resets.into()) else { return };
        let now = peer.now();
        if now - begun >= EARLY || peer.is_router.load(Ordering::Relaxed) {
            return;
        }
        let next = |until: u64| Some((until.max(now) + cost).min(now + RESET_BURST + MAX_PAUSE));
        let _ = peer.resets_until.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next);
    }
}

impl CallState {
    fn unread(&self) -> Option<Duration> {
        let since = self.unread_since.load(Ordering::Relaxed).checked_sub(1)?;
        Some(Duration::from_micros(self.peer.0.now().saturating_sub(since)))
    }
}

impl Drop for CallState {
    fn drop(&mut self) {
        *lock(&self.peer.0.idle_since) = Instant::now();
        lock(&self.peer.0.calls).0.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn peer(max_early_resets: u32) -> Peer {
        Peer::new(([127, 0, 0, 1], 1).into(), max_early_resets)
    }

    fn reset(peer: &Peer, count: usize) {
        (0..count).for_each(|_| peer.call().reset());
    }

    #[tokio::test(start_paused = true)]
    async fn early_resets_beyond_a_rate_pause_a_connection() {
        let peer = peer(10);
        reset(&peer, 10);
        assert_eq!(peer.pause(), None);
        reset(&peer, 3);
        assert_eq!(peer.pause(), Some(SECOND * 3 / 10));
        tokio::time::advance(SECOND * 3 / 10).await;
        assert_eq!(peer.pause(), None);
        reset(&peer, 1_000);
        assert_eq!(peer.pause(), Some(SECOND), "a pause is bounded");
        tokio::time::advance(SECOND * 2).await;
        reset(&peer, 10);
        assert_eq!(peer.pause(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_counts_once_and_only_until_its_response_is_read() {
        let peer = peer(10);
        let call = peer.call();
        (0..100).for_each(|_| call.reset());
        for _ in 0..100 {
            let call = peer.call();
            call.settle();
            call.clone().reset();
        }
        assert_eq!(peer.pause(), None);
        reset(&peer, 10);
        assert_eq!(peer.pause(), Some(SECOND / 10));
    }

    #[tokio::test(start_paused = true)]
    async fn old_calls_and_those_of_routers_are_reset_at_any_rate() {
        let patient = peer(10);
        let calls: Vec<_> = (0..100).map(|_| patient.call()).collect();
        tokio::time::advance(SECOND).await;
        calls.iter().for_each(OpenCall::reset);
        assert_eq!(patient.pause(), None);
        let router = peer(10);
        router.set_router();
        reset(&router, 100);
        assert_eq!(router.pause(), None);
        let unlimited = peer(0);
        reset(&unlimited, 100);
        assert_eq!(unlimited.pause(), None);
    }
}

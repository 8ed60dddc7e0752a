//! One connection as its requests know it: who is at the other end, and what it has open.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use tokio::{sync::Semaphore, time::Instant};
use tokio_util::sync::CancellationToken;

/// What the requests of one connection that are not complete yet may take together, in KiB: four of the largest.
pub(super) const UPLOAD_KIB: usize = 16 << 10;

/// The other end of a connection. Every request has it among its extensions.
#[derive(Debug, Clone)]
pub struct Peer(Arc<State>);

#[derive(Debug)]
struct State {
    address: SocketAddr,
    /// Calls that are open.
    calls: AtomicU32,
    idle_since: Mutex<Instant>,
    /// In KiB.
    uploads: Arc<Semaphore>,
    closed: CancellationToken,
}

impl Peer {
    pub(super) fn new(address: SocketAddr) -> Self {
        Self(Arc::new(State {
            address,
            calls: AtomicU32::new(0),
            idle_since: Mutex::new(Instant::now()),
            uploads: Arc::new(Semaphore::new(UPLOAD_KIB)),
            closed: CancellationToken::new(),
        }))
    }

    /// Whether it is on this machine: its address is in 127.0.0.0/8, or is ::1.
    pub fn is_loopback(&self) -> bool {
        self.0.address.ip().to_canonical().is_loopback()
    }

    /// Where it is.
    pub fn address(&self) -> SocketAddr {
        self.0.address
    }

    /// How long it has had nothing open; `None` while it has.
    pub(super) fn idle(&self) -> Option<Duration> {
        let since = *self.0.idle_since.lock().unwrap_or_else(PoisonError::into_inner);
        (self.0.calls.load(Ordering::Relaxed) == 0).then(|| since.elapsed())
    }

    /// Closes the connection.
    pub(super) fn close(&self) {
        self.0.closed.cancel();
    }

    /// Cancelled when the connection is to close.
    pub(super) fn closed(&self) -> &CancellationToken {
        &self.0.closed
    }

    /// Shared by the requests that are read.
    pub(super) fn uploads(&self) -> &Arc<Semaphore> {
        &self.0.uploads
    }

    /// A call is open until what this returns is dropped.
    pub(super) fn call(&self) -> OpenCall {
        self.0.calls.fetch_add(1, Ordering::Relaxed);
        OpenCall(self.clone())
    }
}

/// One call of a connection.
#[derive(Debug)]
pub(super) struct OpenCall(Peer);

impl Drop for OpenCall {
    fn drop(&mut self) {
        let Self(Peer(state)) = self;
        *state.idle_since.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        state.calls.fetch_sub(1, Ordering::Relaxed);
    }
}

//! The peer of a connection, as its requests see it: its address and open calls.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{sync::Semaphore, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::tls::PeerIdentity;

/// Maximum total size of incomplete requests of a connection, in KiB: four of the largest.
pub(super) const UPLOAD_KIB: usize = 16 << 10;

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
    /// Set once the client's certificate is verified.
    identity: OnceLock<PeerIdentity>,
}

impl Peer {
    pub(super) fn new(address: SocketAddr) -> Self {
        Self(Arc::new(PeerState {
            address,
            opened: Instant::now(),
            calls: Mutex::default(),
            idle_since: Mutex::new(Instant::now()),
            uploads: Arc::new(Semaphore::new(UPLOAD_KIB)),
            closed: CancellationToken::new(),
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

    /// Returns the permits for incomplete requests, in KiB.
    pub(super) fn uploads(&self) -> &Arc<Semaphore> {
        &self.0.uploads
    }

    /// Counts a call as open until the returned [`OpenCall`] is dropped.
    pub(super) fn call(&self) -> OpenCall {
        let mut calls = lock(&self.0.calls);
        let (open, next) = &mut *calls;
        let (peer, number) = (self.clone(), *next);
        let call = Arc::new(CallState { peer, number, unread_since: AtomicU64::new(0) });
        open.insert(number, Arc::downgrade(&call));
        *next += 1;
        OpenCall(call)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One open call of a connection.
#[derive(Debug)]
pub(super) struct OpenCall(Arc<CallState>);

#[derive(Debug)]
struct CallState {
    peer: Peer,
    number: u64,
    /// Since when the client could read a part of the response and did not, in milliseconds since
    /// the connection was opened, plus one; 0 while there is nothing to read.
    unread_since: AtomicU64,
}

impl OpenCall {
    /// Records whether the response has a part that the client has yet to read.
    pub(super) fn set_unread(&self, is_unread: bool) {
        let CallState { peer, unread_since, .. } = &*self.0;
        let since = if is_unread { peer.0.opened.elapsed().as_millis() as u64 + 1 } else { 0 };
        unread_since.store(since, Ordering::Relaxed);
    }
}

impl CallState {
    fn unread(&self) -> Option<Duration> {
        let since = self.unread_since.load(Ordering::Relaxed).checked_sub(1)?;
        Some(self.peer.0.opened.elapsed().saturating_sub(Duration::from_millis(since)))
    }
}

impl Drop for CallState {
    fn drop(&mut self) {
        *lock(&self.peer.0.idle_since) = Instant::now();
        lock(&self.peer.0.calls).0.remove(&self.number);
    }
}

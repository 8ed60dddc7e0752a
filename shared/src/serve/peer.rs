//! The peer of a connection, as its requests see it: its address and open calls.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicU32, Ordering},
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
}

/// The peer of a connection. Stored in the extensions of every request.
#[derive(Debug, Clone)]
pub struct Peer(Arc<PeerState>);

#[derive(Debug)]
struct PeerState {
    address: SocketAddr,
    /// Number of open calls.
    calls: AtomicU32,
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
            calls: AtomicU32::new(0),
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

    /// Returns how long the connection has had no open calls, or `None` if it has any.
    pub(super) fn idle(&self) -> Option<Duration> {
        let since = *self.0.idle_since.lock().unwrap_or_else(PoisonError::into_inner);
        (self.0.calls.load(Ordering::Relaxed) == 0).then(|| since.elapsed())
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
        self.0.calls.fetch_add(1, Ordering::Relaxed);
        OpenCall(self.clone())
    }
}

/// One open call of a connection.
#[derive(Debug)]
pub(super) struct OpenCall(Peer);

impl Drop for OpenCall {
    fn drop(&mut self) {
        let Self(Peer(state)) = self;
        *state.idle_since.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        state.calls.fetch_sub(1, Ordering::Relaxed);
    }
}

//! The state that the listeners of a process share: limits, open connections, and the memory budget
//! of requests.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use prometheus_client::{
    metrics::{counter::Counter, gauge::Gauge},
    registry::Registry,
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Instant,
};

use super::{
    LimitsConfig,
    accepted::HandshakeError,
    backpressure::Backpressure,
    peer::{Peer, Timeouts},
};
use crate::{
    host,
    memory::MemoryBudget,
    metrics::{LabeledCounters, counters},
    names::{connection as names, label},
};

/// Default maximum number of streams per connection.
const DEFAULT_MAX_STREAMS: u32 = 256;
/// Minimum interval between log lines about handshakes of TLS.
const TLS_LOG_INTERVAL: Duration = Duration::from_secs(1);
/// File descriptors reserved for other uses: at least this many, and one in eight of the limit.
const MIN_RESERVED_FILES: u64 = 24;
const RESERVED_FILES_DIVISOR: u64 = 8;

/// Limits, and the state that counts against them. Clones share the same state.
#[derive(Debug, Clone)]
pub struct Bounds(Arc<BoundsState>);

#[derive(Debug)]
struct BoundsState {
    config: LimitsConfig,
    streams: u32,
    memory: MemoryBudget,
    backpressure: Backpressure,
    slots: Arc<Semaphore>,
    next_id: AtomicU64,
    peers: Mutex<HashMap<u64, Peer>>,
    accepted: Counter,
    accept_errors: Counter,
    slowed: Counter,
    closed: LabeledCounters,
    /// When an error of TLS was last logged.
    tls_logged: Mutex<Option<Instant>>,
    rejected: LabeledCounters,
    open: Gauge,
}

impl Bounds {
    /// Creates the state for `config`. `streams` is the maximum number of streams per connection if
    /// `config` has none. Raises the limit on open files as far as permitted. Must be called within
    /// a tokio runtime.
    pub fn new(config: &LimitsConfig, streams: Option<u32>) -> Self {
        let files = host::raise_open_files();
        let reserved = (files / RESERVED_FILES_DIVISOR).max(MIN_RESERVED_FILES);
        let files = usize::try_from(files.saturating_sub(reserved)).unwrap_or(usize::MAX).max(1);
        let configured = config.max_connections as usize;
        if files < configured {
            tracing::warn!(
                connections = files,
                "--max-connections {configured} exceeds the number of files that this process may open (ulimit -n)"
            );
        }
        let memory = MemoryBudget::new(config.max_request_memory.as_u64());
        Self(Arc::new(BoundsState {
            config: config.clone(),
            streams: config.max_streams_per_connection.or(streams).unwrap_or(DEFAULT_MAX_STREAMS),
            backpressure: Backpressure::new(config.write_stall_timeout, memory.clone()),
            memory,
            slots: Arc::new(Semaphore::new(configured.min(files).min(Semaphore::MAX_PERMITS))),
            next_id: AtomicU64::default(),
            peers: Mutex::default(),
            accepted: Counter::default(),
            accept_errors: Counter::default(),
            slowed: Counter::default(),
            closed: counters(label::CAUSE, label::CONNECTION_CAUSES),
            tls_logged: Mutex::default(),
            rejected: counters(label::CAUSE, label::REQUEST_CAUSES),
            open: Gauge::default(),
        }))
    }

    /// Registers the metrics of connections.
    pub fn register(&self, registry: &mut Registry) {
        names::OPEN.register(registry, self.0.open.clone());
        names::ACCEPTED.register(registry, self.0.accepted.clone());
        names::ACCEPT_ERRORS.register(registry, self.0.accept_errors.clone());
        names::SLOWED.register(registry, self.0.slowed.clone());
        names::CLOSED.register(registry, self.0.closed.clone());
        names::REJECTED.register(registry, self.0.rejected.clone());
        names::WRITE_STALLS.register(registry, self.0.backpressure.ended());
    }

    /// Returns the memory budget of requests.
    pub fn memory(&self) -> &MemoryBudget {
        &self.0.memory
    }

    /// Returns the monitor of slow readers.
    pub fn backpressure(&self) -> &Backpressure {
        &self.0.backpressure
    }

    /// Returns the maximum size of a request, in bytes.
    pub fn max_request_bytes(&self) -> usize {
        self.0.config.max_request_size.as_u64() as usize
    }

    pub(super) fn config(&self) -> &LimitsConfig {
        &self.0.config
    }

    pub(super) fn streams_per_connection(&self) -> u32 {
        self.0.streams
    }

    pub(super) fn timeouts(&self) -> Timeouts {
        let config = &self.0.config;
        let age = config.max_connection_age.filter(|age| !age.is_zero());
        Timeouts {
            handshake: config.request_read_timeout,
            write: config.write_stall_timeout,
            age: age.zip(config.max_connection_age_grace).map(|(age, grace)| age + grace),
        }
    }

    /// Waits for a slot for one more connection. If none is free, the connection that has been idle
    /// for longest is closed.
    pub(super) async fn acquire_slot(&self) -> OwnedSemaphorePermit {
        let mut warned = false;
        loop {
            if let Ok(permit) = Arc::clone(&self.0.slots).try_acquire_owned() {
                return permit;
            }
            if !std::mem::replace(&mut warned, true) {
                self.warn_full();
            }
            if let Some(idle) = self.longest_idle() {
                self.count_closed("idle");
                idle.close();
            }
            // Waits until a connection is closed, or has been idle for long enough.
            let acquired = Arc::clone(&self.0.slots).acquire_owned();
            if let Ok(Ok(permit)) = tokio::time::timeout(Duration::from_secs(1), acquired).await {
                return permit;
            }
        }
    }

    fn longest_idle(&self) -> Option<Peer> {
        let LimitsConfig { idle_timeout: timeout, write_stall_timeout: stall, .. } = self.0.config;
        let mut peers = self.peers();
        let idle = peers.iter().filter_map(|(id, peer)| Some((peer.idle(stall)?, *id)));
        let (_, id) = idle.filter(|(idle, _)| *idle >= timeout).max()?;
        // Removed, so that it is not selected again while it closes.
        peers.remove(&id)
    }

    fn warn_full(&self) {
        let open = self.peers().len();
        tracing::warn!(
            open,
            "--max-connections is reached: new connections wait, or replace idle ones"
        );
    }

    /// Registers a connection from `address` until the returned [`OpenConnection`] is dropped.
    pub(super) fn register_connection(
        &self,
        address: SocketAddr,
        permit: OwnedSemaphorePermit,
    ) -> (Peer, OpenConnection) {
        let peer = Peer::new(address, self.0.config.max_early_resets);
        let id = self.0.next_id.fetch_add(1, Ordering::Relaxed);
        self.peers().insert(id, peer.clone());
        self.0.accepted.inc();
        self.0.open.inc();
        (peer, OpenConnection { bounds: self.clone(), id, _permit: permit })
    }

    /// Counts an error of accepting a connection.
    pub(super) fn count_accept_error(&self) {
        self.0.accept_errors.inc();
    }

    /// Counts a request that is rejected while it is read, because of `cause`.
    pub(super) fn count_rejected(&self, cause: &'static str) {
        self.0.rejected.get_or_create(&[(label::CAUSE, cause)]).inc();
    }

    fn count_closed(&self, cause: &'static str) {
        self.0.closed.get_or_create(&[(label::CAUSE, cause)]).inc();
    }

    fn peers(&self) -> MutexGuard<'_, HashMap<u64, Peer>> {
        self.0.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One open connection.
#[derive(Debug)]
pub(super) struct OpenConnection {
    bounds: Bounds,
    id: u64,
    _permit: OwnedSemaphorePermit,
}

impl OpenConnection {
    /// Counts the connection as closed by this process, because of `cause`.
    pub(super) fn count_closed(&self, cause: &'static str) {
        self.bounds.count_closed(cause);
    }

    /// Counts and logs a connection that is read more slowly, since its client resets many calls.
    pub(super) fn slowed(&self, peer: SocketAddr) {
        self.bounds.0.slowed.inc();
        let allowed = self.bounds.0.config.max_early_resets;
        tracing::warn!(
            %peer,
            "a client resets more than {allowed} calls a second before they have a response; its \
             connection is read more slowly (--max-early-resets)"
        );
    }

    /// Counts a connection without TLS handshake, and logs why. Peers cause these at will, so that
    /// few of them are logged.
    pub(super) fn tls_failed(&self, peer: SocketAddr, cause: &HandshakeError) {
        self.count_closed("tls");
        let mut logged = self.bounds.0.tls_logged.lock().unwrap_or_else(PoisonError::into_inner);
        if logged.is_none_or(|at| at.elapsed() >= TLS_LOG_INTERVAL) {
            *logged = Some(Instant::now());
            tracing::warn!(%peer, %cause, "no TLS handshake");
        }
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.bounds.peers().remove(&self.id);
        self.bounds.0.open.dec();
    }
}

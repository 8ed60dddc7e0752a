//! What the listeners of a process share: their limits, who is connected, and the memory for requests.

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
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{LimitsConfig, backpressure::Backpressure, connection::Timeouts, peer::Peer};
use crate::{
    memory::MemoryBudget,
    telemetry::names::{connection as names, label},
};

/// Streams of one connection, where nothing else is asked for.
const STREAMS: u32 = 256;
/// A connection with nothing open for so long may be closed for a new one.
const IDLE: Duration = Duration::from_secs(10);
/// Files that are left for other uses: at least this many, and this fraction of the limit, one in eight.
const LEAST_FILES: u64 = 24;
const FILES: u64 = 8;

/// A label and one of its values.
type Cause = [(&'static str, &'static str); 1];

/// Limits, and what counts against them. Clones share it.
#[derive(Debug, Clone)]
pub struct Bounds(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    config: LimitsConfig,
    streams: u32,
    memory: MemoryBudget,
    backpressure: Backpressure,
    free: Arc<Semaphore>,
    next: AtomicU64,
    peers: Mutex<HashMap<u64, Peer>>,
    accepted: Counter,
    accept_errors: Counter,
    closed: Family<Cause, Counter>,
    refused: Family<Cause, Counter>,
    open: Gauge,
}

impl Bounds {
    /// Of `config`, with `streams` for each connection if it does not say. Raises the number of files that this process
    /// may open as far as it may. Needs tokio.
    pub fn new(config: &LimitsConfig, streams: Option<u32>) -> Self {
        let files = raise_files();
        let for_others = (files / FILES).max(LEAST_FILES);
        let files = usize::try_from(files.saturating_sub(for_others)).unwrap_or(usize::MAX).max(1);
        let wanted = config.max_connections as usize;
        if files < wanted {
            tracing::warn!(
                connections = files,
                "--max-connections {wanted} is more than this process may open (ulimit -n)"
            );
        }
        let memory = MemoryBudget::new(config.max_request_memory.as_u64());
        Self(Arc::new(Shared {
            config: config.clone(),
            streams: config.max_streams_per_connection.or(streams).unwrap_or(STREAMS),
            backpressure: Backpressure::new(config.write_stall_timeout, memory.clone()),
            memory,
            free: Arc::new(Semaphore::new(wanted.min(files).min(Semaphore::MAX_PERMITS))),
            next: AtomicU64::default(),
            peers: Mutex::default(),
            accepted: Counter::default(),
            accept_errors: Counter::default(),
            closed: Family::default(),
            refused: Family::default(),
            open: Gauge::default(),
        }))
    }

    /// Adds what is counted here to `registry`.
    pub fn register(&self, registry: &mut Registry) {
        names::OPEN.register(registry, self.0.open.clone());
        names::ACCEPTED.register(registry, self.0.accepted.clone());
        names::ACCEPT_ERRORS.register(registry, self.0.accept_errors.clone());
        names::CLOSED.register(registry, self.0.closed.clone());
        names::REFUSED.register(registry, self.0.refused.clone());
        names::WRITE_STALLS.register(registry, self.0.backpressure.ended());
    }

    /// For requests.
    pub fn memory(&self) -> &MemoryBudget {
        &self.0.memory
    }

    /// For responses.
    pub fn backpressure(&self) -> &Backpressure {
        &self.0.backpressure
    }

    pub(super) fn config(&self) -> &LimitsConfig {
        &self.0.config
    }

    pub(super) fn streams_per_connection(&self) -> u32 {
        self.0.streams
    }

    pub(super) fn timeouts(&self) -> Timeouts {
        let LimitsConfig { request_read_timeout, write_stall_timeout, .. } = self.0.config;
        Timeouts { handshake: request_read_timeout, write: write_stall_timeout }
    }

    /// Waits until one more connection may be open. Where none is free, the one that has been idle for longest is closed.
    pub(super) async fn slot(&self) -> OwnedSemaphorePermit {
        let mut warned = false;
        loop {
            if let Ok(permit) = Arc::clone(&self.0.free).try_acquire_owned() {
                return permit;
            }
            if !std::mem::replace(&mut warned, true) {
                self.warn_full();
            }
            if let Some(idle) = self.longest_idle() {
                self.closes("idle");
                idle.close();
            }
            // Until one closes by itself, or has been idle for long enough.
            let free = Arc::clone(&self.0.free).acquire_owned();
            if let Ok(Ok(permit)) = tokio::time::timeout(Duration::from_secs(1), free).await {
                return permit;
            }
        }
    }

    fn longest_idle(&self) -> Option<Peer> {
        let after = IDLE.min(self.0.config.request_read_timeout);
        let mut peers = self.peers();
        let idle = peers.iter().filter_map(|(id, peer)| Some((peer.idle()?, *id)));
        let (_, id) = idle.filter(|(idle, _)| *idle >= after).max()?;
        // Not twice, however long it takes to go.
        peers.remove(&id)
    }

    fn warn_full(&self) {
        let open = self.peers().len();
        tracing::warn!(
            open,
            "--max-connections is reached: new ones wait, or take the place of idle ones"
        );
    }

    /// Notes a connection from `address`, which is open until what this returns is dropped.
    pub(super) fn opened(&self, address: SocketAddr, permit: OwnedSemaphorePermit) -> (Peer, Open) {
        let peer = Peer::new(address);
        let id = self.0.next.fetch_add(1, Ordering::Relaxed);
        self.peers().insert(id, peer.clone());
        self.0.accepted.inc();
        self.0.open.inc();
        (peer, Open { bounds: self.clone(), id, _permit: permit })
    }

    /// A connection could not be accepted.
    pub(super) fn accept_failed(&self) {
        self.0.accept_errors.inc();
    }

    /// A request is refused before it is complete, because of `cause`.
    pub(super) fn refuses(&self, cause: &'static str) {
        self.0.refused.get_or_create(&[(label::CAUSE, cause)]).inc();
    }

    fn closes(&self, cause: &'static str) {
        self.0.closed.get_or_create(&[(label::CAUSE, cause)]).inc();
    }

    fn peers(&self) -> MutexGuard<'_, HashMap<u64, Peer>> {
        self.0.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One open connection.
#[derive(Debug)]
pub(super) struct Open {
    bounds: Bounds,
    id: u64,
    _permit: OwnedSemaphorePermit,
}

impl Open {
    /// It is closed from here, because of `cause`.
    pub(super) fn closes(&self, cause: &'static str) {
        self.bounds.closes(cause);
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.bounds.peers().remove(&self.id);
        self.bounds.0.open.dec();
    }
}

/// Raises the number of files that this process may open to the most that it may ask for, and says what it is.
fn raise_files() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    // Refused on systems whose real limit is lower: what there was holds.
    let _ = setrlimit(Resource::Nofile, raised);
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

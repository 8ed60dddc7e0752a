//! The places that all calls share, and the wait for one.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use stoker_fair::{Full, Queue, Ticket};
use stoker_shared::{ServiceError, deadline::Deadline};
use tokio::{sync::oneshot, time::Instant};

use super::flow::Flow;
use crate::{RouterConfig, metrics::Metrics};

/// What a call wants a place for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asks<'a> {
    /// 0 is the most urgent.
    pub(super) priority: u32,
    pub(super) tenant: &'a Arc<str>,
    /// About how many tokens it is.
    pub(super) tokens: u64,
}

/// A bounded number of places for calls that run, and a bounded queue in front of them.
#[derive(Debug, Clone)]
pub(crate) struct Places(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    config: RouterConfig,
    metrics: Metrics,
}

#[derive(Debug)]
struct State {
    /// Places that nobody has. While there is one, nobody waits.
    free: u32,
    queue: Queue<oneshot::Sender<()>>,
    flow: Flow,
    /// Requests of each tenant, running and waiting, where they are limited.
    of_tenants: HashMap<Arc<str>, u32>,
}

impl State {
    /// Gives free places to those who wait.
    fn hand_out(&mut self) {
        while self.free > 0
            && let Some(turn) = self.queue.pop()
        {
            self.free -= 1;
            self.flow.place(Instant::now());
            // Whoever stops waiting finds out that it was given a place, and gives it back.
            let _ = turn.send(());
        }
    }

    /// How long a request of `tenant` that comes now has to wait; `None` where it is not known, and for the
    /// first one, which may always try: without anybody who waits, nothing new would be learned.
    fn expected(&self, asks: &Asks) -> Option<Duration> {
        let ahead = self.queue.ahead(asks.priority, asks.tenant);
        (ahead > 0).then(|| self.flow.wait(ahead)).flatten()
    }
}

impl Places {
    pub(crate) fn new(config: &RouterConfig, metrics: Metrics) -> Self {
        let size = config.queue_size;
        // Without a header everybody is the same tenant, and a share of the queue would be all there is.
        let share = config.tenant_header.as_ref().map_or(size, |_| config.tenant_queue_size);
        let state = State {
            free: config.max_concurrent_streams,
            queue: Queue::new(size as usize, share as usize),
            flow: Flow::new(Instant::now()),
            of_tenants: HashMap::new(),
        };
        Self(Arc::new(Shared { state: Mutex::new(state), config: config.clone(), metrics }))
    }

    /// Waits for a place. Whoever stops waiting leaves the queue at once.
    pub(super) async fn take(
        &self,
        asks: Asks<'_>,
        deadline: Deadline,
    ) -> Result<Place, ServiceError> {
        let limit = self.0.config.queue_timeout;
        let patience = deadline.remaining().map_or(limit, |left| left.min(limit));
        let share = self.share(asks.tenant).map_err(|refusal| self.refused(&refusal))?;
        let (mut waiter, turn) = match self.enter(&asks, patience) {
            Ok(Entered::Place) => return Ok(self.place(share)),
            Ok(Entered::Queue(waiter, turn)) => (waiter, turn),
            Err(refusal) => return Err(self.refused(&refusal)),
        };
        let _counted = self.0.metrics.queued();
        match tokio::time::timeout(patience, turn).await {
            Ok(Ok(())) => {
                waiter.has_place = true;
                Ok(self.place(share))
            }
            Ok(Err(_)) => Err(ServiceError::Internal("admission is closed".into())),
            Err(_) if deadline.is_over() => {
                Err(ServiceError::DeadlineExceeded { stage: "while queued".into() })
            }
            Err(_) => Err(self.refused(&Refusal::Timeout)),
        }
    }

    fn place(&self, share: Option<Share>) -> Place {
        Place { shared: Arc::clone(&self.0), _share: share }
    }

    /// One more request of `tenant`, if they are limited.
    fn share(&self, tenant: &Arc<str>) -> Result<Option<Share>, Refusal> {
        let RouterConfig { tenant_max_concurrent_streams, tenant_header, .. } = &self.0.config;
        let Some(limit) = tenant_max_concurrent_streams.filter(|_| tenant_header.is_some()) else {
            return Ok(None);
        };
        let mut state = self.0.state();
        let open = state.of_tenants.entry(Arc::clone(tenant)).or_default();
        if *open >= limit {
            return Err(Refusal::Tenant(limit));
        }
        *open += 1;
        Ok(Some(Share { shared: Arc::clone(&self.0), tenant: Arc::clone(tenant) }))
    }

    fn enter(&self, asks: &Asks, patience: Duration) -> Result<Entered, Refusal> {
        let mut state = self.0.state();
        if state.free > 0 {
            state.free -= 1;
            return Ok(Entered::Place);
        }
        if let Some(expected) = state.expected(asks)
            && expected / 2 > patience
        {
            return Err(Refusal::TooLate { expected, patience });
        }
        let (turn, comes) = oneshot::channel();
        let nobody_waits = state.queue.is_empty();
        let Asks { priority, tenant, tokens } = *asks;
        let ticket = state.queue.push(priority, tenant, tokens, turn).map_err(Refusal::Full)?;
        if nobody_waits {
            state.flow.begins(Instant::now());
        }
        let shared = Arc::clone(&self.0);
        let waiter = Waiter { shared, tenant: Arc::clone(tenant), ticket, has_place: false };
        Ok(Entered::Queue(waiter, comes))
    }

    /// When one should come back that is refused now.
    pub(super) fn retry_after(&self) -> Duration {
        let state = self.0.state();
        // Spread out: clients that were refused together must not come back together.
        state.flow.hint(state.queue.len()).mul_f64(rand::random_range(0.5..1.5))
    }

    fn refused(&self, refusal: &Refusal) -> ServiceError {
        let RouterConfig { max_concurrent_streams, queue_size, tenant_queue_size, .. } =
            self.0.config;
        let running = format!("{max_concurrent_streams} streams run (--max-concurrent-streams)");
        let (limit, what) = match refusal {
            Refusal::Full(Full::Queue) => (
                "queue",
                format!("{running} and {queue_size} requests (--queue-size) wait already"),
            ),
            Refusal::Full(Full::Tenant) => (
                "tenant_queue",
                format!(
                    "{running} and {tenant_queue_size} requests of this tenant \
                     (--tenant-queue-size) wait already"
                ),
            ),
            Refusal::Tenant(limit) => (
                "tenant",
                format!(
                    "{limit} requests of this tenant run or wait (--tenant-max-concurrent-streams)"
                ),
            ),
            Refusal::TooLate { expected, patience } => (
                "estimated_wait",
                format!(
                    "{running}; a place is likely in {} ms, and this request can wait for {} ms \
                     (the shorter of its deadline and --queue-timeout)",
                    expected.as_millis(),
                    patience.as_millis()
                ),
            ),
            Refusal::Timeout => (
                "queue_timeout",
                format!("{running}, and no place came free for this one within --queue-timeout"),
            ),
        };
        self.0.metrics.shed(limit);
        ServiceError::Overloaded { what, retry_after: self.retry_after() }
    }

    #[cfg(test)]
    pub(super) fn has_no_tenants(&self) -> bool {
        self.0.state().of_tenants.is_empty()
    }

    #[cfg(test)]
    pub(super) fn free_and_waiting(&self) -> (u32, usize) {
        let state = self.0.state();
        (state.free, state.queue.len())
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn give_back(&self) {
        let mut state = self.state();
        state.free += 1;
        state.hand_out();
    }
}

/// How a call begins.
enum Entered {
    Place,
    Queue(Waiter, oneshot::Receiver<()>),
}

/// Why a call gets no place.
enum Refusal {
    Full(Full),
    /// The tenant has as many requests here as it may.
    Tenant(u32),
    /// Its patience is likely to end first: even half of what is expected is too long.
    TooLate {
        expected: Duration,
        patience: Duration,
    },
    Timeout,
}

/// A place. Dropping it gives it to the next one.
#[derive(Debug)]
pub(super) struct Place {
    shared: Arc<Shared>,
    _share: Option<Share>,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.shared.give_back();
    }
}

/// One of the requests that a tenant may have here.
#[derive(Debug)]
struct Share {
    shared: Arc<Shared>,
    tenant: Arc<str>,
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut state = self.shared.state();
        if let Entry::Occupied(mut open) = state.of_tenants.entry(Arc::clone(&self.tenant)) {
            *open.get_mut() -= 1;
            if *open.get() == 0 {
                open.remove();
            }
        }
    }
}

/// A call that waits. Dropping it takes it out of the queue.
struct Waiter {
    shared: Arc<Shared>,
    tenant: Arc<str>,
    ticket: Ticket,
    /// The place that it was given is somebody else's business now.
    has_place: bool,
}

impl Drop for Waiter {
    fn drop(&mut self) {
        let still_waits = self.shared.state().queue.remove(&self.tenant, self.ticket);
        if !still_waits && !self.has_place {
            // Its turn came in the very moment in which it left.
            self.shared.give_back();
        }
    }
}

#[cfg(test)]
mod tests;

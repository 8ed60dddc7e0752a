//! Slots of the running streams, and the queue for them.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use stoker_fair_queue::{Full, Queue, Ticket};
use stoker_shared::{ServiceError, deadline::Deadline};
use tokio::{sync::oneshot, time::Instant};

use super::wait_estimate::WaitEstimate;
use crate::{RouterConfig, metrics::Metrics};

/// A call's request for a slot.
#[derive(Debug, Clone, Copy)]
pub(super) struct SlotRequest<'a> {
    /// 0 is the most urgent.
    pub(super) priority: u32,
    pub(super) tenant: &'a Arc<str>,
    /// Estimated tokens of the call: its cost in the queue.
    pub(super) tokens: u64,
}

/// A bounded number of slots for running calls, with a bounded queue in front of them.
#[derive(Debug, Clone)]
pub(crate) struct Slots(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    state: Mutex<SlotState>,
    config: RouterConfig,
    metrics: Metrics,
}

#[derive(Debug)]
struct SlotState {
    /// Number of free slots. While there is one, the queue is empty.
    free: u32,
    queue: Queue<oneshot::Sender<()>>,
    estimate: WaitEstimate,
    /// Running and waiting requests of each tenant, if `--tenant-max-concurrent-streams` limits
    /// them.
    by_tenant: HashMap<Arc<str>, u32>,
}

impl SlotState {
    /// Grants free slots to waiting calls.
    fn grant_free(&mut self) {
        while self.free > 0
            && let Some(grant) = self.queue.pop()
        {
            self.free -= 1;
            self.estimate.slot_granted(Instant::now());
            // A waiter that was dropped meanwhile releases the granted slot.
            let _ = grant.send(());
        }
    }

    /// Estimates the wait of `request`. `None` if it is unknown, and for the first request in the
    /// queue, which may always wait: with an empty queue, the estimate would never be updated.
    fn expected_wait(&self, request: &SlotRequest) -> Option<Duration> {
        let ahead = self.queue.ahead(request.priority, request.tenant);
        (ahead > 0).then(|| self.estimate.wait(ahead)).flatten()
    }
}

impl Slots {
    pub(crate) fn new(config: &RouterConfig, metrics: Metrics) -> Self {
        let size = config.queue_size;
        // Without tenants there is only one, which may fill the queue.
        let tenant_size = if config.has_tenants() { config.tenant_queue_size } else { size };
        let state = SlotState {
            free: config.max_concurrent_streams,
            queue: Queue::new(size as usize, tenant_size as usize),
            estimate: WaitEstimate::new(Instant::now()),
            by_tenant: HashMap::new(),
        };
        Self(Arc::new(Inner { state: Mutex::new(state), config: config.clone(), metrics }))
    }

    /// Waits for a slot. Dropping the future removes the call from the queue.
    pub(super) async fn acquire(
        &self,
        request: SlotRequest<'_>,
        deadline: Deadline,
    ) -> Result<Slot, ServiceError> {
        let limit = self.0.config.queue_timeout;
        let max_wait = deadline.remaining().map_or(limit, |left| left.min(limit));
        let tenant_permit =
            self.tenant_permit(request.tenant).map_err(|refusal| self.refused(&refusal))?;
        let (mut waiter, grant) = match self.enter(&request, max_wait) {
            Ok(Acquired::Slot) => return Ok(self.slot(tenant_permit)),
            Ok(Acquired::Queued(waiter, grant)) => (waiter, grant),
            Err(refusal) => return Err(self.refused(&refusal)),
        };
        let _counted = self.0.metrics.queued();
        match tokio::time::timeout(max_wait, grant).await {
            Ok(Ok(())) => {
                waiter.granted = true;
                Ok(self.slot(tenant_permit))
            }
            Ok(Err(_)) => Err(ServiceError::Internal("admission is closed".into())),
            Err(_) if deadline.is_over() => {
                Err(ServiceError::DeadlineExceeded { stage: "while queued".into() })
            }
            Err(_) => Err(self.refused(&Refusal::Timeout)),
        }
    }

    fn slot(&self, tenant_permit: Option<TenantPermit>) -> Slot {
        Slot { inner: Arc::clone(&self.0), _tenant_permit: tenant_permit }
    }

    /// Counts one more request of `tenant`, if they are limited.
    fn tenant_permit(&self, tenant: &Arc<str>) -> Result<Option<TenantPermit>, Refusal> {
        let config = &self.0.config;
        let limit = config.tenant_max_concurrent_streams.filter(|_| config.has_tenants());
        let Some(limit) = limit else {
            return Ok(None);
        };
        let mut state = self.0.state();
        let open = state.by_tenant.entry(Arc::clone(tenant)).or_default();
        if *open >= limit {
            return Err(Refusal::Tenant(limit));
        }
        *open += 1;
        Ok(Some(TenantPermit { inner: Arc::clone(&self.0), tenant: Arc::clone(tenant) }))
    }

    fn enter(&self, request: &SlotRequest, max_wait: Duration) -> Result<Acquired, Refusal> {
        let mut state = self.0.state();
        if state.free > 0 {
            state.free -= 1;
            return Ok(Acquired::Slot);
        }
        if let Some(expected) = state.expected_wait(request)
            && expected / 2 > max_wait
        {
            return Err(Refusal::EstimatedWait { expected, max_wait });
        }
        let (grant, granted) = oneshot::channel();
        let was_empty = state.queue.is_empty();
        let SlotRequest { priority, tenant, tokens } = *request;
        let ticket = state.queue.push(priority, tenant, tokens, grant).map_err(Refusal::Full)?;
        if was_empty {
            state.estimate.queue_started(Instant::now());
        }
        let inner = Arc::clone(&self.0);
        let waiter = Waiter { inner, tenant: Arc::clone(tenant), ticket, granted: false };
        Ok(Acquired::Queued(waiter, granted))
    }

    /// Returns the time after which a request that is refused now should be retried.
    pub(super) fn retry_after(&self) -> Duration {
        let state = self.0.state();
        // Jitter: clients that are refused together must not retry together.
        state.estimate.retry_after(state.queue.len()).mul_f64(rand::random_range(0.5..1.5))
    }

    fn refused(&self, refusal: &Refusal) -> ServiceError {
        let RouterConfig { max_concurrent_streams, queue_size, tenant_queue_size, .. } =
            self.0.config;
        let running =
            format!("{max_concurrent_streams} streams are running (--max-concurrent-streams)");
        let (limit, what) = match refusal {
            Refusal::Full(Full::Queue) => {
                ("queue", format!("{running} and {queue_size} requests are waiting (--queue-size)"))
            }
            Refusal::Full(Full::Tenant) => (
                "tenant_queue",
                format!(
                    "{running} and {tenant_queue_size} requests of this tenant are waiting \
                     (--tenant-queue-size)"
                ),
            ),
            Refusal::Tenant(limit) => (
                "tenant",
                format!(
                    "{limit} requests of this tenant are running or waiting \
                     (--tenant-max-concurrent-streams)"
                ),
            ),
            Refusal::EstimatedWait { expected, max_wait } => (
                "estimated_wait",
                format!(
                    "{running}; the estimated wait for a slot is {} ms, and this request can wait \
                     for {} ms (the shorter of its deadline and --queue-timeout)",
                    expected.as_millis(),
                    max_wait.as_millis()
                ),
            ),
            Refusal::Timeout => (
                "queue_timeout",
                format!("{running}, and no slot became free within --queue-timeout"),
            ),
        };
        self.0.metrics.shed(limit);
        ServiceError::Overloaded { what, retry_after: self.retry_after() }
    }

    #[cfg(test)]
    pub(super) fn has_no_tenants(&self) -> bool {
        self.0.state().by_tenant.is_empty()
    }

    #[cfg(test)]
    pub(super) fn free_and_waiting(&self) -> (u32, usize) {
        let state = self.0.state();
        (state.free, state.queue.len())
    }
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, SlotState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn release(&self) {
        let mut state = self.state();
        state.free += 1;
        state.grant_free();
    }
}

/// Whether a call got a slot or was queued.
enum Acquired {
    Slot,
    Queued(Waiter, oneshot::Receiver<()>),
}

/// Reason why a call gets no slot.
enum Refusal {
    Full(Full),
    /// The tenant has reached this limit on its requests.
    Tenant(u32),
    /// Even half of the estimated wait exceeds what the call can wait.
    EstimatedWait {
        expected: Duration,
        max_wait: Duration,
    },
    Timeout,
}

/// A held slot. Dropping it releases the slot to the next waiting call.
#[derive(Debug)]
pub(super) struct Slot {
    inner: Arc<Inner>,
    _tenant_permit: Option<TenantPermit>,
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.inner.release();
    }
}

/// One counted request of a tenant. Dropping it uncounts the request.
#[derive(Debug)]
struct TenantPermit {
    inner: Arc<Inner>,
    tenant: Arc<str>,
}

impl Drop for TenantPermit {
    fn drop(&mut self) {
        let mut state = self.inner.state();
        if let Entry::Occupied(mut open) = state.by_tenant.entry(Arc::clone(&self.tenant)) {
            *open.get_mut() -= 1;
            if *open.get() == 0 {
                open.remove();
            }
        }
    }
}

/// A waiting call. Dropping it removes it from the queue.
struct Waiter {
    inner: Arc<Inner>,
    tenant: Arc<str>,
    ticket: Ticket,
    /// Whether the call has taken its slot, so that dropping the waiter must not release it.
    granted: bool,
}

impl Drop for Waiter {
    fn drop(&mut self) {
        let still_waits = self.inner.state().queue.remove(&self.tenant, self.ticket);
        if !still_waits && !self.granted {
            // The slot was granted while the call was leaving.
            self.inner.release();
        }
    }
}

#[cfg(test)]
mod tests;

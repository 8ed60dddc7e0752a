//! Outlier detection: ejects workers that fail or are slower than their peers for a while.
//!
//! Calls report their results ([`AttemptPermit`], [`Health::failed`]). One task reviews all workers
//! of a model together ([`policy`] has the rules). As the only one that ejects and re-admits, it
//! never ejects too many. Worker selection reads one atomic.

pub(super) mod health_record;
pub(super) mod policy;
mod window;

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use stoker_shared::ServiceError;
use tokio::{sync::Notify, time::Instant};

use health_record::{HealthRecord, HealthState, Probe};

/// Number of permits of a healthy worker.
const UNLIMITED: u32 = u32::MAX;

/// Health of a worker. Outlives its connections.
#[derive(Debug)]
pub(crate) struct Health {
    /// Number of requests that the worker may be sent now. Mirrors the record, and is changed under
    /// its lock.
    permits: AtomicU32,
    record: Mutex<HealthRecord>,
    /// Requests a review.
    review: Arc<Notify>,
}

impl Default for Health {
    fn default() -> Self {
        Self::new(Arc::default())
    }
}

impl Health {
    /// A healthy worker, whose failures notify `review`.
    pub(crate) fn new(review: Arc<Notify>) -> Self {
        Self { permits: AtomicU32::new(UNLIMITED), record: Mutex::default(), review }
    }

    /// Whether it may be sent no request: it is ejected, or half-open with all probes in flight.
    pub(crate) fn is_ejected(&self) -> bool {
        self.permits.load(Ordering::Relaxed) == 0
    }

    /// Whether it is ejected or half-open.
    pub(crate) fn is_suspected(&self) -> bool {
        self.permits.load(Ordering::Relaxed) != UNLIMITED
    }

    /// Whether it is half-open: it gets a few requests to find out whether it works again.
    pub(crate) fn is_half_open(&self) -> bool {
        self.is_suspected() && matches!(self.lock().state, HealthState::HalfOpen(_))
    }

    /// Takes a permit to send a request. A half-open worker has a limited number of probes, so a
    /// caller that gets `None` has to select another worker.
    pub(crate) fn try_acquire(self: &Arc<Self>) -> Option<AttemptPermit> {
        let health = Arc::clone(self);
        if !self.is_suspected() {
            return Some(AttemptPermit::new(health, None));
        }
        self.change(|record| match record.permits() {
            None => Some(AttemptPermit::new(health, None)),
            Some(_) => record.take_probe().map(|probe| AttemptPermit::new(health, Some(probe))),
        })
    }

    /// Takes a permit regardless of the state, for a request that no other worker can take.
    pub(crate) fn acquire(self: &Arc<Self>) -> AttemptPermit {
        self.try_acquire().unwrap_or_else(|| AttemptPermit::new(Arc::clone(self), None))
    }

    /// Records a failure of the worker that no call returned as an error, for instance a stall.
    pub(crate) fn failed(&self, why: &str) {
        self.change(|record| record.failed(why));
        self.review.notify_one();
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, HealthRecord> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change<T>(&self, change: impl FnOnce(&mut HealthRecord) -> T) -> T {
        let mut record = self.lock();
        let result = change(&mut record);
        self.publish(&record);
        result
    }

    pub(super) fn publish(&self, record: &HealthRecord) {
        self.permits.store(record.permits().unwrap_or(UNLIMITED), Ordering::Relaxed);
    }
}

/// Whether an error counts as a failure of the worker. Invalid requests, deadlines, cancellations,
/// and a full or draining worker do not. INTERNAL counts, since a worker that returns nothing else
/// would look idle and attract all requests. A single request that no worker can compute is soon
/// followed by a completed one, which resets the count. A lost connection is recorded once by its
/// candidate task, not once per stream.
fn is_worker_failure(error: &ServiceError) -> bool {
    matches!(error, ServiceError::Unavailable { .. } | ServiceError::Internal(_))
}

/// Permit to send one request, which also records its result. Dropping it without a result returns
/// its probe.
#[derive(Debug)]
pub(crate) struct AttemptPermit {
    health: Arc<Health>,
    sent: Instant,
    probe: Option<Arc<Probe>>,
}

impl AttemptPermit {
    fn new(health: Arc<Health>, probe: Option<Arc<Probe>>) -> Self {
        Self { health, sent: Instant::now(), probe }
    }

    /// Records that the call failed.
    pub(crate) fn failed(&mut self, error: &ServiceError) {
        if !is_worker_failure(error) {
            return;
        }
        let why = error.to_string();
        match self.probe.take() {
            Some(probe) => {
                self.health.change(|record| record.probe_failed(&probe, &why));
                self.health.review.notify_one();
            }
            None => self.health.failed(&why),
        }
    }

    /// The client polled for the next event; `pending` if it has to wait for the worker.
    pub(crate) fn on_poll(&self, pending: bool) {
        if let Some(probe) = &self.probe {
            probe.on_poll(pending, Instant::now());
        }
    }

    /// Records progress of the response, with the mean time between tokens.
    pub(crate) fn on_progress(&mut self, inter_token: Duration) {
        let probe = self.probe.take();
        self.health.change(|record| record.inter_token.add(Instant::now(), nanos(inter_token)));
        self.probe_succeeded(probe);
    }

    /// Records that the response is complete; `ttft` is the time to first token per prefilled
    /// token.
    pub(crate) fn on_complete(&mut self, ttft: Option<Duration>) {
        let probe = self.probe.take();
        self.health.change(|record| {
            record.completed();
            if let Some(ttft) = ttft {
                record.observe_ttft(self.sent, Instant::now(), nanos(ttft));
            }
        });
        self.probe_succeeded(probe);
    }

    fn probe_succeeded(&self, probe: Option<Arc<Probe>>) {
        if let Some(probe) = probe {
            self.health.change(|record| record.probe_succeeded(&probe));
            self.health.review.notify_one();
        }
    }
}

impl Drop for AttemptPermit {
    fn drop(&mut self) {
        if let Some(probe) = &self.probe {
            self.health.change(|record| record.return_probe(probe));
        }
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
impl Health {
    /// Ejects it for a minute.
    pub(crate) fn eject(&self) {
        self.change(|record| record.eject(Instant::now(), Duration::from_secs(60), 1.0));
    }

    /// Makes it half-open.
    fn begin_half_open(&self) {
        self.change(|record| record.begin_half_open(Instant::now()));
    }

    /// Returns the consecutive failures, and the medians of time to first token and inter-token
    /// latency.
    pub(crate) fn snapshot(&self) -> (u32, Option<Duration>, Option<Duration>) {
        let (mut record, now) = (self.lock(), Instant::now());
        let medians = [record.ttft.median(now, 1), record.inter_token.median(now, 1)];
        let [ttft, inter_token] = medians.map(|nanos| nanos.map(Duration::from_nanos));
        (record.failures, ttft, inter_token)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::{health_record::PROBES, *};

    #[test]
    fn concurrent_permits_are_limited_to_the_number_of_probes() {
        for _ in 0..100 {
            let health = Arc::new(Health::default());
            health.eject();
            assert!(health.is_ejected() && health.try_acquire().is_none());
            assert!(!health.is_half_open());
            health.begin_half_open();
            assert!(health.is_half_open());
            let start = std::sync::Barrier::new(8);
            let permits: Vec<_> = std::thread::scope(|scope| {
                let acquire = || {
                    start.wait();
                    (0..2).filter_map(|_| health.try_acquire()).collect::<Vec<_>>()
                };
                let threads: Vec<_> = (0..8).map(|_| scope.spawn(acquire)).collect();
                threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
            });
            assert_eq!((permits.len(), health.is_ejected()), (PROBES as usize, true));
            drop(permits);
            assert!(!health.is_ejected() && health.is_suspected(), "the probes gave no result");
        }
    }

    #[tokio::test]
    async fn a_probe_of_an_earlier_half_open_state_returns_no_permit() {
        let health = Arc::new(Health::default());
        health.begin_half_open();
        let permit = health.try_acquire().unwrap();
        health.eject();
        drop(permit);
        assert!(health.is_ejected());
        let forced = health.acquire();
        drop(forced);
        assert!(health.is_ejected());
    }

    #[tokio::test(start_paused = true)]
    async fn a_first_token_of_a_request_sent_before_the_half_open_state_is_ignored() {
        let health = Arc::new(Health::default());
        let mut old = health.try_acquire().unwrap();
        tokio::time::advance(Duration::from_secs(1)).await;
        health.begin_half_open();
        let mut new = health.try_acquire().unwrap();
        old.on_complete(Some(Duration::from_secs(9)));
        assert_eq!(health.snapshot().1, None);
        new.on_complete(Some(Duration::from_secs(2)));
        assert_eq!(health.snapshot().1, Some(Duration::from_secs(2)));
    }

    #[tokio::test]
    async fn only_failures_of_the_worker_count() {
        let health = Arc::new(Health::default());
        let mut permit = health.try_acquire().unwrap();
        for error in [
            ServiceError::invalid("prompt", "is empty"),
            ServiceError::UnknownModel { model: "x".into(), available: vec![] },
            ServiceError::Overloaded { what: "full".into(), retry_after: Duration::ZERO },
            ServiceError::Draining("a".into()),
            ServiceError::DeadlineExceeded { stage: "waiting".into() },
            ServiceError::TooLate { what: "it takes 3 s and has 2 s".into() },
            ServiceError::ExceedsWorker { what: "17 of 16".into(), needed_tokens: 17 },
            ServiceError::Mismatch("another digest".into()),
            ServiceError::Preempted("it is busy".into()),
            ServiceError::Cancelled,
            ServiceError::Unsupported("guided".into()),
        ] {
            permit.failed(&error);
            assert_eq!(health.snapshot().0, 0, "{error}");
        }
        permit.failed(&ServiceError::unavailable("lost"));
        permit.failed(&ServiceError::Internal("NaN logits".into()));
        health.failed("no token for 5 s");
        assert_eq!(health.snapshot().0, 3);
        permit.on_complete(None);
        assert_eq!(health.snapshot().0, 0);
    }
}

//! The health of workers: who is left alone for a while, because it fails or is slower than its equals.
//!
//! Calls tell what happened to them ([`AttemptPermit`], [`Health::failed`]). One task reviews all workers of a model
//! together ([`policy`] has the rules) and is the only one that changes who is in, so no two decisions can
//! together put out too many. The choice of a worker reads one atomic.

mod health_record;
mod policy;
mod reviewer;
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

use health_record::{HealthRecord, Probe};
pub(crate) use reviewer::review;

/// As many requests as there are.
const EVERYTHING: u32 = u32::MAX;

/// One worker's health. Outlives its connections.
#[derive(Debug)]
pub(crate) struct Health {
    /// Requests that the worker may be sent now. Follows the record, and is changed under its lock.
    open: AtomicU32,
    record: Mutex<HealthRecord>,
    /// Asks for a review.
    news: Arc<Notify>,
}

impl Default for Health {
    fn default() -> Self {
        Self::new(Arc::default())
    }
}

impl Health {
    /// A healthy one, whose troubles are told to `news`.
    pub(crate) fn new(news: Arc<Notify>) -> Self {
        Self { open: AtomicU32::new(EVERYTHING), record: Mutex::default(), news }
    }

    /// Whether it may be sent nothing at all: it is out, or on trial and all of its probes are under way.
    pub(crate) fn is_ejected(&self) -> bool {
        self.open.load(Ordering::Relaxed) == 0
    }

    /// Whether it is out or on trial.
    pub(crate) fn is_suspected(&self) -> bool {
        self.open.load(Ordering::Relaxed) != EVERYTHING
    }

    /// Leave to send it a request. A worker on trial gives it to no more requests than it has probes, so of
    /// those that chose it at once some get none and have to choose again.
    pub(crate) fn try_acquire(self: &Arc<Self>) -> Option<AttemptPermit> {
        let health = Arc::clone(self);
        if !self.is_suspected() {
            return Some(AttemptPermit::new(health, None));
        }
        self.change(|record| match record.open() {
            None => Some(AttemptPermit::new(health, None)),
            Some(_) => record.take_probe().map(|probe| AttemptPermit::new(health, Some(probe))),
        })
    }

    /// Leave in any case, for a request that has nowhere else to go.
    pub(crate) fn acquire(self: &Arc<Self>) -> AttemptPermit {
        self.try_acquire().unwrap_or_else(|| AttemptPermit::new(Arc::clone(self), None))
    }

    /// Something happened to a call that is the worker's fault, and that the call itself did not tell: it
    /// made no progress, for instance.
    pub(crate) fn failed(&self, why: &str) {
        self.change(|record| record.failed(why));
        self.news.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, HealthRecord> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change<T>(&self, change: impl FnOnce(&mut HealthRecord) -> T) -> T {
        let mut record = self.lock();
        let result = change(&mut record);
        self.publish(&record);
        result
    }

    fn publish(&self, record: &HealthRecord) {
        self.open.store(record.open().unwrap_or(EVERYTHING), Ordering::Relaxed);
    }
}

/// Whether an error is the worker's fault. Its engine's failures are; a connection that is lost is one event,
/// however many streams it had, and counted by whoever watches the connection; what
/// the client asked for, its deadline and its leaving are not, nor is a worker that says that it is full or
/// about to stop. INTERNAL counts since a worker that answers nothing else would otherwise look idle and draw
/// every request; a single request that no worker can compute is soon followed by one that ends well.
fn is_fault(error: &ServiceError) -> bool {
    matches!(error, ServiceError::Unavailable { .. } | ServiceError::Internal(_))
}

/// Leave to send one request, and the duty to tell what came of it. Dropped without a word, it says nothing
/// about the worker, and its probe is somebody else's.
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

    /// The call failed.
    pub(crate) fn failed(&mut self, error: &ServiceError) {
        if !is_fault(error) {
            return;
        }
        let why = error.to_string();
        match self.probe.take() {
            Some(probe) => {
                self.health.change(|record| record.probe_failed(&probe, &why));
                self.health.news.notify_one();
            }
            None => self.health.failed(&why),
        }
    }

    /// The client has asked for the next event, which `waits` for the worker, or was there.
    pub(crate) fn on_poll(&self, waits: bool) {
        if let Some(probe) = &self.probe {
            probe.on_poll(waits, Instant::now());
        }
    }

    /// The answer makes progress: `each` for a token.
    pub(crate) fn on_progress(&mut self, each: Duration) {
        let probe = self.probe.take();
        self.health.change(|record| record.next.add(Instant::now(), nanos(each)));
        self.probed_well(probe);
    }

    /// The answer ended well; its first token took `first` for a token that had to be read.
    pub(crate) fn on_complete(&mut self, first: Option<Duration>) {
        let probe = self.probe.take();
        self.health.change(|record| {
            record.ended_well();
            if let Some(first) = first {
                record.first_token(self.sent, Instant::now(), nanos(first));
            }
        });
        self.probed_well(probe);
    }

    fn probed_well(&self, probe: Option<Arc<Probe>>) {
        if let Some(probe) = probe {
            self.health.change(|record| record.probe_went_well(&probe));
            self.health.news.notify_one();
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
    /// Puts it out for a long time.
    pub(crate) fn eject(&self) {
        self.change(|record| record.eject(Instant::now(), Duration::from_secs(60), 1.0));
    }

    /// Puts it on trial.
    fn try_out(&self) {
        self.change(|record| record.try_out(Instant::now()));
    }

    /// Failures in a row, and the medians of what was measured: until the first token, and between tokens.
    pub(crate) fn snapshot(&self) -> (u32, Option<Duration>, Option<Duration>) {
        let (mut record, now) = (self.lock(), Instant::now());
        let medians = [record.first.median(now, 1), record.next.median(now, 1)];
        let [first, next] = medians.map(|nanos| nanos.map(Duration::from_nanos));
        (record.failures, first, next)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::{health_record::PROBES, *};

    #[test]
    fn no_more_calls_than_probes_enter_at_once() {
        for _ in 0..100 {
            let health = Arc::new(Health::default());
            health.eject();
            assert!(health.is_ejected() && health.try_acquire().is_none());
            health.try_out();
            let start = std::sync::Barrier::new(8);
            let passes: Vec<_> = std::thread::scope(|scope| {
                let enter = || {
                    start.wait();
                    (0..2).filter_map(|_| health.try_acquire()).collect::<Vec<_>>()
                };
                let threads: Vec<_> = (0..8).map(|_| scope.spawn(enter)).collect();
                threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
            });
            assert_eq!((passes.len(), health.is_ejected()), (PROBES as usize, true));
            drop(passes);
            assert!(!health.is_ejected() && health.is_suspected(), "they said nothing");
        }
    }

    #[tokio::test]
    async fn a_probe_of_an_earlier_trial_opens_nothing() {
        let health = Arc::new(Health::default());
        health.try_out();
        let pass = health.try_acquire().unwrap();
        health.eject();
        drop(pass);
        assert!(health.is_ejected());
        let anyway = health.acquire();
        drop(anyway);
        assert!(health.is_ejected());
    }

    #[tokio::test(start_paused = true)]
    async fn a_first_token_from_before_the_trial_says_nothing() {
        let health = Arc::new(Health::default());
        let mut old = health.try_acquire().unwrap();
        tokio::time::advance(Duration::from_secs(1)).await;
        health.try_out();
        let mut new = health.try_acquire().unwrap();
        old.on_complete(Some(Duration::from_secs(9)));
        assert_eq!(health.snapshot().1, None);
        new.on_complete(Some(Duration::from_secs(2)));
        assert_eq!(health.snapshot().1, Some(Duration::from_secs(2)));
    }

    #[tokio::test]
    async fn only_a_fault_of_the_worker_counts() {
        let health = Arc::new(Health::default());
        let mut pass = health.try_acquire().unwrap();
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
            pass.failed(&error);
            assert_eq!(health.snapshot().0, 0, "{error}");
        }
        pass.failed(&ServiceError::unavailable("lost"));
        pass.failed(&ServiceError::Internal("NaN logits".into()));
        health.failed("no token for 5 s");
        assert_eq!(health.snapshot().0, 3);
        pass.on_complete(None);
        assert_eq!(health.snapshot().0, 0);
    }
}

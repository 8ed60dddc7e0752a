//! Health record of one worker. Pure: the clock is an argument.

use std::{
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

use super::window::Window;

/// Probes that must succeed before a worker is re-admitted; also the maximum number in flight.
pub(in crate::pool) const PROBES: u32 = 3;
/// Time of healthy operation after which the ejection count is reset.
const EJECTIONS_RESET: Duration = Duration::from_secs(300);
/// Maximum ejection time, unless the base ejection time is longer.
const MAX_EJECTION: Duration = Duration::from_secs(300);

/// Time after which a probe whose client does not read is replaced, since it may give no result.
const UNREAD_TIMEOUT: Duration = Duration::from_secs(1);
/// Time without a result after which the half-open state sends further probes.
const HALF_OPEN_TIMEOUT: Duration = Duration::from_secs(10);

/// Permit for one request to a half-open worker.
#[derive(Debug)]
pub(in crate::pool) struct Probe {
    /// Epoch of the half-open state that it belongs to.
    epoch: u32,
    /// Time since which an event is ready and not read; `None` while the client waits for the
    /// worker.
    unread_since: Mutex<Option<Instant>>,
    /// Whether it was returned or replaced by another probe.
    returned: AtomicBool,
}

impl Probe {
    fn new(epoch: u32) -> Arc<Self> {
        Arc::new(Self { epoch, unread_since: Mutex::default(), returned: AtomicBool::new(false) })
    }

    /// The client polled for the next event; `pending` if it has to wait for the worker.
    pub(in crate::pool) fn on_poll(&self, pending: bool, now: Instant) {
        let since = (!pending).then_some(now);
        *self.unread_since.lock().unwrap_or_else(PoisonError::into_inner) = since;
    }

    fn is_unread(&self, now: Instant) -> bool {
        let since = *self.unread_since.lock().unwrap_or_else(PoisonError::into_inner);
        since.is_some_and(|since| now - since >= UNREAD_TIMEOUT)
    }
}

/// State of outlier detection for a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(in crate::pool) enum HealthState {
    /// Takes requests.
    #[default]
    Healthy,
    /// Takes no requests until then.
    Ejected { until: Instant },
    /// Takes a few requests as probes.
    HalfOpen(HalfOpen),
}

/// Progress of the half-open state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::pool) struct HalfOpen {
    /// Probes that may still be sent.
    pub(in crate::pool) remaining: u32,
    /// Probes that succeeded.
    pub(in crate::pool) succeeded: u32,
    /// Whether a probe failed.
    pub(in crate::pool) failed: bool,
    /// When the state began or was last granted further probes.
    since: Instant,
}

/// Health record of a worker, which outlives its connections.
#[derive(Debug, Default)]
pub(in crate::pool) struct HealthRecord {
    pub(in crate::pool) state: HealthState,
    /// Whether the state is ignored because too few other workers take requests.
    pub(in crate::pool) overruled: bool,
    /// Consecutive failures since the last completed response.
    pub(in crate::pool) failures: u32,
    /// Message of the last failure.
    pub(in crate::pool) last_failure: String,
    /// Requests sent before this time do not count towards the time to first token.
    measured_since: Option<Instant>,
    /// Time to first token, in nanoseconds per prefilled token.
    pub(in crate::pool) ttft: Window,
    /// Time between two tokens, in nanoseconds.
    pub(in crate::pool) inter_token: Window,
    /// Consecutive ejections.
    ejections: u32,
    /// Time of the last re-admission; `None` if never ejected.
    since: Option<Instant>,
    /// Number of the current half-open state, to ignore probes of earlier ones.
    epoch: u32,
    /// Probes in flight.
    probes: Vec<Weak<Probe>>,
}

impl HealthRecord {
    /// Number of requests that the worker may be sent now; `None` is no limit.
    pub(in crate::pool) fn permits(&self) -> Option<u32> {
        match self.state {
            _ if self.overruled => None,
            HealthState::Healthy => None,
            HealthState::Ejected { .. } => Some(0),
            HealthState::HalfOpen(half_open) => Some(half_open.remaining),
        }
    }

    /// Takes a probe, if the worker is half-open and one remains.
    pub(in crate::pool) fn take_probe(&mut self) -> Option<Arc<Probe>> {
        match &mut self.state {
            HealthState::HalfOpen(half_open) if !self.overruled && half_open.remaining > 0 => {
                half_open.remaining -= 1;
                let probe = Probe::new(self.epoch);
                self.probes.push(Arc::downgrade(&probe));
                Some(probe)
            }
            _ => None,
        }
    }

    /// Returns the half-open state that `probe` belongs to, if it is current.
    fn half_open(&mut self, probe: &Probe) -> Option<&mut HalfOpen> {
        match &mut self.state {
            HealthState::HalfOpen(half_open) if probe.epoch == self.epoch => Some(half_open),
            _ => None,
        }
    }

    /// Returns a probe that gave no result.
    pub(in crate::pool) fn return_probe(&mut self, probe: &Probe) {
        if let Some(half_open) = self.half_open(probe)
            && !probe.returned.swap(true, Ordering::Relaxed)
        {
            half_open.remaining += 1;
        }
    }

    /// Replaces probes without a result: those whose clients do not read, after [`UNREAD_TIMEOUT`],
    /// and all others after [`HALF_OPEN_TIMEOUT`]. Their later results still count.
    pub(in crate::pool) fn renew_probes(&mut self, now: Instant) {
        let HealthState::HalfOpen(half_open) = &mut self.state else { return };
        let timed_out = now - half_open.since >= HALF_OPEN_TIMEOUT;
        if timed_out {
            half_open.since = now;
        }
        let mut probes = std::mem::take(&mut self.probes);
        probes.retain(|probe| {
            let Some(probe) = probe.upgrade() else { return false };
            let replaced = timed_out || probe.is_unread(now);
            if replaced {
                self.return_probe(&probe);
            }
            !replaced
        });
        self.probes = probes;
    }

    /// Records that a probe succeeded.
    pub(in crate::pool) fn probe_succeeded(&mut self, probe: &Probe) {
        if let Some(half_open) = self.half_open(probe) {
            half_open.succeeded += 1;
        }
    }

    /// Records that a probe failed.
    pub(in crate::pool) fn probe_failed(&mut self, probe: &Probe, why: &str) {
        if let Some(half_open) = self.half_open(probe) {
            half_open.failed = true;
            self.last_failure = why.to_owned();
        }
    }

    /// Records a failure outside of a probe.
    pub(in crate::pool) fn failed(&mut self, why: &str) {
        match &mut self.state {
            HealthState::Healthy => self.failures = self.failures.saturating_add(1),
            HealthState::HalfOpen(half_open) => half_open.failed = true,
            HealthState::Ejected { .. } => return,
        }
        self.last_failure = why.to_owned();
    }

    /// Records a completed response.
    pub(in crate::pool) fn completed(&mut self) {
        self.failures = 0;
    }

    /// Records the time to first token of a request sent at `sent`, in nanoseconds per prefilled
    /// token.
    pub(in crate::pool) fn observe_ttft(&mut self, sent: Instant, now: Instant, nanos: u64) {
        if self.measured_since.is_none_or(|since| sent >= since) {
            self.ttft.add(now, nanos);
        }
    }

    /// Ejects the worker for `base`, doubled on each consecutive ejection, times `spread` (at least
    /// 1). Returns the ejection time.
    pub(in crate::pool) fn eject(&mut self, now: Instant, base: Duration, spread: f64) -> Duration {
        let was_healthy = matches!(self.state, HealthState::Healthy);
        if was_healthy && self.since.is_some_and(|since| now - since >= EJECTIONS_RESET) {
            self.ejections = 0;
        }
        let doubled = base.saturating_mul(1 << self.ejections.min(20));
        let time = doubled.min(MAX_EJECTION.max(base)).mul_f64(spread);
        self.ejections += 1;
        self.state = HealthState::Ejected { until: now + time };
        time
    }

    /// Makes the worker half-open: a few requests probe it.
    pub(in crate::pool) fn begin_half_open(&mut self, now: Instant) {
        self.epoch = self.epoch.wrapping_add(1);
        let half_open = HalfOpen { remaining: PROBES, succeeded: 0, failed: false, since: now };
        self.state = HealthState::HalfOpen(half_open);
        self.probes.clear();
        self.measured_since = Some(now);
        self.ttft.clear();
        self.inter_token.clear();
    }

    /// Re-admits the worker.
    pub(in crate::pool) fn readmit(&mut self, now: Instant) {
        self.state = HealthState::Healthy;
        self.failures = 0;
        self.since = Some(now);
    }
}

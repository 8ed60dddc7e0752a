//! What is known of one worker's health. Pure: the clock is an argument.

use std::{
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

use super::window::Window;

/// Probes that must go well before a worker is in again, and that may be under way at once.
pub(super) const PROBES: u32 = 3;
/// A worker that was in for so long begins anew: what was before it is forgotten.
const FORGIVEN: Duration = Duration::from_secs(300);
/// The longest time out, unless the first is longer.
const LONGEST: Duration = Duration::from_secs(300);

/// A probe whose client has not read for so long is replaced: it may say nothing for as long as the client likes.
const UNREAD: Duration = Duration::from_secs(1);
/// A trial without a result after so long sends further probes.
const TRIAL: Duration = Duration::from_secs(10);

/// Leave to send one request of a trial.
#[derive(Debug)]
pub(super) struct Probe {
    /// The trial that it belongs to.
    trial: u32,
    /// The client has had the last event since then; `None` while the worker is waited for.
    unread_since: Mutex<Option<Instant>>,
    /// Another one was sent in its place.
    returned: AtomicBool,
}

impl Probe {
    fn new(trial: u32) -> Arc<Self> {
        Arc::new(Self { trial, unread_since: Mutex::default(), returned: AtomicBool::new(false) })
    }

    /// The client has asked for the next event, which `waits` for the worker, or was there.
    pub(super) fn on_poll(&self, waits: bool, now: Instant) {
        let since = (!waits).then_some(now);
        *self.unread_since.lock().unwrap_or_else(PoisonError::into_inner) = since;
    }

    fn is_unread(&self, now: Instant) -> bool {
        let since = *self.unread_since.lock().unwrap_or_else(PoisonError::into_inner);
        since.is_some_and(|since| now - since >= UNREAD)
    }
}

/// Whether a worker takes requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Condition {
    /// Like everybody.
    #[default]
    In,
    /// Not before then.
    Out { until: Instant },
    /// A few, to see how they go.
    Trial(Trial),
}

/// How a trial stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Trial {
    /// Probes that may still be sent.
    pub(super) left: u32,
    /// Probes that went well.
    pub(super) good: u32,
    /// One did not.
    pub(super) bad: bool,
    /// When it began, or last sent further probes.
    since: Instant,
}

/// One worker's record, kept across its connections.
#[derive(Debug, Default)]
pub(super) struct HealthRecord {
    pub(super) condition: Condition,
    /// The condition is overruled: too few others are left.
    pub(super) ignored: bool,
    /// Since the last answer that ended well.
    pub(super) failures: u32,
    /// What the last failure was.
    pub(super) last_failure: String,
    /// What was asked for before says nothing of the worker as it is now.
    measured_since: Option<Instant>,
    /// Until the first token, in nanoseconds per token that had to be read.
    pub(super) first: Window,
    /// Between two tokens, in nanoseconds.
    pub(super) next: Window,
    /// Ejections in a row.
    strikes: u32,
    /// In since then; for ever, if it was never out.
    since: Option<Instant>,
    /// Tells a trial from those before it.
    trial: u32,
    /// The probes that are under way.
    probes: Vec<Weak<Probe>>,
}

impl HealthRecord {
    /// Requests that it may be sent now; `None` is no limit.
    pub(super) fn open(&self) -> Option<u32> {
        match self.condition {
            _ if self.ignored => None,
            Condition::In => None,
            Condition::Out { .. } => Some(0),
            Condition::Trial(trial) => Some(trial.left),
        }
    }

    /// Takes a probe of a trial.
    pub(super) fn take_probe(&mut self) -> Option<Arc<Probe>> {
        match &mut self.condition {
            Condition::Trial(trial) if !self.ignored && trial.left > 0 => {
                trial.left -= 1;
                let probe = Probe::new(self.trial);
                self.probes.push(Arc::downgrade(&probe));
                Some(probe)
            }
            _ => None,
        }
    }

    /// The trial of a probe, if it still goes on.
    fn trial(&mut self, probe: &Probe) -> Option<&mut Trial> {
        match &mut self.condition {
            Condition::Trial(trial) if probe.trial == self.trial => Some(trial),
            _ => None,
        }
    }

    /// A probe came to nothing that says anything of the worker.
    pub(super) fn return_probe(&mut self, probe: &Probe) {
        if let Some(trial) = self.trial(probe)
            && !probe.returned.swap(true, Ordering::Relaxed)
        {
            trial.left += 1;
        }
    }

    /// Replaces probes that say nothing: those whose clients do not read at once, and all others after a while. What they
    /// say later still counts.
    pub(super) fn renew_probes(&mut self, now: Instant) {
        let Condition::Trial(trial) = &mut self.condition else { return };
        let is_over = now - trial.since >= TRIAL;
        if is_over {
            trial.since = now;
        }
        let mut probes = std::mem::take(&mut self.probes);
        probes.retain(|probe| {
            let Some(probe) = probe.upgrade() else { return false };
            let silent = is_over || probe.is_unread(now);
            if silent {
                self.return_probe(&probe);
            }
            !silent
        });
        self.probes = probes;
    }

    /// A probe went well.
    pub(super) fn probe_went_well(&mut self, probe: &Probe) {
        if let Some(trial) = self.trial(probe) {
            trial.good += 1;
        }
    }

    /// A probe failed.
    pub(super) fn probe_failed(&mut self, probe: &Probe, why: &str) {
        if let Some(trial) = self.trial(probe) {
            trial.bad = true;
            self.last_failure = why.to_owned();
        }
    }

    /// Something failed that was no probe.
    pub(super) fn failed(&mut self, why: &str) {
        match &mut self.condition {
            Condition::In => self.failures = self.failures.saturating_add(1),
            Condition::Trial(trial) => trial.bad = true,
            Condition::Out { .. } => return,
        }
        self.last_failure = why.to_owned();
    }

    /// An answer ended well.
    pub(super) fn ended_well(&mut self) {
        self.failures = 0;
    }

    /// What the first token took of a request that was sent at `sent`.
    pub(super) fn first_token(&mut self, sent: Instant, now: Instant, nanos: u64) {
        if self.measured_since.is_none_or(|since| sent >= since) {
            self.first.add(now, nanos);
        }
    }

    /// Puts it out, for `base` the first time and twice as long each time; `spread` is from 1 on. Answers for
    /// how long.
    pub(super) fn eject(&mut self, now: Instant, base: Duration, spread: f64) -> Duration {
        let was_in = matches!(self.condition, Condition::In);
        if was_in && self.since.is_some_and(|since| now - since >= FORGIVEN) {
            self.strikes = 0;
        }
        let doubled = base.saturating_mul(1 << self.strikes.min(20));
        let time = doubled.min(LONGEST.max(base)).mul_f64(spread);
        self.strikes += 1;
        self.condition = Condition::Out { until: now + time };
        time
    }

    /// Lets a few requests through.
    pub(super) fn try_out(&mut self, now: Instant) {
        self.trial = self.trial.wrapping_add(1);
        let trial = Trial { left: PROBES, good: 0, bad: false, since: now };
        self.condition = Condition::Trial(trial);
        self.probes.clear();
        self.measured_since = Some(now);
        self.first.clear();
        self.next.clear();
    }

    /// Takes it in again.
    pub(super) fn let_in(&mut self, now: Instant) {
        self.condition = Condition::In;
        self.failures = 0;
        self.since = Some(now);
    }
}

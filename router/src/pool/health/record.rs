//! What is known of one worker's health. Pure: the clock is an argument.

use std::time::Duration;

use tokio::time::Instant;

use super::window::Window;

/// Probes that must go well before a worker is in again, and that may be under way at once.
pub(super) const PROBES: u32 = 3;
/// A worker that was in for so long begins anew: what was before it is forgotten.
const FORGIVEN: Duration = Duration::from_secs(300);
/// The longest time out, unless the first is longer.
const LONGEST: Duration = Duration::from_secs(300);

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
}

/// One worker's record, kept across its connections.
#[derive(Debug, Default)]
pub(super) struct Record {
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
}

impl Record {
    /// Requests that it may be sent now; `None` is no limit.
    pub(super) fn open(&self) -> Option<u32> {
        match self.condition {
            _ if self.ignored => None,
            Condition::In => None,
            Condition::Out { .. } => Some(0),
            Condition::Trial(trial) => Some(trial.left),
        }
    }

    /// Takes a probe of a trial, and answers of which.
    pub(super) fn take_probe(&mut self) -> Option<u32> {
        match &mut self.condition {
            Condition::Trial(trial) if !self.ignored && trial.left > 0 => {
                trial.left -= 1;
                Some(self.trial)
            }
            _ => None,
        }
    }

    /// The trial of that number, if it still goes on.
    fn trial(&mut self, number: u32) -> Option<&mut Trial> {
        match &mut self.condition {
            Condition::Trial(trial) if number == self.trial => Some(trial),
            _ => None,
        }
    }

    /// A probe came to nothing that says anything of the worker.
    pub(super) fn return_probe(&mut self, number: u32) {
        if let Some(trial) = self.trial(number) {
            trial.left += 1;
        }
    }

    /// A probe went well.
    pub(super) fn probe_went_well(&mut self, number: u32) {
        if let Some(trial) = self.trial(number) {
            trial.good += 1;
        }
    }

    /// A probe failed.
    pub(super) fn probe_failed(&mut self, number: u32, why: &str) {
        if let Some(trial) = self.trial(number) {
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
        self.condition = Condition::Trial(Trial { left: PROBES, good: 0, bad: false });
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

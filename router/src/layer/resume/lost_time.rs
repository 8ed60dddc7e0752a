//! Where the time went that lost workers can no longer tell about.

use std::time::Duration;

use stoker_proto::{
    duration::{from_wire, to_wire},
    v1::Timings,
};
use tokio::time::Instant;

/// One attempt as the router saw it.
#[derive(Debug, Clone, Copy)]
pub(super) struct AttemptTimes {
    /// When it was sent to the worker.
    pub(super) began: Instant,
    /// Its first token, once it came.
    pub(super) first_token: Option<Instant>,
    /// Since when the next event is awaited: the last one came by then.
    pub(super) last: Instant,
}

impl AttemptTimes {
    /// Begins now.
    pub(super) fn new() -> Self {
        let now = Instant::now();
        Self { began: now, first_token: None, last: now }
    }
}

/// What all lost attempts of an accepted stream have cost.
#[derive(Debug, Default)]
pub(super) struct LostTime {
    /// How often another worker took over.
    pub(super) resumes: u32,
    /// Until the first token of an attempt, and from there to its last.
    prefill: Duration,
    decode: Duration,
    /// From the last event of a lost worker to the next worker's first.
    resume: Duration,
    time_to_first_token: Option<Duration>,
}

impl LostTime {
    /// An attempt was lost at `end`.
    pub(super) fn add_attempt(&mut self, times: &AttemptTimes, end: Instant) {
        let first = times.first_token.unwrap_or(end);
        self.prefill += first.saturating_duration_since(times.began);
        self.decode += end.saturating_duration_since(first);
        if times.first_token.is_some() {
            self.time_to_first_token.get_or_insert(first.saturating_duration_since(times.began));
        }
    }

    /// Another worker has taken over, that long after the last one was lost.
    pub(super) fn add_resume(&mut self, after: Duration) {
        self.resumes += 1;
        self.resume += after;
    }

    /// Adds it to what the worker says that ended the answer, so that the stages still sum to the whole.
    pub(super) fn complete(&self, timings: &mut Timings) {
        if self.resumes == 0 {
            return;
        }
        add(&mut timings.prefill, self.prefill);
        add(&mut timings.decode, self.decode);
        add(&mut timings.worker_total, self.prefill + self.decode);
        add(&mut timings.resume, self.resume);
        timings.resumes = self.resumes;
        if let Some(first) = self.time_to_first_token {
            timings.time_to_first_token = to_wire(first);
        }
    }
}

fn add(stage: &mut Option<prost_types::Duration>, more: Duration) {
    *stage = to_wire(from_wire(*stage).unwrap_or_default() + more);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    const fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn stages_of_lost_attempts_are_added() {
        let began = Instant::now();
        let times = AttemptTimes { began, first_token: Some(began + ms(30)), last: began + ms(90) };
        let mut lost_time = LostTime::default();
        lost_time.add_attempt(&times, began + ms(100));
        lost_time.add_resume(ms(7));
        let mut timings = Timings {
            prefill: to_wire(ms(5)),
            decode: to_wire(ms(50)),
            worker_total: to_wire(ms(60)),
            time_to_first_token: to_wire(ms(6)),
            ..Default::default()
        };
        lost_time.complete(&mut timings);
        let of = |stage| from_wire(stage).unwrap();
        assert_eq!((of(timings.prefill), of(timings.decode)), (ms(35), ms(120)));
        assert_eq!((of(timings.worker_total), of(timings.resume)), (ms(160), ms(7)));
        assert_eq!((of(timings.time_to_first_token), timings.resumes), (ms(30), 1));
    }

    #[test]
    fn an_undisturbed_answer_is_left_as_it_is() {
        let mut timings = Timings::default();
        LostTime::default().complete(&mut timings);
        assert_eq!(timings, Timings::default());
    }
}

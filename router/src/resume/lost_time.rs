//! Timings of attempts whose workers were lost, as measured by the router.

use std::time::Duration;

use stoker_proto::{
    duration::{or_zero, to_wire},
    v1::Timings,
};
use tokio::time::Instant;

/// Times of one attempt as measured by the router.
#[derive(Debug, Clone, Copy)]
pub(super) struct AttemptTimes {
    /// Time when it was sent to the worker.
    pub(super) began: Instant,
    /// Time of its first token.
    pub(super) first_token: Option<Instant>,
    /// Start of the wait for the next event, after the last one was received.
    pub(super) last: Instant,
}

impl AttemptTimes {
    /// Starts an attempt now.
    pub(super) fn new() -> Self {
        let now = Instant::now();
        Self { began: now, first_token: None, last: now }
    }
}

/// Total times of the lost attempts of a stream.
#[derive(Debug, Default)]
pub(super) struct LostTime {
    /// Number of resumes.
    pub(super) resumes: u32,
    /// Time up to the first token of each attempt, and from there to its end.
    prefill: Duration,
    decode: Duration,
    time_to_first_token: Option<Duration>,
}

impl LostTime {
    /// Adds an attempt that was lost at `end`.
    pub(super) fn add_attempt(&mut self, times: &AttemptTimes, end: Instant) {
        let first = times.first_token.unwrap_or(end);
        self.prefill += first.saturating_duration_since(times.began);
        self.decode += end.saturating_duration_since(first);
        if times.first_token.is_some() {
            self.time_to_first_token.get_or_insert(first.saturating_duration_since(times.began));
        }
    }

    /// Adds the lost time to the last worker's timings, so that they are about the whole response.
    pub(super) fn complete(&self, timings: &mut Timings) {
        if self.resumes == 0 {
            return;
        }
        add(&mut timings.prefill, self.prefill);
        add(&mut timings.decode, self.decode);
        add(&mut timings.worker_total, self.prefill + self.decode);
        timings.resumes = self.resumes;
        if let Some(first) = self.time_to_first_token {
            timings.time_to_first_token = to_wire(first);
        }
    }
}

fn add(stage: &mut Option<prost_types::Duration>, more: Duration) {
    *stage = to_wire(or_zero(*stage) + more);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use stoker_proto::duration::from_wire;

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
        lost_time.resumes += 1;
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
        assert_eq!(of(timings.worker_total), ms(160));
        assert_eq!((of(timings.time_to_first_token), timings.resumes), (ms(30), 1));
    }

    #[test]
    fn timings_without_a_resume_are_unchanged() {
        let mut timings = Timings::default();
        LostTime::default().complete(&mut timings);
        assert_eq!(timings, Timings::default());
    }
}

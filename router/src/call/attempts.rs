//! The attempts of a request: their numbers, and what became of them.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use stoker_proto::{duration::to_wire, v1::AttemptRecord};
use stoker_shared::{ServiceError, discovery::WorkerId};
use tokio::time::Instant;

use super::timeline::push_bounded;

/// The attempts of a request, numbered from 1. Clones share them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Attempts(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    /// Number of the last attempt.
    last: u32,
    log: Vec<Attempt>,
}

/// An attempt that reached a worker.
#[derive(Debug)]
struct Attempt {
    number: u32,
    worker: WorkerId,
    cause: Option<&'static str>,
    began: Instant,
    ended: Option<Instant>,
    error: Option<&'static str>,
}

impl Attempts {
    /// Returns the number of the next attempt.
    pub(super) fn next(&self) -> u32 {
        let mut state = self.lock();
        state.last += 1;
        state.last
    }

    /// Records that attempt `number` began at `worker`, because of `cause` if it is not the first
    /// one.
    pub(crate) fn began(
        &self,
        number: u32,
        worker: &WorkerId,
        cause: Option<&'static str>,
        began: Instant,
    ) {
        let worker = worker.clone();
        let attempt = Attempt { number, worker, cause, began, ended: None, error: None };
        push_bounded(&mut self.lock().log, attempt);
    }

    /// Records the error of attempt `number`.
    pub(crate) fn failed(&self, number: u32, error: &ServiceError) {
        self.change(number, |attempt| attempt.error = Some(error.reason()));
    }

    /// Records that attempt `number` has ended.
    pub(crate) fn ended(&self, number: u32) {
        self.change(number, |attempt| {
            attempt.ended.get_or_insert_with(Instant::now);
        });
    }

    /// Records that the last attempt at `worker` was given up because of `error`, and did no work
    /// after `end`: its loss may have been noticed later.
    pub(crate) fn lost(&self, worker: &WorkerId, end: Instant, error: &ServiceError) {
        let mut state = self.lock();
        let at_worker = state.log.iter_mut().rev().find(|attempt| attempt.worker == *worker);
        if let Some(attempt) = at_worker {
            attempt.ended = Some(end.max(attempt.began));
            attempt.error.get_or_insert(error.reason());
        }
    }

    /// Returns all attempts of a request that arrived at `arrived`. What has not ended lasts until
    /// `now`.
    pub(crate) fn records(&self, arrived: Instant, now: Instant) -> Vec<AttemptRecord> {
        let record = |attempt: &Attempt| AttemptRecord {
            attempt: attempt.number,
            worker: attempt.worker.to_string(),
            cause: attempt.cause.unwrap_or_default().into(),
            start: to_wire(attempt.began - arrived),
            duration: to_wire(attempt.ended.unwrap_or(now) - attempt.began),
            running: attempt.ended.is_none(),
            error: attempt.error.unwrap_or_default().into(),
        };
        self.lock().log.iter().map(record).collect()
    }

    fn change(&self, number: u32, change: impl FnOnce(&mut Attempt)) {
        let mut state = self.lock();
        // The last one, nearly always.
        if let Some(found) = state.log.iter_mut().rev().find(|attempt| attempt.number == number) {
            change(found);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn attempts_have_their_worker_times_and_error() {
        let (arrived, attempts) = (Instant::now(), Attempts::default());
        let second = Duration::from_secs(1);
        for worker in ["a", "b"] {
            tokio::time::advance(second).await;
            let number = attempts.next();
            let cause = (number > 1).then_some("UNAVAILABLE");
            attempts.began(number, &WorkerId::new(worker), cause, Instant::now());
        }
        let lost = Instant::now();
        tokio::time::advance(second).await;
        attempts.ended(1);
        attempts.lost(&WorkerId::new("a"), lost, &ServiceError::unavailable("lost"));
        let first = AttemptRecord {
            attempt: 1,
            worker: "a".into(),
            start: to_wire(second),
            duration: to_wire(second),
            error: "UNAVAILABLE".into(),
            ..AttemptRecord::default()
        };
        let next = AttemptRecord {
            attempt: 2,
            worker: "b".into(),
            cause: "UNAVAILABLE".into(),
            start: to_wire(2 * second),
            running: true,
            error: String::new(),
            ..first.clone()
        };
        assert_eq!(attempts.records(arrived, Instant::now()), [first, next]);
    }

    #[tokio::test]
    async fn of_many_attempts_the_first_and_the_last_are_kept() {
        let (arrived, attempts) = (Instant::now(), Attempts::default());
        for _ in 0..1_000 {
            let number = attempts.next();
            attempts.began(number, &WorkerId::new("a"), None, arrived);
        }
        let kept: Vec<_> = attempts.records(arrived, arrived).iter().map(|a| a.attempt).collect();
        assert_eq!((kept.len(), kept[0], kept[1], kept[kept.len() - 1]), (64, 1, 2, 1_000));
    }
}

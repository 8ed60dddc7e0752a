//! Estimate of the wait for a slot, from the observed gaps between grants. Pure: the clock is an
//! argument.

use std::time::Duration;

use tokio::time::Instant;

/// Minimum number of observed grants for an estimate.
const MIN_OBSERVATIONS: u32 = 8;
/// Length of the moving average: a new gap weighs 1 / `WEIGHT`.
const WEIGHT: u32 = 8;
/// Retry-after without an estimate, and its minimum and maximum.
const DEFAULT_RETRY_AFTER: Duration = Duration::from_secs(1);
const MIN_RETRY_AFTER: Duration = Duration::from_millis(100);
const MAX_RETRY_AFTER: Duration = Duration::from_secs(30);

/// Tracks the grants to waiting calls. While the queue is empty, there is nothing to observe.
#[derive(Debug)]
pub(super) struct WaitEstimate {
    /// Moving average of the time between two grants.
    gap: Duration,
    observations: u32,
    /// Time of the last grant, or when the queue became non-empty.
    since: Instant,
}

impl WaitEstimate {
    pub(super) fn new(now: Instant) -> Self {
        Self { gap: Duration::ZERO, observations: 0, since: now }
    }

    /// Notes that the queue became non-empty.
    pub(super) fn queue_started(&mut self, now: Instant) {
        self.since = now;
    }

    /// Notes that a slot was granted to a waiting call.
    pub(super) fn slot_granted(&mut self, now: Instant) {
        let gap = now.saturating_duration_since(self.since);
        self.since = now;
        self.observations = (self.observations + 1).min(WEIGHT);
        self.gap = (self.gap * (self.observations - 1) + gap) / self.observations;
    }

    /// Estimates the wait of a call with `ahead` calls before it in the queue.
    pub(super) fn wait(&self, ahead: usize) -> Option<Duration> {
        let slots = u32::try_from(ahead).unwrap_or(u32::MAX).saturating_add(1);
        (self.observations >= MIN_OBSERVATIONS).then(|| self.gap.saturating_mul(slots))
    }

    /// Returns the retry-after, without jitter, for a call that is refused while `waiting` calls
    /// wait.
    pub(super) fn retry_after(&self, waiting: usize) -> Duration {
        self.wait(waiting).unwrap_or(DEFAULT_RETRY_AFTER).clamp(MIN_RETRY_AFTER, MAX_RETRY_AFTER)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn follows_the_gaps_between_grants() {
        let (mut now, each) = (Instant::now(), Duration::from_millis(200));
        let mut estimate = WaitEstimate::new(now);
        assert_eq!((estimate.wait(0), estimate.retry_after(9)), (None, DEFAULT_RETRY_AFTER));
        // Time with an empty queue is not observed.
        now += Duration::from_secs(3_600);
        estimate.queue_started(now);
        for observations in 1..=MIN_OBSERVATIONS {
            now += each;
            estimate.slot_granted(now);
            assert_eq!(estimate.wait(4), (observations == MIN_OBSERVATIONS).then_some(each * 5));
        }
        assert_eq!(estimate.retry_after(9), Duration::from_secs(2));
        assert_eq!(estimate.retry_after(usize::MAX), MAX_RETRY_AFTER);
        // The average follows faster grants.
        for _ in 0..50 {
            estimate.slot_granted(now);
        }
        assert_eq!(estimate.retry_after(9), MIN_RETRY_AFTER);
        assert!(estimate.wait(0) < Some(each / 100));
    }
}

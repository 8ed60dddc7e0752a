//! How fast slots come free, as far as it was observations. Pure: the clock is an argument.

use std::time::Duration;

use tokio::time::Instant;

/// Places that must have come free before anything is said about the next ones.
const MIN_OBSERVATIONS: u32 = 8;
/// What each new observation counts for, out of eight.
const WEIGHT: u32 = 8;
/// When to come back, where nothing is known, and in the best and the worst case.
const DEFAULT_RETRY_AFTER: Duration = Duration::from_secs(1);
const MIN_RETRY_AFTER: Duration = Duration::from_millis(100);
const MAX_RETRY_AFTER: Duration = Duration::from_secs(30);

/// Follows the slots that go to those who wait. While nobody waits, nothing can be observations.
#[derive(Debug)]
pub(super) struct WaitEstimate {
    /// Between two slots, on a moving average.
    gap: Duration,
    observations: u32,
    /// The last place, or when somebody began to wait.
    since: Instant,
}

impl WaitEstimate {
    pub(super) fn new(now: Instant) -> Self {
        Self { gap: Duration::ZERO, observations: 0, since: now }
    }

    /// Somebody begins to wait, and nobody did before.
    pub(super) fn queue_started(&mut self, now: Instant) {
        self.since = now;
    }

    /// A place went to somebody who waited.
    pub(super) fn slot_granted(&mut self, now: Instant) {
        let gap = now.saturating_duration_since(self.since);
        self.since = now;
        self.observations = (self.observations + 1).min(WEIGHT);
        self.gap = (self.gap * (self.observations - 1) + gap) / self.observations;
    }

    /// What one has to expect who has `ahead` others before it.
    pub(super) fn wait(&self, ahead: usize) -> Option<Duration> {
        let slots = u32::try_from(ahead).unwrap_or(u32::MAX).saturating_add(1);
        (self.observations >= MIN_OBSERVATIONS).then(|| self.gap.saturating_mul(slots))
    }

    /// When one should come back that was refused while `waiting` others wait, without the spread.
    pub(super) fn retry_after(&self, waiting: usize) -> Duration {
        self.wait(waiting).unwrap_or(DEFAULT_RETRY_AFTER).clamp(MIN_RETRY_AFTER, MAX_RETRY_AFTER)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn follows_the_gaps_between_places() {
        let (mut now, each) = (Instant::now(), Duration::from_millis(200));
        let mut estimate = WaitEstimate::new(now);
        assert_eq!((estimate.wait(0), estimate.retry_after(9)), (None, DEFAULT_RETRY_AFTER));
        // A quiet hour says nothing.
        now += Duration::from_secs(3_600);
        estimate.queue_started(now);
        for observations in 1..=MIN_OBSERVATIONS {
            now += each;
            estimate.slot_granted(now);
            assert_eq!(estimate.wait(4), (observations == MIN_OBSERVATIONS).then_some(each * 5));
        }
        assert_eq!(estimate.retry_after(9), Duration::from_secs(2));
        assert_eq!(estimate.retry_after(usize::MAX), MAX_RETRY_AFTER);
        // Faster now: the average follows.
        for _ in 0..50 {
            estimate.slot_granted(now);
        }
        assert_eq!(estimate.retry_after(9), MIN_RETRY_AFTER);
        assert!(estimate.wait(0) < Some(each / 100));
    }
}

//! How fast places come free, as far as it was seen. Pure: the clock is an argument.

use std::time::Duration;

use tokio::time::Instant;

/// Places that must have come free before anything is said about the next ones.
const ENOUGH: u32 = 8;
/// What each new observation counts for, out of eight.
const WEIGHT: u32 = 8;
/// When to come back, where nothing is known, and in the best and the worst case.
const USUAL_HINT: Duration = Duration::from_secs(1);
const LEAST_HINT: Duration = Duration::from_millis(100);
const LONGEST_HINT: Duration = Duration::from_secs(30);

/// Follows the places that go to those who wait. While nobody waits, nothing can be seen.
#[derive(Debug)]
pub(super) struct Flow {
    /// Between two places, on a moving average.
    gap: Duration,
    seen: u32,
    /// The last place, or when somebody began to wait.
    since: Instant,
}

impl Flow {
    pub(super) fn new(now: Instant) -> Self {
        Self { gap: Duration::ZERO, seen: 0, since: now }
    }

    /// Somebody begins to wait, and nobody did before.
    pub(super) fn begins(&mut self, now: Instant) {
        self.since = now;
    }

    /// A place went to somebody who waited.
    pub(super) fn place(&mut self, now: Instant) {
        let gap = now.saturating_duration_since(self.since);
        self.since = now;
        self.seen = (self.seen + 1).min(WEIGHT);
        self.gap = (self.gap * (self.seen - 1) + gap) / self.seen;
    }

    /// What one has to expect who has `ahead` others before it.
    pub(super) fn wait(&self, ahead: usize) -> Option<Duration> {
        let places = u32::try_from(ahead).unwrap_or(u32::MAX).saturating_add(1);
        (self.seen >= ENOUGH).then(|| self.gap.saturating_mul(places))
    }

    /// When one should come back that was refused while `waiting` others wait, without the spread.
    pub(super) fn hint(&self, waiting: usize) -> Duration {
        self.wait(waiting).unwrap_or(USUAL_HINT).clamp(LEAST_HINT, LONGEST_HINT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn follows_the_gaps_between_places() {
        let (mut now, each) = (Instant::now(), Duration::from_millis(200));
        let mut flow = Flow::new(now);
        assert_eq!((flow.wait(0), flow.hint(9)), (None, USUAL_HINT));
        // A quiet hour says nothing.
        now += Duration::from_secs(3_600);
        flow.begins(now);
        for seen in 1..=ENOUGH {
            now += each;
            flow.place(now);
            assert_eq!(flow.wait(4), (seen == ENOUGH).then_some(each * 5));
        }
        assert_eq!(flow.hint(9), Duration::from_secs(2));
        assert_eq!(flow.hint(usize::MAX), LONGEST_HINT);
        // Faster now: the average follows.
        for _ in 0..50 {
            flow.place(now);
        }
        assert_eq!(flow.hint(9), LEAST_HINT);
        assert!(flow.wait(0) < Some(each / 100));
    }
}

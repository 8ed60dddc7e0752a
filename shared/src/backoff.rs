//! The delay before a failed peer is retried.

use std::time::Duration;

const INITIAL: Duration = Duration::from_millis(50);
const MAX: Duration = Duration::from_secs(5);

/// Exponential backoff from 50 ms to 5 s with jitter. Every delay is drawn from the upper half of
/// its range, so that clients that lost the same peer do not reconnect at the same time.
#[derive(Debug)]
pub struct Backoff(Duration);

impl Default for Backoff {
    fn default() -> Self {
        Self(INITIAL)
    }
}

impl Backoff {
    /// Returns the next delay.
    pub fn next_delay(&mut self) -> Duration {
        let delay = self.0.mul_f64(rand::random_range(0.5..=1.0));
        self.0 = (self.0 * 2).min(MAX);
        delay
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_the_maximum() {
        let mut backoff = Backoff::default();
        for expected in [50, 100, 200, 400, 800, 1_600, 3_200, 5_000, 5_000] {
            let expected = Duration::from_millis(expected);
            let delay = backoff.next_delay();
            assert!(delay >= expected / 2 && delay <= expected, "{delay:?}");
        }
    }
}

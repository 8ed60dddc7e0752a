//! A rate per minute: a bucket that fills steadily, and holds what is used in a minute.

use std::time::Duration;

use tokio::time::Instant;

const MINUTE: f64 = 60.0;

/// A bucket. What was taken too much is put back, and what was used beyond the estimate leaves a
/// debt, which is paid before more is taken.
#[derive(Debug, Default)]
pub(super) struct Bucket {
    /// Amount and time of the last change; full before the first one.
    last: Option<(f64, Instant)>,
}

impl Bucket {
    /// Takes `amount` of at most `per_minute`. Returns the time until it can be taken, if that is
    /// not now. More than a minute's worth is taken from a full bucket.
    pub(super) fn take(&mut self, amount: f64, per_minute: f64) -> Result<(), Duration> {
        let available = self.available(per_minute);
        let needed = amount.min(per_minute);
        // What fills up by a tiny fraction less than was computed is enough.
        if available + 1e-6 >= needed {
            self.last = Some((available - amount, Instant::now()));
            return Ok(());
        }
        Err(Duration::from_secs_f64((needed - available) / (per_minute / MINUTE)))
    }

    /// Puts `amount` back, or takes it without a limit if it is negative.
    pub(super) fn put_back(&mut self, amount: f64, per_minute: f64) {
        let available = self.available(per_minute);
        self.last = Some(((available + amount).min(per_minute), Instant::now()));
    }

    fn available(&self, per_minute: f64) -> f64 {
        self.last.map_or(per_minute, |(amount, at)| {
            (amount + at.elapsed().as_secs_f64() * per_minute / MINUTE).min(per_minute)
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_minutes_worth_is_available_at_once_and_again_after_a_minute() {
        let mut bucket = Bucket::default();
        for _ in 0..60 {
            bucket.take(1.0, 60.0).unwrap();
        }
        assert_eq!(bucket.take(1.0, 60.0), Err(Duration::from_secs(1)));
        tokio::time::advance(Duration::from_secs(1)).await;
        bucket.take(1.0, 60.0).unwrap();
        assert_eq!(bucket.take(30.0, 60.0), Err(Duration::from_secs(30)));
        tokio::time::advance(Duration::from_secs(600)).await;
        bucket.take(60.0, 60.0).unwrap();
        assert!(bucket.take(1.0, 60.0).is_err(), "no more than a minute's worth is kept");
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_not_used_is_put_back_and_a_debt_is_paid_first() {
        let mut bucket = Bucket::default();
        bucket.take(60.0, 60.0).unwrap();
        bucket.put_back(50.0, 60.0);
        bucket.take(50.0, 60.0).unwrap();
        bucket.put_back(-30.0, 60.0);
        assert_eq!(bucket.take(1.0, 60.0), Err(Duration::from_secs(31)));
        bucket.put_back(1_000.0, 60.0);
        assert!(bucket.take(61.0, 60.0).is_ok(), "more than a minute's worth, from a full bucket");
        assert_eq!(bucket.take(1.0, 60.0), Err(Duration::from_secs(2)));
    }
}

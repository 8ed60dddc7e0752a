//! Window of the last samples of a latency, and their median, which is robust against single
//! outliers.

use std::{collections::VecDeque, time::Duration};

use tokio::time::Instant;

/// Maximum number of samples.
const MAX_SAMPLES: usize = 32;
/// Maximum age of a sample.
const MAX_AGE: Duration = Duration::from_secs(60);

/// The last samples, each with its time.
#[derive(Debug, Default)]
pub(in crate::pool) struct Window(VecDeque<(Instant, u64)>);

impl Window {
    pub(super) fn add(&mut self, now: Instant, value: u64) {
        if self.0.len() == MAX_SAMPLES {
            self.0.pop_front();
        }
        self.0.push_back((now, value));
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    /// Returns the median of the recent samples, if there are at least `min_samples`.
    pub(super) fn median(&mut self, now: Instant, min_samples: usize) -> Option<u64> {
        let old = |at: &Instant| now.saturating_duration_since(*at) > MAX_AGE;
        while self.0.pop_front_if(|(at, _)| old(at)).is_some() {}
        let values: Vec<_> = self.0.iter().map(|(_, value)| *value).collect();
        (values.len() >= min_samples).then(|| median(values)).flatten()
    }
}

/// Returns the median; the upper one of two middle values.
pub(super) fn median(mut values: Vec<u64>) -> Option<u64> {
    let middle = values.len() / 2;
    (!values.is_empty()).then(|| *values.select_nth_unstable(middle).1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn retains_the_last_recent_samples() {
        let (mut window, start) = (Window::default(), Instant::now());
        assert_eq!(window.median(start, 0), None);
        for value in 1..=100 {
            window.add(start, value);
        }
        assert_eq!(window.median(start, MAX_SAMPLES), Some(85), "of 69 to 100");
        assert_eq!(window.median(start, MAX_SAMPLES + 1), None);
        window.add(start + MAX_AGE, 7);
        let later = start + MAX_AGE + Duration::from_secs(1);
        assert_eq!(window.median(later, 1), Some(7), "the others are old");
        assert_eq!(median(vec![3, 1, 2]), Some(2));
    }
}

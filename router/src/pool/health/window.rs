//! The last measurements of one kind, and their median: what one slow answer cannot move.

use std::{collections::VecDeque, time::Duration};

use tokio::time::Instant;

/// Measurements to keep, and for how long.
const MOST: usize = 32;
const FRESH: Duration = Duration::from_secs(60);

/// The last measurements, each with its time.
#[derive(Debug, Default)]
pub(super) struct Window(VecDeque<(Instant, u64)>);

impl Window {
    pub(super) fn add(&mut self, now: Instant, value: u64) {
        if self.0.len() == MOST {
            self.0.pop_front();
        }
        self.0.push_back((now, value));
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    /// The median of those that are fresh, if these are at least `least`.
    pub(super) fn median(&mut self, now: Instant, least: usize) -> Option<u64> {
        let old = |at: &Instant| now.saturating_duration_since(*at) > FRESH;
        while self.0.pop_front_if(|(at, _)| old(at)).is_some() {}
        let values: Vec<_> = self.0.iter().map(|(_, value)| *value).collect();
        (values.len() >= least).then(|| median(values)).flatten()
    }
}

/// The middle one; the upper one of two.
pub(super) fn median(mut values: Vec<u64>) -> Option<u64> {
    let middle = values.len() / 2;
    (!values.is_empty()).then(|| *values.select_nth_unstable(middle).1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn keeps_the_last_ones_that_are_fresh() {
        let (mut window, start) = (Window::default(), Instant::now());
        assert_eq!(window.median(start, 0), None);
        for value in 1..=100 {
            window.add(start, value);
        }
        assert_eq!(window.median(start, MOST), Some(85), "of 69 to 100");
        assert_eq!(window.median(start, MOST + 1), None);
        window.add(start + FRESH, 7);
        let later = start + FRESH + Duration::from_secs(1);
        assert_eq!(window.median(later, 1), Some(7), "the others are old");
        assert_eq!(median(vec![3, 1, 2]), Some(2));
    }
}

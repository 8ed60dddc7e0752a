//! Lower bound of the duration of a step, from the fastest recent steps. Pure: durations are
//! arguments.

use std::{collections::BTreeMap, time::Duration};

use crate::cost::{CostPoint, bucket};

/// Fraction by which the bound rises towards a slower step: the device may have become slower.
const RISE_FRACTION: f64 = 1.0 / 16.0;

/// The fastest recent steps, by their number of tokens.
#[derive(Debug, Clone, Default)]
pub(super) struct StepLowerBound {
    /// The fastest step of each bucket.
    points: BTreeMap<usize, CostPoint>,
    /// The same points by size, made consistent with each other.
    curve: Vec<CostPoint>,
}

impl StepLowerBound {
    /// Records a step of `tokens` tokens that took `took`.
    pub(super) fn observe(&mut self, tokens: usize, took: Duration) {
        if tokens == 0 {
            return;
        }
        let new = CostPoint { tokens: tokens as f64, seconds: took.as_secs_f64() };
        let point = self.points.entry(bucket(tokens)).or_insert(new);
        if new.seconds <= point.seconds {
            *point = new;
        } else {
            // Sizes within a bucket differ a little: a larger one takes longer without being
            // slower.
            let slower = new.seconds.min(new.at(point.tokens)) - point.seconds;
            point.seconds += RISE_FRACTION * slower.max(0.0);
        }
        self.rebuild_curve();
    }

    /// Lowers points that were disturbed: a step takes no longer than a larger one, and no longer
    /// per token than a smaller one.
    fn rebuild_curve(&mut self) {
        self.curve.clear();
        self.curve.extend(self.points.values());
        let mut per_token = f64::INFINITY;
        for point in &mut self.curve {
            per_token = per_token.min(point.at(1.0));
            point.seconds = per_token * point.tokens;
        }
        let mut larger = f64::INFINITY;
        for point in self.curve.iter_mut().rev() {
            larger = larger.min(point.seconds);
            point.seconds = larger;
        }
    }

    /// Minimum duration of a step of `tokens` tokens in seconds: that of the next smaller observed
    /// step, or the proportional share of the next larger one, whichever is longer. Zero before a
    /// step has run.
    pub(super) fn seconds(&self, tokens: usize) -> f64 {
        let tokens = tokens as f64;
        let i = self.curve.partition_point(|point| point.tokens <= tokens);
        let smaller = i.checked_sub(1).map_or(0.0, |i| self.curve[i].seconds);
        let share = self.curve.get(i).map_or(0.0, |larger| larger.at(tokens));
        smaller.max(share)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use proptest::{collection::vec, prelude::*};

    use super::*;

    /// Duration of a step at TinyLlama's shape on two cores, undisturbed.
    fn took(tokens: usize) -> f64 {
        0.035_f64.max(0.023 + 0.0036 * tokens as f64)
    }

    fn observed(steps: &[(usize, f64)]) -> StepLowerBound {
        let mut bound = StepLowerBound::default();
        steps.iter().for_each(|(n, s)| bound.observe(*n, Duration::from_secs_f64(*s)));
        bound
    }

    #[test]
    fn smaller_steps_get_a_proportional_bound_and_larger_ones_the_same() {
        assert_eq!(StepLowerBound::default().seconds(512), 0.0);
        let bound = observed(&[(512, 2.048)]);
        assert!((bound.seconds(5) - 0.02).abs() < 1e-9, "{}", bound.seconds(5));
        assert_eq!(bound.seconds(4_096), 2.048);
    }

    #[test]
    fn a_cold_step_is_corrected_by_any_other() {
        let bound = observed(&[(40, 6.0), (1, 0.035)]);
        assert!(bound.seconds(40) <= 40.0 * 0.035 + 1e-9);
        let bound = observed(&[(1, 6.0), (40, 0.2)]);
        assert!(bound.seconds(1) <= 0.2);
    }

    #[test]
    fn a_slower_device_is_tracked_slowly_and_a_faster_one_at_once() {
        let mut bound = observed(&[(512, 1.0)]);
        bound.observe(512, Duration::from_secs(4));
        assert!(bound.seconds(512) < 1.2);
        (0..100).for_each(|_| bound.observe(512, Duration::from_secs(4)));
        assert!(bound.seconds(512) > 3.9);
        bound.observe(512, Duration::from_secs(1));
        assert_eq!(bound.seconds(512), 1.0);
    }

    proptest! {
        /// However other load disturbs the steps, the bound of a size never exceeds its undisturbed
        /// duration.
        #[test]
        fn it_is_a_lower_bound(
            sizes in vec((1_usize..600, 1.0_f64..9.0), 1..80),
            size in 1_usize..2_000,
        ) {
            let mut bound = StepLowerBound::default();
            for (tokens, _) in &sizes {
                bound.observe(*tokens, Duration::from_secs_f64(took(*tokens)));
            }
            prop_assert!(bound.seconds(size) <= 1.001 * took(size));
            // Slow from the start, then undisturbed once.
            let slow: Vec<_> = sizes.iter().map(|(n, factor)| (*n, factor * took(*n))).collect();
            let mut bound = observed(&slow);
            for (tokens, _) in &sizes {
                bound.observe(*tokens, Duration::from_secs_f64(took(*tokens)));
            }
            prop_assert!(bound.seconds(size) <= 1.04 * took(size), "{}", bound.seconds(size));
        }
    }
}

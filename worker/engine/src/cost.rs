//! Estimates how long a step takes from the steps that ran. Pure: durations are arguments.

use std::{collections::BTreeMap, time::Duration};

/// Buckets of step sizes per octave. Sizes below twice this number have a bucket each.
const BUCKETS_PER_OCTAVE: u32 = 32;
/// Weight in the moving average of a step that was faster than expected.
const WEIGHT_FASTER: f64 = 0.5;
/// Weight of a step that was slower. It is lower, because other load on the machine makes steps
/// slower and nothing makes them faster than they are.
const WEIGHT_SLOWER: f64 = 0.25;
/// Exponent of a bucket's drift that is applied to all buckets, so that recently observed sizes
/// stay comparable with those that have not run for long.
const DRIFT_EXPONENT: f64 = 0.7;
/// Maximum ratio of an observation to the estimate; a longer step counts as this much.
const MAX_SURPRISE: f64 = 2.0;
/// Ratio of two sizes above which the difference of their costs is reliable.
const RELIABLE_RATIO: f64 = 1.5;
/// Minimum cost of a step in seconds. An estimate of zero could never grow.
const MIN_SECONDS: f64 = 1e-6;

/// Estimated duration of a step by its number of tokens.
#[derive(Debug, Clone, Default)]
pub struct StepCost {
    /// Moving averages by bucket.
    points: BTreeMap<usize, CostPoint>,
    /// The same points by size, made monotonic: no size costs more than a larger one.
    curve: Vec<CostPoint>,
}

/// Average cost of the steps of one bucket.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CostPoint {
    pub(crate) tokens: f64,
    pub(crate) seconds: f64,
}

impl StepCost {
    /// Records a decode step of `tokens` tokens that took `took`. Decode steps differ in their size
    /// alone, so a part of the bucket's drift is applied to all other buckets.
    pub fn observe_decode(&mut self, tokens: usize, took: Duration) {
        let drift = self.adjust(tokens, took).powf(DRIFT_EXPONENT);
        let own = bucket(tokens);
        for (_, point) in self.points.iter_mut().filter(|(bucket, _)| **bucket != own) {
            point.seconds = (drift * point.seconds).max(MIN_SECONDS);
        }
        self.rebuild_curve();
    }

    /// Records a step of `tokens` tokens that took `took`, without drift of other buckets: a step
    /// with prompts attends to more tokens every time.
    pub fn observe(&mut self, tokens: usize, took: Duration) {
        self.adjust(tokens, took);
    }

    /// Updates the bucket of `tokens` and returns the ratio of its new estimate to the old one.
    fn adjust(&mut self, tokens: usize, took: Duration) -> f64 {
        if tokens == 0 {
            return 1.0;
        }
        let expected = self.seconds(tokens);
        let max = expected.map_or(f64::INFINITY, |expected| MAX_SURPRISE * expected);
        let seconds = took.as_secs_f64().min(max).max(MIN_SECONDS);
        let new = CostPoint { tokens: tokens as f64, seconds };
        let faster = expected.is_some_and(|expected| seconds < expected);
        let weight = if faster { WEIGHT_FASTER } else { WEIGHT_SLOWER };
        let point = self.points.entry(bucket(tokens)).or_insert(new);
        let before = point.seconds;
        // Both coordinates move by the same weight, so that the point stays on the curve whatever
        // sizes it sees.
        point.tokens += weight * (new.tokens - point.tokens);
        point.seconds += weight * (seconds - point.seconds);
        let drift = point.seconds / before;
        self.rebuild_curve();
        drift
    }

    fn rebuild_curve(&mut self) {
        self.curve.clear();
        self.curve.extend(self.points.values());
        let mut min = f64::INFINITY;
        for point in self.curve.iter_mut().rev() {
            // A size that seems slower than a larger one was disturbed.
            min = min.min(point.seconds);
            point.seconds = min;
        }
    }

    /// Estimated duration of a step of `tokens` tokens, in seconds; `None` until a step has run.
    /// Never falls with the number of tokens. Beyond the largest observed size it grows in
    /// proportion, the worst case, so that a caller that chooses sizes by it approaches cheap large
    /// sizes in steps.
    pub fn seconds(&self, tokens: usize) -> Option<f64> {
        let tokens = tokens as f64;
        self.interpolate(tokens).map_or_else(|last| Some(last?.at(tokens)), Some)
    }

    /// Returns the marginal cost, in seconds, of a number of tokens added to a step of `without`
    /// tokens. Estimates of neighbouring sizes are too noisy to compare, above all under other
    /// load. So the cost is at least the proportional share of what a step [`RELIABLE_RATIO`] times
    /// as large costs more. Zero before a step has run.
    pub(crate) fn marginal(&self, without: usize) -> impl Fn(usize) -> f64 {
        let seconds = |tokens| self.seconds(tokens).unwrap_or(0.0);
        let before = seconds(without);
        let span = (RELIABLE_RATIO * without as f64).ceil() as usize - without;
        let max = seconds(without + span) - before;
        move |more| {
            let share = more as f64 / span.max(1) as f64;
            (seconds(without + more) - before).max(share.min(1.0) * max)
        }
    }

    /// Interpolates between observed sizes. Beyond the largest one, returns its point as the error.
    fn interpolate(&self, tokens: f64) -> Result<f64, Option<CostPoint>> {
        let i = self.curve.partition_point(|point| point.tokens < tokens);
        let Some(above) = self.curve.get(i) else { return Err(self.curve.last().copied()) };
        let Some(below) = i.checked_sub(1).map(|i| self.curve[i]) else { return Ok(above.seconds) };
        if tokens == above.tokens {
            return Ok(above.seconds);
        }
        let fraction = (tokens - below.tokens) / (above.tokens - below.tokens);
        let line = below.seconds + fraction * (above.seconds - below.seconds);
        // At most in proportion: otherwise a size that was slow once, and does not run again, would
        // raise all sizes between.
        Ok(line.min(below.at(tokens)))
    }
}

/// Bucket of a step size: [`BUCKETS_PER_OCTAVE`] in every octave.
pub(crate) fn bucket(tokens: usize) -> usize {
    let coarse = tokens.max(1).ilog2().saturating_sub(BUCKETS_PER_OCTAVE.ilog2());
    (tokens >> coarse) + (coarse * BUCKETS_PER_OCTAVE) as usize
}

impl CostPoint {
    /// Seconds of a step of `tokens` tokens, in proportion.
    pub(crate) fn at(self, tokens: f64) -> f64 {
        self.seconds * tokens / self.tokens
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use proptest::{collection::vec, prelude::*};

    use super::*;

    fn millis(millis: f64) -> Duration {
        Duration::from_secs_f64(millis / 1e3)
    }

    /// Flat at first, then in proportion.
    fn curve(tokens: usize) -> f64 {
        35.0_f64.max(23.0 + 3.6 * tokens as f64)
    }

    fn close(seconds: Option<f64>, millis: f64) -> bool {
        seconds.is_some_and(|seconds| (seconds * 1e3 - millis).abs() < 0.02 * millis)
    }

    #[test]
    fn there_is_no_estimate_before_a_step() {
        let mut cost = StepCost::default();
        assert_eq!(cost.seconds(1), None);
        cost.observe_decode(0, millis(1.0));
        assert_eq!(cost.seconds(1), None, "an empty step is ignored");
    }

    #[test]
    fn small_sizes_have_buckets_of_their_own() {
        let mut cost = StepCost::default();
        for tokens in [18, 24, 31, 18, 24, 31] {
            cost.observe(tokens, millis(2.0 * tokens as f64));
        }
        assert!([18, 20, 24, 31].iter().all(|n| close(cost.seconds(*n), 2.0 * *n as f64)));
        let buckets: Vec<_> = (1..5_000).map(bucket).collect();
        assert!(buckets.is_sorted() && buckets[..64].iter().copied().eq(1..65));
        assert!(buckets.windows(2).all(|two| two[1] - two[0] <= 1) && buckets[4_998] < 9 * 32 + 64);
    }

    #[test]
    fn a_disturbed_size_does_not_raise_larger_ones() {
        let mut cost = StepCost::default();
        for (tokens, took) in [(1, 30.0), (3, 60.0), (4, 31.0), (8, 32.0)] {
            cost.observe(tokens, millis(took));
        }
        assert!(close(cost.seconds(3), 31.0) && close(cost.seconds(6), 31.5));
    }

    #[test]
    fn marginal_cost_is_positive_where_neighbouring_estimates_are_equal() {
        let mut cost = StepCost::default();
        for tokens in [32, 35, 48] {
            cost.observe(tokens, millis(curve(tokens)));
        }
        let three = curve(35) - curve(32);
        assert!(close(Some(cost.marginal(32)(3)), three), "{}", cost.marginal(32)(3));
        // Other load slows the smaller size down until both estimates are equal.
        (0..3).for_each(|_| cost.observe(32, millis(2.0 * curve(32))));
        assert!(close(cost.seconds(32), curve(35)), "{:?}", cost.seconds(32));
        let marginal = cost.marginal(32)(3) * 1e3;
        assert!(marginal > 0.6 * three && marginal < three, "{marginal} ms of {three}");
        // On a flat curve, added tokens stay free.
        assert_eq!(StepCost::default().marginal(4)(4), 0.0);
        let mut flat = StepCost::default();
        [1, 64].into_iter().for_each(|tokens| flat.observe(tokens, millis(10.0)));
        assert_eq!(flat.marginal(32)(8), 0.0);
    }

    #[test]
    fn sizes_between_are_interpolated_and_larger_ones_cost_in_proportion() {
        let mut cost = StepCost::default();
        cost.observe(1, millis(35.0));
        cost.observe(32, millis(140.0));
        assert!(close(cost.seconds(1), 35.0) && close(cost.seconds(32), 140.0));
        assert!(close(cost.seconds(16), 35.0 + 105.0 * 15.0 / 31.0));
        assert!(close(cost.seconds(64), 280.0));
        cost.observe(10_000, millis(9_000.0));
        assert!(close(cost.seconds(20_000), 18_000.0));
    }

    #[test]
    fn one_disturbed_step_changes_little() {
        let mut cost = StepCost::default();
        for _ in 0..3 {
            cost.observe(8, millis(50.0));
        }
        cost.observe(8, millis(5_000.0));
        assert!(close(cost.seconds(8), 50.0 * 1.25), "{:?}", cost.seconds(8));
        (0..4).for_each(|_| cost.observe(8, millis(50.0)));
        assert!(close(cost.seconds(8), 50.0));
        // The first step of a size is bounded as well.
        cost.observe(9_000, millis(1e9));
        assert!(cost.seconds(9_000).unwrap() <= 2.0 * 50.0 * 9_000.0 / 8.0 / 1e3 * 1.1);
    }

    #[test]
    fn drift_of_one_size_is_applied_to_others() {
        let mut cost = StepCost::default();
        for tokens in [1, 8, 1, 8] {
            cost.observe_decode(tokens, millis(10.0 * tokens as f64));
        }
        (0..50).for_each(|_| cost.observe_decode(8, millis(160.0)));
        assert!(close(cost.seconds(8), 160.0), "{:?}", cost.seconds(8));
        assert!(
            close(cost.seconds(1), 10.0 * 2.0_f64.powf(DRIFT_EXPONENT)),
            "{:?}",
            cost.seconds(1)
        );
        // It is reverted with the drift.
        (0..50).for_each(|_| cost.observe_decode(8, millis(80.0)));
        assert!(close(cost.seconds(1), 10.0), "{:?}", cost.seconds(1));
        // A step with prompts is not applied to others.
        (0..50).for_each(|_| cost.observe(8, millis(160.0)));
        assert!(close(cost.seconds(1), 10.0), "{:?}", cost.seconds(1));
    }

    #[test]
    fn a_slow_first_step_is_soon_outweighed() {
        let mut cost = StepCost::default();
        cost.observe(1, millis(2_000.0));
        (0..12).for_each(|_| cost.observe(1, millis(35.0)));
        assert!(close(cost.seconds(1), 35.0), "{:?}", cost.seconds(1));
    }

    #[test]
    fn a_slower_device_is_tracked() {
        let mut cost = StepCost::default();
        cost.observe(1, Duration::ZERO);
        (0..300).for_each(|_| cost.observe(1, millis(35.0)));
        assert!(close(cost.seconds(1), 35.0), "{:?}", cost.seconds(1));
    }

    #[test]
    fn chosen_sizes_grow_into_the_flat_part_of_the_curve() {
        let mut cost = StepCost::default();
        cost.observe(1, millis(curve(1)));
        let mut tokens = 1;
        for _ in 0..100 {
            let limit = 4.0 * curve(1) / 1e3;
            tokens = (1..512).rev().find(|n| cost.seconds(*n).unwrap() <= limit).unwrap();
            cost.observe(tokens, millis(curve(tokens)));
        }
        assert!((31..=33).contains(&tokens), "{tokens} tokens for {} ms", curve(tokens));
    }

    proptest! {
        #[test]
        fn estimates_never_fall_with_size(
            steps in vec((1_usize..6_000, 0_u64..3_000_000), 1..60),
        ) {
            let mut cost = StepCost::default();
            for (tokens, micros) in &steps {
                if tokens.is_multiple_of(2) {
                    cost.observe_decode(*tokens, Duration::from_micros(*micros));
                } else {
                    cost.observe(*tokens, Duration::from_micros(*micros));
                }
            }
            let sizes = (0..14).flat_map(|power| [1 << power, (1 << power) + (1 << power) / 2]);
            let mut last = 0.0;
            for tokens in sizes {
                let now = cost.seconds(tokens).unwrap();
                prop_assert!(now >= last && now.is_finite(), "{} tokens: {} < {}", tokens, now, last);
                last = now;
            }
        }

        #[test]
        fn a_curve_is_estimated_from_any_sizes(sizes in vec(1_usize..512, 200)) {
            let mut cost = StepCost::default();
            for tokens in &sizes {
                cost.observe(*tokens, millis(curve(*tokens)));
            }
            for tokens in [40, 100, 300] {
                let (got, want) = (cost.seconds(tokens).unwrap() * 1e3, curve(tokens));
                prop_assert!((got / want - 1.0).abs() < 0.25, "{tokens}: {got} for {want}");
            }
        }
    }
}

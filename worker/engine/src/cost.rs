//! How long a step takes, learned from the steps that ran. Pure: durations are arguments.

use std::{collections::BTreeMap, time::Duration};

/// Sizes that are told apart in every octave: those up to twice as many are all told apart.
const PARTS: u32 = 32;
/// What a step counts for that was faster than expected...
const FASTER: f64 = 0.5;
/// ...and one that was slower: others who use the machine make steps slower, and nothing makes them faster than they are.
const SLOWER: f64 = 0.25;
/// Of what a size got slower or faster, the machine did so much, as a power of it. All sizes share that: those that run
/// are compared with those that have not for long.
const SHARED: f64 = 0.7;
/// One step says no more than that its size costs so many times what was thought.
const SURPRISE: f64 = 2.0;
/// How many times as large a size is that is told apart with certainty.
const APART: f64 = 1.5;
/// No step costs less, in seconds. What costs nothing could never grow.
const LEAST: f64 = 1e-6;

/// How long a step takes, by its number of tokens: learned from the steps that ran.
#[derive(Debug, Clone, Default)]
pub struct StepCost {
    /// On a moving average.
    knots: BTreeMap<usize, Knot>,
    /// The same, in order, none slower than a larger one.
    curve: Vec<Knot>,
}

/// What steps of about one size take.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Knot {
    pub(crate) tokens: f64,
    pub(crate) seconds: f64,
}

impl StepCost {
    /// A step of `tokens` tokens took so long, and differs in no more than that from the others of its kind: what its size
    /// got slower or faster, the machine got too, in part.
    pub fn follow(&mut self, tokens: usize, took: Duration) {
        let times = self.adjust(tokens, took).powf(SHARED);
        let one = part(tokens);
        for (_, knot) in self.knots.iter_mut().filter(|(part, _)| **part != one) {
            knot.seconds = (times * knot.seconds).max(LEAST);
        }
        self.straighten();
    }

    /// A step of `tokens` tokens took so long, which says nothing of other sizes: one with prompts looks back on more
    /// tokens every time.
    pub fn learn(&mut self, tokens: usize, took: Duration) {
        self.adjust(tokens, took);
    }

    /// Answers how many times as long as before its size is now taken to take.
    fn adjust(&mut self, tokens: usize, took: Duration) -> f64 {
        if tokens == 0 {
            return 1.0;
        }
        let expected = self.seconds(tokens);
        let most = expected.map_or(f64::INFINITY, |expected| SURPRISE * expected);
        let seconds = took.as_secs_f64().min(most).max(LEAST);
        let new = Knot { tokens: tokens as f64, seconds };
        let weight = if expected.is_some_and(|e| seconds < e) { FASTER } else { SLOWER };
        let knot = self.knots.entry(part(tokens)).or_insert(new);
        let before = knot.seconds;
        // Both move by the same part of the way, so that a knot stays on the curve whatever sizes it sees.
        knot.tokens += weight * (new.tokens - knot.tokens);
        knot.seconds += weight * (seconds - knot.seconds);
        let times = knot.seconds / before;
        self.straighten();
        times
    }

    fn straighten(&mut self) {
        self.curve.clear();
        self.curve.extend(self.knots.values());
        let mut least = f64::INFINITY;
        for knot in self.curve.iter_mut().rev() {
            // A size that seems slower than a larger one was disturbed.
            least = least.min(knot.seconds);
            knot.seconds = least;
        }
    }

    /// What a step of `tokens` would take, in seconds. None until a step has run. Never falls with the number of tokens.
    /// Sizes beyond the largest that was seen are taken to cost in proportion, the worst case, so that whoever chooses
    /// sizes by it grows step by step into what is cheap.
    pub fn seconds(&self, tokens: usize) -> Option<f64> {
        let tokens = tokens as f64;
        self.between(tokens).map_or_else(|last| Some(last?.at(tokens)), Some)
    }

    /// What steps with more tokens than `without` take more, in seconds, by how many more. What is known of sizes that
    /// differ little is too coarse to tell them apart, least of all where others use the machine: it is no less than
    /// their part of what a size takes more that is [`APART`] times as large. Nothing before a step has run.
    pub(crate) fn added(&self, without: usize) -> impl Fn(usize) -> f64 {
        let seconds = |tokens| self.seconds(tokens).unwrap_or(0.0);
        let before = seconds(without);
        let apart = (APART * without as f64).ceil() as usize - without;
        let most = seconds(without + apart) - before;
        move |more| {
            let part = more as f64 / apart.max(1) as f64;
            (seconds(without + more) - before).max(part.min(1.0) * most)
        }
    }

    /// Seconds of a size up to the largest that was seen; for a larger one, what is known of the largest.
    fn between(&self, tokens: f64) -> Result<f64, Option<Knot>> {
        let i = self.curve.partition_point(|knot| knot.tokens < tokens);
        let Some(above) = self.curve.get(i) else { return Err(self.curve.last().copied()) };
        let Some(below) = i.checked_sub(1).map(|i| self.curve[i]) else { return Ok(above.seconds) };
        if tokens == above.tokens {
            return Ok(above.seconds);
        }
        let way = (tokens - below.tokens) / (above.tokens - below.tokens);
        let line = below.seconds + way * (above.seconds - below.seconds);
        // No more than in proportion: else a size that was slow once, and is never tried again, would hold back all
        // between.
        Ok(line.min(below.at(tokens)))
    }
}

/// The kind of a size: [`PARTS`] of them in every octave.
pub(crate) fn part(tokens: usize) -> usize {
    let coarse = tokens.max(1).ilog2().saturating_sub(PARTS.ilog2());
    (tokens >> coarse) + (coarse * PARTS) as usize
}

impl Knot {
    /// Seconds of another size, in proportion.
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
    fn nothing_is_known_before_a_step() {
        let mut cost = StepCost::default();
        assert_eq!(cost.seconds(1), None);
        cost.follow(0, millis(1.0));
        assert_eq!(cost.seconds(1), None, "a step of nothing is none");
    }

    #[test]
    fn sizes_that_differ_little_are_told_apart() {
        let mut cost = StepCost::default();
        for tokens in [18, 24, 31, 18, 24, 31] {
            cost.learn(tokens, millis(2.0 * tokens as f64));
        }
        assert!([18, 20, 24, 31].iter().all(|n| close(cost.seconds(*n), 2.0 * *n as f64)));
        let parts: Vec<_> = (1..5_000).map(part).collect();
        assert!(parts.is_sorted() && parts[..64].iter().copied().eq(1..65));
        assert!(parts.windows(2).all(|two| two[1] - two[0] <= 1) && parts[4_998] < 9 * 32 + 64);
    }

    #[test]
    fn a_size_that_was_disturbed_does_not_make_larger_ones_slow() {
        let mut cost = StepCost::default();
        for (tokens, took) in [(1, 30.0), (3, 60.0), (4, 31.0), (8, 32.0)] {
            cost.learn(tokens, millis(took));
        }
        assert!(close(cost.seconds(3), 31.0) && close(cost.seconds(6), 31.5));
    }

    #[test]
    fn what_a_few_tokens_add_is_known_though_their_sizes_seem_alike() {
        let mut cost = StepCost::default();
        for tokens in [32, 35, 48] {
            cost.learn(tokens, millis(curve(tokens)));
        }
        let three = curve(35) - curve(32);
        assert!(close(Some(cost.added(32)(3)), three), "{}", cost.added(32)(3));
        // Others slow the smaller one down, until it seems to take what the larger one takes.
        (0..3).for_each(|_| cost.learn(32, millis(2.0 * curve(32))));
        assert!(close(cost.seconds(32), curve(35)), "{:?}", cost.seconds(32));
        let added = cost.added(32)(3) * 1e3;
        assert!(added > 0.6 * three && added < three, "{added} ms of {three}");
        // What is flat stays free.
        assert_eq!(StepCost::default().added(4)(4), 0.0);
        let mut flat = StepCost::default();
        [1, 64].into_iter().for_each(|tokens| flat.learn(tokens, millis(10.0)));
        assert_eq!(flat.added(32)(8), 0.0);
    }

    #[test]
    fn sizes_between_lie_on_the_line_and_larger_ones_cost_in_proportion() {
        let mut cost = StepCost::default();
        cost.learn(1, millis(35.0));
        cost.learn(32, millis(140.0));
        assert!(close(cost.seconds(1), 35.0) && close(cost.seconds(32), 140.0));
        assert!(close(cost.seconds(16), 35.0 + 105.0 * 15.0 / 31.0));
        assert!(close(cost.seconds(64), 280.0));
        cost.learn(10_000, millis(9_000.0));
        assert!(close(cost.seconds(20_000), 18_000.0));
    }

    #[test]
    fn one_step_on_a_busy_machine_changes_little() {
        let mut cost = StepCost::default();
        for _ in 0..3 {
            cost.learn(8, millis(50.0));
        }
        cost.learn(8, millis(5_000.0));
        assert!(close(cost.seconds(8), 50.0 * 1.25), "{:?}", cost.seconds(8));
        (0..4).for_each(|_| cost.learn(8, millis(50.0)));
        assert!(close(cost.seconds(8), 50.0));
        // Nor is it the first of its size that counts for all that it took.
        cost.learn(9_000, millis(1e9));
        assert!(cost.seconds(9_000).unwrap() <= 2.0 * 50.0 * 9_000.0 / 8.0 / 1e3 * 1.1);
    }

    #[test]
    fn what_makes_one_size_slower_makes_others_slower_too() {
        let mut cost = StepCost::default();
        for tokens in [1, 8, 1, 8] {
            cost.follow(tokens, millis(10.0 * tokens as f64));
        }
        (0..50).for_each(|_| cost.follow(8, millis(160.0)));
        assert!(close(cost.seconds(8), 160.0), "{:?}", cost.seconds(8));
        assert!(close(cost.seconds(1), 10.0 * 2.0_f64.powf(SHARED)), "{:?}", cost.seconds(1));
        // And nothing of it stays.
        (0..50).for_each(|_| cost.follow(8, millis(80.0)));
        assert!(close(cost.seconds(1), 10.0), "{:?}", cost.seconds(1));
        // But for one with prompts.
        (0..50).for_each(|_| cost.learn(8, millis(160.0)));
        assert!(close(cost.seconds(1), 10.0), "{:?}", cost.seconds(1));
    }

    #[test]
    fn a_first_step_that_was_slow_is_soon_forgotten() {
        let mut cost = StepCost::default();
        cost.learn(1, millis(2_000.0));
        (0..12).for_each(|_| cost.learn(1, millis(35.0)));
        assert!(close(cost.seconds(1), 35.0), "{:?}", cost.seconds(1));
    }

    #[test]
    fn a_device_that_became_slower_is_followed() {
        let mut cost = StepCost::default();
        cost.learn(1, Duration::ZERO);
        (0..300).for_each(|_| cost.learn(1, millis(35.0)));
        assert!(close(cost.seconds(1), 35.0), "{:?}", cost.seconds(1));
    }

    #[test]
    fn whoever_chooses_by_it_grows_into_what_is_cheap() {
        let mut cost = StepCost::default();
        cost.learn(1, millis(curve(1)));
        let mut chosen = 1;
        for _ in 0..100 {
            let limit = 4.0 * curve(1) / 1e3;
            chosen = (1..512).rev().find(|n| cost.seconds(*n).unwrap() <= limit).unwrap();
            cost.learn(chosen, millis(curve(chosen)));
        }
        assert!((31..=33).contains(&chosen), "{chosen} tokens for {} ms", curve(chosen));
    }

    proptest! {
        #[test]
        fn it_never_falls_whatever_was_seen(
            seen in vec((1_usize..6_000, 0_u64..3_000_000), 1..60),
        ) {
            let mut cost = StepCost::default();
            for (tokens, micros) in &seen {
                if tokens.is_multiple_of(2) {
                    cost.follow(*tokens, Duration::from_micros(*micros));
                } else {
                    cost.learn(*tokens, Duration::from_micros(*micros));
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
        fn a_curve_is_learned_from_any_sizes(sizes in vec(1_usize..512, 200)) {
            let mut cost = StepCost::default();
            for tokens in &sizes {
                cost.learn(*tokens, millis(curve(*tokens)));
            }
            for tokens in [40, 100, 300] {
                let (got, want) = (cost.seconds(tokens).unwrap() * 1e3, curve(tokens));
                prop_assert!((got / want - 1.0).abs() < 0.25, "{tokens}: {got} for {want}");
            }
        }
    }
}

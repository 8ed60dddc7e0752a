//! How long a step takes, learned from the steps that ran. Pure: durations are arguments.

use std::time::Duration;

/// Sizes from `2^i` on have the `i`th knot, those beyond the last one share it.
const KNOTS: usize = 13;
/// What a step counts for that was faster than expected...
const FASTER: f64 = 0.5;
/// ...and one that was slower: others who use the machine make steps slower, and nothing makes them faster than they are.
const SLOWER: f64 = 0.125;
/// One step says no more than that its size costs so many times what was thought.
const SURPRISE: f64 = 2.0;
/// No step costs less, in seconds. What costs nothing could never grow.
const LEAST: f64 = 1e-6;

/// How long a step takes, by its number of tokens: learned from the steps that ran.
#[derive(Debug, Clone, Default)]
pub struct StepCost {
    knots: [Option<Knot>; KNOTS],
}

/// What steps of about one size took, on a moving average.
#[derive(Debug, Clone, Copy)]
struct Knot {
    tokens: f64,
    seconds: f64,
}

impl StepCost {
    /// A step of `tokens` tokens took so long.
    pub fn learn(&mut self, tokens: usize, took: Duration) {
        let Some(power) = tokens.checked_ilog2() else { return };
        let expected = self.seconds(tokens);
        let tokens = tokens as f64;
        let most = expected.map_or(f64::INFINITY, |expected| SURPRISE * expected);
        let seconds = took.as_secs_f64().min(most).max(LEAST);
        let knot = &mut self.knots[(power as usize).min(KNOTS - 1)];
        let Some(knot) = knot else {
            *knot = Some(Knot { tokens, seconds });
            return;
        };
        // Both move by the same part of the way, so that a knot stays on the curve whatever sizes it sees.
        let weight = if expected.is_some_and(|e| seconds < e) { FASTER } else { SLOWER };
        knot.tokens += weight * (tokens - knot.tokens);
        knot.seconds += weight * (seconds - knot.seconds);
    }

    /// What a step of `tokens` would take, in seconds. None until a step has run. Never falls with the number of tokens,
    /// and never rises by more than in proportion. Sizes beyond the largest that was seen are taken to cost in proportion, the worst case, so that whoever chooses
    /// sizes by it grows step by step into what is cheap.
    pub fn seconds(&self, tokens: usize) -> Option<f64> {
        let tokens = tokens as f64;
        self.between(tokens).map_or_else(|last| Some(last?.at(tokens)), Some)
    }

    /// What a step of `tokens` takes at the least, in seconds: sizes beyond the largest that was seen are taken to cost
    /// no more than it, the best case.
    pub fn at_least(&self, tokens: usize) -> Option<f64> {
        self.between(tokens as f64).map_or_else(|last| Some(last?.seconds), Some)
    }

    /// Seconds of a size up to the largest that was seen; for a larger one, what is known of the largest.
    fn between(&self, tokens: f64) -> Result<f64, Option<Knot>> {
        let mut below: Option<Knot> = None;
        for knot in self.knots.iter().flatten() {
            // Larger steps take no less than smaller ones, and no more than in proportion: what was seen of one of the two
            // was disturbed. Else a size that was slow once, and is never tried again, would hold back all below it.
            let seconds = below.map_or(knot.seconds, |below| {
                knot.seconds.min(below.at(knot.tokens)).max(below.seconds)
            });
            let above = Knot { seconds, ..*knot };
            if tokens <= above.tokens {
                let Some(below) = below else { return Ok(above.seconds) };
                let way = (tokens - below.tokens) / (above.tokens - below.tokens);
                return Ok(below.seconds + way * (above.seconds - below.seconds));
            }
            below = Some(above);
        }
        Err(below)
    }
}

impl Knot {
    /// Seconds of another size, in proportion.
    fn at(self, tokens: f64) -> f64 {
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
        assert_eq!((cost.seconds(1), cost.at_least(1)), (None, None));
        cost.learn(0, millis(1.0));
        assert_eq!(cost.seconds(1), None, "a step of nothing is none");
    }

    #[test]
    fn sizes_between_lie_on_the_line_and_larger_ones_cost_in_proportion() {
        let mut cost = StepCost::default();
        cost.learn(1, millis(35.0));
        cost.learn(32, millis(140.0));
        assert!(close(cost.seconds(1), 35.0) && close(cost.seconds(32), 140.0));
        assert!(close(cost.seconds(16), 35.0 + 105.0 * 15.0 / 31.0));
        assert!(close(cost.seconds(64), 280.0));
        assert!(close(cost.at_least(64), 140.0) && close(cost.at_least(16), 85.8));
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
        assert!(close(cost.seconds(8), 50.0 * 1.125), "{:?}", cost.seconds(8));
        (0..4).for_each(|_| cost.learn(8, millis(50.0)));
        assert!(close(cost.seconds(8), 50.0));
        // Nor is it the first of its size that counts for all that it took.
        cost.learn(9_000, millis(1e9));
        assert!(cost.seconds(9_000).unwrap() <= 2.0 * 50.0 * 9_000.0 / 8.0 / 1e3 * 1.1);
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
        fn it_never_falls_and_stays_within_what_was_seen(
            seen in vec((1_usize..6_000, 0_u64..3_000_000), 1..60),
        ) {
            let mut cost = StepCost::default();
            for (tokens, micros) in &seen {
                cost.learn(*tokens, Duration::from_micros(*micros));
            }
            let sizes = (0..14).flat_map(|power| [1 << power, (1 << power) + (1 << power) / 2]);
            let (mut last, mut dearest) = (0.0, f64::INFINITY);
            for tokens in sizes {
                let (now, least) = (cost.seconds(tokens).unwrap(), cost.at_least(tokens).unwrap());
                let per_token = now / tokens as f64;
                prop_assert!(per_token <= dearest * (1.0 + 1e-9), "{} tokens: {}", tokens, now);
                dearest = per_token;
                prop_assert!(now >= last && now.is_finite(), "{} tokens: {} < {}", tokens, now, last);
                prop_assert!(least > 0.0 && least <= now);
                let slowest = seen.iter().map(|(_, micros)| *micros).max().unwrap().max(1);
                prop_assert!(least <= slowest as f64 / 1e6 + 1e-9);
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

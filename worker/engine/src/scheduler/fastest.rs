//! What a step takes at the least, learned from the fastest steps of late. Pure: durations are arguments.

use std::{collections::BTreeMap, time::Duration};

use crate::cost::{Knot, part};

/// Of the way from the fastest step of a size to one that was slower: what was fast once need not stay so.
const SLOWER: f64 = 1.0 / 16.0;

/// The fastest steps of late, by their number of tokens.
#[derive(Debug, Clone, Default)]
pub(super) struct Fastest {
    seen: BTreeMap<usize, Knot>,
    /// The same, in order, without what others contradict.
    curve: Vec<Knot>,
}

impl Fastest {
    /// A step of `tokens` tokens took so long.
    pub(super) fn learn(&mut self, tokens: usize, took: Duration) {
        if tokens == 0 {
            return;
        }
        let new = Knot { tokens: tokens as f64, seconds: took.as_secs_f64() };
        let step = self.seen.entry(part(tokens)).or_insert(new);
        if new.seconds <= step.seconds {
            *step = new;
        } else {
            // Sizes of one kind differ a little: what a larger one takes more is not all slowness.
            let slow = new.seconds.min(new.at(step.tokens)) - step.seconds;
            step.seconds += SLOWER * slow.max(0.0);
        }
        self.straighten();
    }

    /// A step takes no longer than a larger one, and no longer than a smaller one so many times: what did was disturbed.
    fn straighten(&mut self) {
        self.curve.clear();
        self.curve.extend(self.seen.values());
        let mut each = f64::INFINITY;
        for step in &mut self.curve {
            each = each.min(step.at(1.0));
            step.seconds = each * step.tokens;
        }
        let mut larger = f64::INFINITY;
        for step in self.curve.iter_mut().rev() {
            larger = larger.min(step.seconds);
            step.seconds = larger;
        }
    }

    /// Seconds that a step of `tokens` takes at the least: as long as a smaller one that was seen, and its part of a larger
    /// one. Zero where nothing is known.
    pub(super) fn seconds(&self, tokens: usize) -> f64 {
        let tokens = tokens as f64;
        let i = self.curve.partition_point(|step| step.tokens <= tokens);
        let smaller = i.checked_sub(1).map_or(0.0, |i| self.curve[i].seconds);
        let part = self.curve.get(i).map_or(0.0, |larger| larger.at(tokens));
        smaller.max(part)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use proptest::{collection::vec, prelude::*};

    use super::*;

    /// What a step takes at TinyLlama's shape on two cores, undisturbed.
    fn took(tokens: usize) -> f64 {
        0.035_f64.max(0.023 + 0.0036 * tokens as f64)
    }

    fn learned(steps: &[(usize, f64)]) -> Fastest {
        let mut fastest = Fastest::default();
        steps.iter().for_each(|(n, s)| fastest.learn(*n, Duration::from_secs_f64(*s)));
        fastest
    }

    #[test]
    fn nothing_is_known_of_smaller_steps_but_their_part_and_of_larger_ones_but_that_they_are_larger()
     {
        assert_eq!(Fastest::default().seconds(512), 0.0);
        let fastest = learned(&[(512, 2.048)]);
        assert!((fastest.seconds(5) - 0.02).abs() < 1e-9, "{}", fastest.seconds(5));
        assert_eq!(fastest.seconds(4_096), 2.048);
    }

    #[test]
    fn a_cold_step_is_contradicted_by_any_other() {
        let fastest = learned(&[(40, 6.0), (1, 0.035)]);
        assert!(fastest.seconds(40) <= 40.0 * 0.035 + 1e-9);
        let fastest = learned(&[(1, 6.0), (40, 0.2)]);
        assert!(fastest.seconds(1) <= 0.2);
    }

    #[test]
    fn what_got_slower_is_followed_slowly_and_what_got_faster_at_once() {
        let mut fastest = learned(&[(512, 1.0)]);
        fastest.learn(512, Duration::from_secs(4));
        assert!(fastest.seconds(512) < 1.2);
        (0..100).for_each(|_| fastest.learn(512, Duration::from_secs(4)));
        assert!(fastest.seconds(512) > 3.9);
        fastest.learn(512, Duration::from_secs(1));
        assert_eq!(fastest.seconds(512), 1.0);
    }

    proptest! {
        /// However others disturb its steps, no more is said of a machine than an undisturbed step of each size takes.
        #[test]
        fn it_is_a_lower_bound(
            sizes in vec((1_usize..600, 1.0_f64..9.0), 1..80),
            asked in 1_usize..2_000,
        ) {
            let mut fastest = Fastest::default();
            for (tokens, _) in &sizes {
                fastest.learn(*tokens, Duration::from_secs_f64(took(*tokens)));
            }
            prop_assert!(fastest.seconds(asked) <= 1.001 * took(asked));
            // Slow from the beginning, and then once as it is without others.
            let slow: Vec<_> = sizes.iter().map(|(n, times)| (*n, times * took(*n))).collect();
            let mut fastest = learned(&slow);
            for (tokens, _) in &sizes {
                fastest.learn(*tokens, Duration::from_secs_f64(took(*tokens)));
            }
            prop_assert!(fastest.seconds(asked) <= 1.04 * took(asked), "{}", fastest.seconds(asked));
        }
    }
}

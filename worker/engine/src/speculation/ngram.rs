//! Prompt lookup: what followed the last time that the text went like this.
//!
//! Of the places where the last two tokens stood before, the one is taken before which most of the text is the same, the
//! latest of equals. What comes after it is proposed; past the end of the text it goes on with itself, as text does
//! that repeats.

use std::collections::HashMap;

use super::{Asking, CLASSES, Drafter, MAX_DRAFT_TOKENS, Offer};
use crate::scheduler::SequenceId;

/// Tokens that must be the same, at least.
const PAIR: usize = 2;
/// Tokens that are compared, at most: who agrees in so many is as good as any.
const LONGEST: usize = 32;
/// Places that are looked at, the latest first.
const PLACES: usize = 256;

/// Drafts from the text of each sequence.
#[derive(Default)]
pub(super) struct Ngram {
    indices: HashMap<SequenceId, Index>,
}

/// Where the pairs of a text stand. Grows with the text: every token is looked at once.
#[derive(Default)]
struct Index {
    /// Where each pair ended last: the position after it.
    latest: HashMap<[u32; PAIR], u32>,
    /// For the pair that ends at position `i + PAIR`: where the same pair ended before that, or 0.
    earlier: Vec<u32>,
    /// What the text's end is like.
    found: Option<Match>,
}

/// A place in a text that is like its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Match {
    /// The position after it.
    end: usize,
    /// How many tokens are the same.
    length: usize,
}

impl Index {
    /// Takes in what the text has become, which begins with what it was, and looks for its end.
    fn follow(&mut self, tokens: &[u32]) {
        for pair in tokens.windows(PAIR).skip(self.earlier.len()) {
            let end = (self.earlier.len() + PAIR) as u32;
            let before = self.latest.insert([pair[0], pair[1]], end);
            self.earlier.push(before.unwrap_or(0));
        }
        self.found = self.find(tokens);
    }

    fn find(&self, tokens: &[u32]) -> Option<Match> {
        let before = |end: usize| {
            let place = self.earlier.get(end.checked_sub(PAIR)?)?;
            (*place > 0).then_some(*place as usize)
        };
        let mut places = std::iter::successors(before(tokens.len()), |end| before(*end));
        let first = places.next()?;
        let mut best = Match { end: first, length: alike(tokens, first) };
        for end in places.take(PLACES - 1) {
            if best.length == LONGEST {
                break;
            }
            // Whoever differs there is no better.
            let back = best.length + 1;
            if end < back || tokens[end - back] != tokens[tokens.len() - back] {
                continue;
            }
            let length = alike(tokens, end);
            if length > best.length {
                best = Match { end, length };
            }
        }
        Some(best)
    }
}

/// How many tokens before `end` are the last ones of the text.
fn alike(tokens: &[u32], end: usize) -> usize {
    let pairs = tokens[..end].iter().rev().zip(tokens.iter().rev());
    pairs.take(LONGEST).take_while(|(one, other)| one == other).count()
}

/// What follows the place, as many tokens as wanted.
fn following(tokens: &[u32], end: usize, count: usize) -> Vec<u32> {
    let mut proposal: Vec<u32> = tokens[end..].iter().take(count).copied().collect();
    let period = tokens.len() - end;
    while proposal.len() < count {
        proposal.push(proposal[proposal.len() - period]);
    }
    proposal
}

impl Drafter for Ngram {
    fn offers(&mut self, asking: &[Asking<'_>]) -> Vec<Offer> {
        let offer = |asking: &Asking<'_>| {
            let index = self.indices.entry(asking.id).or_default();
            index.follow(asking.tokens);
            index.found.map_or_else(Offer::default, |found| Offer {
                most: asking.room.min(MAX_DRAFT_TOKENS),
                // Twice as much of the same, one class more.
                class: (found.length / PAIR).ilog2().min(CLASSES as u32 - 1) as usize,
                behind: 0,
            })
        };
        asking.iter().map(offer).collect()
    }

    fn draft(&mut self, asking: &[Asking<'_>], most: &[usize]) -> Vec<Vec<u32>> {
        let proposal = |(asking, most): (&Asking<'_>, &usize)| {
            let found = self.indices.get(&asking.id).and_then(|index| index.found);
            found.map_or_else(Vec::new, |found| following(asking.tokens, found.end, *most))
        };
        asking.iter().zip(most).map(proposal).collect()
    }

    fn seconds(&self, _: usize) -> Option<f64> {
        // Nothing beside a step.
        Some(0.0)
    }

    fn forget(&mut self, id: SequenceId) {
        self.indices.remove(&id);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn index(tokens: &[u32]) -> Index {
        let mut index = Index::default();
        index.follow(tokens);
        index
    }

    /// What the index must find, by looking at every place.
    fn naive(tokens: &[u32]) -> Option<Match> {
        let mut best: Option<Match> = None;
        for end in (PAIR..tokens.len()).rev() {
            let same = |n: usize| n <= end && tokens[end - n..end] == tokens[tokens.len() - n..];
            let length = (1..=LONGEST).take_while(|n| same(*n)).count();
            if length >= PAIR && best.is_none_or(|best| length > best.length) {
                best = Some(Match { end, length });
            }
        }
        best
    }

    proptest! {
        #[test]
        fn the_index_finds_what_looking_everywhere_finds(
            (alphabet, text) in (1u32..12).prop_flat_map(|n| (Just(n), prop::collection::vec(0..n, 0..200))),
            repeat in 0usize..60,
        ) {
            let mut text = text;
            text.extend_from_within(text.len().saturating_sub(repeat)..);
            text.push(alphabet / 2);
            let mut grown = Index::default();
            for length in 0..=text.len() {
                grown.follow(&text[..length]);
                prop_assert_eq!(grown.found, naive(&text[..length]));
            }
            prop_assert_eq!(index(&text).found, grown.found, "at once or token by token");
        }

        #[test]
        fn proposals_go_on_as_the_text_did(
            text in prop::collection::vec(0u32..4, 2..60),
            count in 0usize..=MAX_DRAFT_TOKENS,
        ) {
            if let Some(Match { end, .. }) = index(&text).found {
                let proposal = following(&text, end, count);
                prop_assert_eq!(proposal.len(), count);
                let whole = [&text[..], &proposal].concat();
                for (i, token) in proposal.iter().enumerate() {
                    prop_assert_eq!(*token, whole[end + i]);
                }
            }
        }
    }

    #[test]
    fn the_longest_match_goes_before_the_latest() {
        // After 1 2 came 3, then 4; after 0 1 2 came 3.
        let text = [0, 1, 2, 3, 9, 1, 2, 4, 0, 1, 2];
        assert_eq!(index(&text).found, Some(Match { end: 3, length: 3 }));
        assert_eq!(following(&text, 3, 3), [3, 9, 1]);
        let equals = [1, 2, 3, 9, 1, 2, 4, 8, 1, 2];
        assert_eq!(index(&equals).found, Some(Match { end: 6, length: 2 }));
    }

    #[test]
    fn a_text_that_repeats_goes_on_repeating() {
        let text = [7, 1, 2, 3, 1, 2, 3];
        assert_eq!(index(&text).found.map(|found| found.end), Some(4));
        assert_eq!(following(&text, 4, 8), [1, 2, 3, 1, 2, 3, 1, 2]);
        assert_eq!(following(&[5, 5, 5], 2, 4), [5, 5, 5, 5]);
    }

    #[test]
    fn an_index_stays_small_and_few_places_are_looked_at() {
        // One pair everywhere, and what precedes it never the same: the worst there is.
        let text: Vec<u32> = (0..30_000u32).flat_map(|i| [i + 10, 1, 2]).collect();
        let index = index(&text);
        assert!(index.latest.len() <= text.len() && index.earlier.len() < text.len());
        assert_eq!(index.found, Some(Match { end: text.len() - 3, length: PAIR }));
        // The place that goes back furthest is found only while it is not too long ago.
        for (pairs, length) in [(PLACES - 2, 4), (PLACES + 2, 2)] {
            let text = [&[5, 6, 1, 2], &text[..3 * pairs], &[5, 6, 1, 2]].concat();
            assert_eq!(self::index(&text).found.map(|found| found.length), Some(length));
        }
    }
}

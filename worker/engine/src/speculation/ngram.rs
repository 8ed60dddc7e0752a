//! Prompt lookup: drafts the tokens after an earlier occurrence of the last n-gram.
//!
//! Of the earlier occurrences of the last two tokens, the one with the longest match before it is
//! taken, the latest of equals. The tokens after it are proposed. If these reach the end of the
//! text, the proposal repeats itself, as repetitive text does.

use std::collections::HashMap;

use super::{CLASSES, DraftCapacity, DraftRequest, Drafter, MAX_DRAFT_TOKENS};
use crate::scheduler::SequenceId;

/// Length of the indexed n-grams, the minimum length of a match.
const NGRAM: usize = 2;
/// Maximum length of a match in tokens; longer matches count as this long.
const MAX_MATCH: usize = 32;
/// Maximum number of occurrences that are compared, the latest first.
const MAX_OCCURRENCES: usize = 256;

/// Drafts from the tokens of each sequence.
#[derive(Default)]
pub(super) struct Ngram {
    indices: HashMap<SequenceId, NgramIndex>,
}

/// Index of the n-grams of a text. Updated incrementally: every token is indexed once.
#[derive(Default)]
struct NgramIndex {
    /// Position after the latest occurrence of each n-gram.
    latest: HashMap<[u32; NGRAM], u32>,
    /// Position after the previous occurrence of the n-gram that ends at `i + NGRAM`, or 0, indexed
    /// by `i`.
    earlier: Vec<u32>,
    /// Best match of the end of the text.
    found: Option<Match>,
}

/// An earlier occurrence of the end of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Match {
    /// Position after it.
    end: usize,
    /// Number of tokens that match.
    length: usize,
}

impl NgramIndex {
    /// Indexes the tokens appended since the last call, and finds the best match of the end.
    fn update(&mut self, tokens: &[u32]) {
        for ngram in tokens.windows(NGRAM).skip(self.earlier.len()) {
            let end = (self.earlier.len() + NGRAM) as u32;
            let before = self.latest.insert([ngram[0], ngram[1]], end);
            self.earlier.push(before.unwrap_or(0));
        }
        self.found = self.find(tokens);
    }

    fn find(&self, tokens: &[u32]) -> Option<Match> {
        let earlier = |end: usize| {
            let position = self.earlier.get(end.checked_sub(NGRAM)?)?;
            (*position > 0).then_some(*position as usize)
        };
        let mut occurrences = std::iter::successors(earlier(tokens.len()), |end| earlier(*end));
        let first = occurrences.next()?;
        let mut best = Match { end: first, length: match_length(tokens, first) };
        for end in occurrences.take(MAX_OCCURRENCES - 1) {
            if best.length == MAX_MATCH {
                break;
            }
            // An occurrence that differs there has no longer match.
            let back = best.length + 1;
            if end < back || tokens[end - back] != tokens[tokens.len() - back] {
                continue;
            }
            let length = match_length(tokens, end);
            if length > best.length {
                best = Match { end, length };
            }
        }
        Some(best)
    }
}

/// Number of tokens before `end` that equal the last ones of the text.
fn match_length(tokens: &[u32], end: usize) -> usize {
    let pairs = tokens[..end].iter().rev().zip(tokens.iter().rev());
    pairs.take(MAX_MATCH).take_while(|(one, other)| one == other).count()
}

/// Proposes `count` tokens: those from `end` on, repeated past the end of the text.
fn proposal_from(tokens: &[u32], end: usize, count: usize) -> Vec<u32> {
    let mut proposal: Vec<u32> = tokens[end..].iter().take(count).copied().collect();
    let period = tokens.len() - end;
    while proposal.len() < count {
        proposal.push(proposal[proposal.len() - period]);
    }
    proposal
}

impl Drafter for Ngram {
    fn capacities(&mut self, requests: &[DraftRequest<'_>]) -> Vec<DraftCapacity> {
        let capacity = |request: &DraftRequest<'_>| {
            let index = self.indices.entry(request.id).or_default();
            index.update(request.tokens);
            index.found.map_or_else(DraftCapacity::default, |found| DraftCapacity {
                max_tokens: request.max_drafts.min(MAX_DRAFT_TOKENS),
                // One class more for a match twice as long.
                class: (found.length / NGRAM).ilog2().min(CLASSES as u32 - 1) as usize,
                backlog: 0,
            })
        };
        requests.iter().map(capacity).collect()
    }

    fn draft(&mut self, requests: &[DraftRequest<'_>], max_tokens: &[usize]) -> Vec<Vec<u32>> {
        let proposal = |(request, max_tokens): (&DraftRequest<'_>, &usize)| {
            let found = self.indices.get(&request.id).and_then(|index| index.found);
            let proposal = |found: Match| proposal_from(request.tokens, found.end, *max_tokens);
            found.map_or_else(Vec::new, proposal)
        };
        requests.iter().zip(max_tokens).map(proposal).collect()
    }

    fn round_seconds(&self, _: usize) -> Option<f64> {
        // Negligible next to a step.
        Some(0.0)
    }

    fn release(&mut self, id: SequenceId) {
        self.indices.remove(&id);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn index(tokens: &[u32]) -> NgramIndex {
        let mut index = NgramIndex::default();
        index.update(tokens);
        index
    }

    /// The expected match, by comparing every position.
    fn naive(tokens: &[u32]) -> Option<Match> {
        let mut best: Option<Match> = None;
        for end in (NGRAM..tokens.len()).rev() {
            let same = |n: usize| n <= end && tokens[end - n..end] == tokens[tokens.len() - n..];
            let length = (1..=MAX_MATCH).take_while(|n| same(*n)).count();
            if length >= NGRAM && best.is_none_or(|best| length > best.length) {
                best = Some(Match { end, length });
            }
        }
        best
    }

    proptest! {
        #[test]
        fn the_index_finds_the_match_of_a_full_search(
            (alphabet, text) in (1u32..12).prop_flat_map(|n| (Just(n), prop::collection::vec(0..n, 0..200))),
            repeat in 0usize..60,
        ) {
            let mut text = text;
            text.extend_from_within(text.len().saturating_sub(repeat)..);
            text.push(alphabet / 2);
            let mut grown = NgramIndex::default();
            for length in 0..=text.len() {
                grown.update(&text[..length]);
                prop_assert_eq!(grown.found, naive(&text[..length]));
            }
            prop_assert_eq!(index(&text).found, grown.found, "at once or token by token");
        }

        #[test]
        fn proposals_repeat_the_text_after_the_match(
            text in prop::collection::vec(0u32..4, 2..60),
            count in 0usize..=MAX_DRAFT_TOKENS,
        ) {
            if let Some(Match { end, .. }) = index(&text).found {
                let proposal = proposal_from(&text, end, count);
                prop_assert_eq!(proposal.len(), count);
                let whole = [&text[..], &proposal].concat();
                for (i, token) in proposal.iter().enumerate() {
                    prop_assert_eq!(*token, whole[end + i]);
                }
            }
        }
    }

    #[test]
    fn the_longest_match_precedes_the_latest() {
        // After 1 2 came 3, then 4; after 0 1 2 came 3.
        let text = [0, 1, 2, 3, 9, 1, 2, 4, 0, 1, 2];
        assert_eq!(index(&text).found, Some(Match { end: 3, length: 3 }));
        assert_eq!(proposal_from(&text, 3, 3), [3, 9, 1]);
        let equals = [1, 2, 3, 9, 1, 2, 4, 8, 1, 2];
        assert_eq!(index(&equals).found, Some(Match { end: 6, length: 2 }));
    }

    #[test]
    fn a_repetitive_text_is_repeated() {
        let text = [7, 1, 2, 3, 1, 2, 3];
        assert_eq!(index(&text).found.map(|found| found.end), Some(4));
        assert_eq!(proposal_from(&text, 4, 8), [1, 2, 3, 1, 2, 3, 1, 2]);
        assert_eq!(proposal_from(&[5, 5, 5], 2, 4), [5, 5, 5, 5]);
    }

    #[test]
    fn an_index_stays_small_and_few_occurrences_are_compared() {
        // Worst case: one n-gram everywhere, never preceded by the same token.
        let text: Vec<u32> = (0..30_000u32).flat_map(|i| [i + 10, 1, 2]).collect();
        let index = index(&text);
        assert!(index.latest.len() <= text.len() && index.earlier.len() < text.len());
        assert_eq!(index.found, Some(Match { end: text.len() - 3, length: NGRAM }));
        // The longest match is found only among the latest occurrences.
        for (ngrams, length) in [(MAX_OCCURRENCES - 2, 4), (MAX_OCCURRENCES + 2, 2)] {
            let text = [&[5, 6, 1, 2], &text[..3 * ngrams], &[5, 6, 1, 2]].concat();
            assert_eq!(self::index(&text).found.map(|found| found.length), Some(length));
        }
    }
}

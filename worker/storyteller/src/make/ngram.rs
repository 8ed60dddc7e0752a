//! The baseline of the evaluation: n-grams with interpolated absolute discounting.

use rayon::slice::ParallelSliceMut;

/// Bits of a token in a key. Five tokens of a vocabulary of at most 2^12 fit into 64 bits.
const BITS: u32 = 12;
const DISCOUNT: f64 = 0.75;

/// Counts of all n-grams up to an order, as sorted arrays. The first token of an n-gram is in the
/// highest bits of its key, so that all continuations of a context are adjacent.
#[derive(Debug, Clone)]
pub struct Ngrams {
    /// `(key, count)` sorted by key, for orders 1, 2, ...
    orders: Vec<Vec<(u64, u32)>>,
    vocab: usize,
}

impl Ngrams {
    /// Counts the n-grams of `tokens` up to `order`, at most five.
    pub fn count(tokens: &[u32], order: usize, vocab: usize) -> Self {
        assert!(order <= 5 && vocab <= 1 << BITS, "a key has 64 bits");
        let orders = (1..=order).map(|n| {
            let mut keys: Vec<u64> = tokens.windows(n).map(key).collect();
            keys.par_sort_unstable();
            let runs = keys.chunk_by(|a, b| a == b);
            runs.map(|run| (run[0], run.len() as u32)).collect()
        });
        Self { orders: orders.collect(), vocab }
    }

    /// Returns the number of distinct n-grams.
    pub fn len(&self) -> usize {
        self.orders.iter().map(Vec::len).sum()
    }

    /// Returns whether there are no n-grams.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the probability of `token` after the last tokens of `context`.
    pub fn probability(&self, context: &[u32], token: u32) -> f64 {
        let mut probability = 1.0 / self.vocab as f64;
        for (history, counts) in self.orders.iter().enumerate().take(context.len() + 1) {
            let prefix = key(&context[context.len() - history..]) << BITS;
            let start = counts.partition_point(|&(key, _)| key < prefix);
            let seen = &counts[start..];
            let seen = &seen[..seen.partition_point(|&(key, _)| key < prefix + (1 << BITS))];
            if seen.is_empty() {
                break;
            }
            let total: f64 = seen.iter().map(|&(_, count)| f64::from(count)).sum();
            let ngram = prefix | u64::from(token);
            let count = match seen.binary_search_by_key(&ngram, |&(key, _)| key) {
                Ok(index) => f64::from(seen[index].1),
                Err(_) => 0.0,
            };
            let backoff_weight = DISCOUNT * seen.len() as f64 / total;
            probability = (count - DISCOUNT).max(0.0) / total + backoff_weight * probability;
        }
        probability
    }

    /// Returns the mean negative log-probability, in nats, of all tokens of `story` but the first.
    pub fn nats(&self, story: &[u32]) -> f64 {
        let total: f64 =
            (1..story.len()).map(|i| -self.probability(&story[..i], story[i]).ln()).sum();
        total / (story.len() - 1).max(1) as f64
    }
}

fn key(tokens: &[u32]) -> u64 {
    tokens.iter().fold(0, |key, &token| key << BITS | u64::from(token))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probabilities_sum_to_one_after_any_context() {
        let tokens: Vec<u32> = (0..500u32).map(|i| (i * i + i / 7) % 11).collect();
        let ngrams = Ngrams::count(&tokens, 5, 11);
        for context in [&[][..], &[3], &[1, 2], &tokens[100..120], &[10, 10, 10, 10]] {
            let sum: f64 = (0..11).map(|token| ngrams.probability(context, token)).sum();
            assert!((sum - 1.0).abs() < 1e-9, "{context:?} sums to {sum}");
        }
    }

    #[test]
    fn seen_ngrams_are_more_likely_than_unseen_ones() {
        let ngrams = Ngrams::count(&[1, 2, 3, 4, 5, 1, 2, 3, 4, 5, 1, 2, 3, 4, 5], 5, 8);
        assert!(ngrams.probability(&[1, 2, 3, 4], 5) > 0.7);
        assert!(ngrams.probability(&[1, 2, 3, 4], 6) < 0.1);
    }
}

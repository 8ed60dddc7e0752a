//! A tokenized text, cut into windows of the context length.

use std::num::NonZeroUsize;

use stoker_engine::tokenizer::{Tokenizer, TokenizerError};

use super::text::Text;
use crate::Error;

/// Windows that do not overlap. All tokens but the first of each window are scored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Windows {
    /// Token ids of each window, at least two.
    pub(super) windows: Vec<Vec<u32>>,
    /// Maximum tokens of a window.
    pub(super) length: usize,
    /// The BOS token of every window, if the model has one.
    pub(super) bos_token: Option<String>,
}

impl Windows {
    /// Cuts each document of `text` into windows of at most `length` tokens, until `max_tokens`
    /// tokens are to be scored.
    pub(super) fn cut(
        tokenizer: &Tokenizer,
        text: &Text,
        length: usize,
        max_tokens: Option<NonZeroUsize>,
    ) -> Result<Self, Error> {
        let failed = |error: TokenizerError| Error::Usage(format!("--text: {error}"));
        // The tokenizer also prepends BOS to an empty text.
        let bos = tokenizer.encode("", true).map_err(failed)?.first().copied();
        let bos = bos.filter(|id| tokenizer.is_special(*id));
        let mut remaining = max_tokens.map_or(usize::MAX, NonZeroUsize::get);
        let mut windows = Vec::new();
        for document in &text.documents {
            if remaining == 0 {
                break;
            }
            let ids = tokenizer.encode(document, false).map_err(failed)?;
            windows.extend(split(&ids, bos, length, &mut remaining));
        }
        if windows.is_empty() {
            let name = &text.name;
            return Err(Error::Usage(format!("--text {name}: has no token to predict")));
        }
        Ok(Self { windows, length, bos_token: bos.and_then(|id| tokenizer.token(id)) })
    }

    /// Returns the number of tokens to score.
    pub(super) fn scored(&self) -> usize {
        self.windows.iter().map(|window| window.len() - 1).sum()
    }
}

/// Returns the windows of one document. Stops when no tokens remain to score.
fn split(ids: &[u32], bos: Option<u32>, length: usize, remaining: &mut usize) -> Vec<Vec<u32>> {
    let capacity = length - usize::from(bos.is_some());
    let mut windows = Vec::new();
    for chunk in ids.chunks(capacity) {
        let mut window: Vec<u32> = bos.into_iter().chain(chunk.iter().copied()).collect();
        window.truncate(remaining.saturating_add(1));
        // A single token has no predecessor to predict it from.
        if window.len() > 1 {
            *remaining -= window.len() - 1;
            windows.push(window);
        }
    }
    windows
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(bos: Option<u32>, length: usize, mut remaining: usize) -> (Vec<Vec<u32>>, usize) {
        (split(&[1, 2, 3, 4, 5], bos, length, &mut remaining), remaining)
    }

    #[test]
    fn windows_do_not_overlap_and_start_with_bos() {
        let windows = vec![vec![9, 1, 2], vec![9, 3, 4], vec![9, 5]];
        assert_eq!(cut(Some(9), 3, 100), (windows, 95));
    }

    #[test]
    fn without_bos_the_first_token_of_a_window_is_not_scored() {
        // The last window would have a single token and nothing to score.
        assert_eq!(cut(None, 2, 100), (vec![vec![1, 2], vec![3, 4]], 98));
    }

    #[test]
    fn scored_tokens_are_limited() {
        assert_eq!(cut(Some(9), 3, 3), (vec![vec![9, 1, 2], vec![9, 3]], 0));
        assert_eq!(cut(None, 5, 2), (vec![vec![1, 2, 3]], 0));
    }
}

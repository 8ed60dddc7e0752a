//! A text as tokens, cut into what a model can see at once.

use std::num::NonZeroUsize;

use stoker_engine::tokenizer::{Tokenizer, TokenizerError};

use super::text::Text;
use crate::failure::Failure;

/// Windows that do not overlap. Each is scored from its second token on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Windows {
    /// Token ids, at least two each.
    pub(super) windows: Vec<Vec<u32>>,
    /// Tokens that a window holds at most.
    pub(super) length: usize,
    /// The token that begins each, where the model has one.
    pub(super) begin: Option<String>,
}

impl Windows {
    /// Cuts each document of `text` into windows of at most `length` tokens, until `max_tokens` are to be scored.
    pub(super) fn cut(
        tokenizer: &Tokenizer,
        text: &Text,
        length: usize,
        max_tokens: Option<NonZeroUsize>,
    ) -> Result<Self, Failure> {
        let failed = |error: TokenizerError| Failure::Usage(format!("--text: {error}"));
        // What the tokenizer puts before a text, which it does before an empty one too.
        let begin = tokenizer.encode("", true).map_err(failed)?.first().copied();
        let begin = begin.filter(|id| tokenizer.is_special(*id));
        let mut left = max_tokens.map_or(usize::MAX, NonZeroUsize::get);
        let mut windows = Vec::new();
        for document in &text.documents {
            if left == 0 {
                break;
            }
            let ids = tokenizer.encode(document, false).map_err(failed)?;
            windows.extend(pieces(&ids, begin, length, &mut left));
        }
        if windows.is_empty() {
            let name = &text.name;
            return Err(Failure::Usage(format!("--text {name}: has no token to predict")));
        }
        Ok(Self { windows, length, begin: begin.and_then(|id| tokenizer.token(id)) })
    }

    /// Tokens that are predicted.
    pub(super) fn scored(&self) -> usize {
        self.windows.iter().map(|window| window.len() - 1).sum()
    }
}

/// The windows of one document, as long as tokens are left to score.
fn pieces(ids: &[u32], begin: Option<u32>, length: usize, left: &mut usize) -> Vec<Vec<u32>> {
    let room = length - usize::from(begin.is_some());
    let mut windows = Vec::new();
    for piece in ids.chunks(room) {
        let mut window: Vec<u32> = begin.into_iter().chain(piece.iter().copied()).collect();
        window.truncate(left.saturating_add(1));
        // A token alone has nothing before it to be predicted from.
        if window.len() > 1 {
            *left -= window.len() - 1;
            windows.push(window);
        }
    }
    windows
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(begin: Option<u32>, length: usize, mut left: usize) -> (Vec<Vec<u32>>, usize) {
        (pieces(&[1, 2, 3, 4, 5], begin, length, &mut left), left)
    }

    #[test]
    fn windows_do_not_overlap_and_begin_alike() {
        let windows = vec![vec![9, 1, 2], vec![9, 3, 4], vec![9, 5]];
        assert_eq!(cut(Some(9), 3, 100), (windows, 95));
    }

    #[test]
    fn without_a_beginning_the_first_token_of_a_window_is_not_scored() {
        // The last token is alone: nothing to score.
        assert_eq!(cut(None, 2, 100), (vec![vec![1, 2], vec![3, 4]], 98));
    }

    #[test]
    fn no_more_is_scored_than_asked_for() {
        assert_eq!(cut(Some(9), 3, 3), (vec![vec![9, 1, 2], vec![9, 3]], 0));
        assert_eq!(cut(None, 5, 2), (vec![vec![1, 2, 3]], 0));
    }
}

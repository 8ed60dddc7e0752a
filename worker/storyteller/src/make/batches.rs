//! Turns one long stream of stories into training batches.

use crate::make::config::BOS;

/// Walks over a stream of tokens, story after story, and starts again at its end.
#[derive(Debug, Clone)]
pub struct Batches<'a> {
    tokens: &'a [u32],
    /// Where the next row begins; a checkpoint keeps it.
    pub cursor: usize,
}

/// Rows of equal length, flattened: what the model reads and what it should say after each token.
#[derive(Debug, Clone, PartialEq)]
pub struct Batch {
    /// `[rows * length]`
    pub inputs: Vec<u32>,
    /// `[rows * length]`, each one token further on.
    pub targets: Vec<u32>,
}

impl<'a> Batches<'a> {
    /// Starts at the beginning of `tokens`, which must be longer than any row asked for.
    pub fn new(tokens: &'a [u32]) -> Self {
        Self { tokens, cursor: 0 }
    }

    /// The next `rows` rows of `length` tokens.
    pub fn next(&mut self, rows: usize, length: usize) -> Batch {
        let (mut inputs, mut targets) = (Vec::new(), Vec::new());
        for row in 0..rows {
            // Every other row opens with a story, as a prompt does; the rest continue where the last
            // one stopped, so that no part of a story is never seen.
            if row % 2 == 0 {
                let rest = &self.tokens[self.cursor..];
                self.cursor += rest.iter().position(|&token| token == BOS).unwrap_or(rest.len());
            }
            if self.cursor + length + 1 > self.tokens.len() {
                self.cursor = 0;
            }
            let window = &self.tokens[self.cursor..=self.cursor + length];
            inputs.extend_from_slice(&window[..length]);
            targets.extend_from_slice(&window[1..]);
            self.cursor += length;
        }
        Batch { inputs, targets }
    }
}

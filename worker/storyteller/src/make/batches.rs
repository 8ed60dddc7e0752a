//! Splits one long stream of stories into training batches.

use crate::make::config::BOS;

/// Iterates over a stream of tokens, and starts again at its end.
#[derive(Debug, Clone)]
pub struct Batches<'a> {
    tokens: &'a [u32],
    /// Start of the next row in the stream, saved in checkpoints.
    pub cursor: usize,
}

/// Rows of equal length, flattened: input tokens and target tokens.
#[derive(Debug, Clone, PartialEq)]
pub struct Batch {
    /// `[rows * length]`
    pub inputs: Vec<u32>,
    /// `[rows * length]`: the token after each input.
    pub targets: Vec<u32>,
}

impl<'a> Batches<'a> {
    /// Starts at the first of `tokens`, which must be longer than any requested row.
    pub fn new(tokens: &'a [u32]) -> Self {
        Self { tokens, cursor: 0 }
    }

    /// Returns the next `rows` rows of `length` tokens.
    pub fn next(&mut self, rows: usize, length: usize) -> Batch {
        let (mut inputs, mut targets) = (Vec::new(), Vec::new());
        for row in 0..rows {
            // Every other row starts at the start of a story, like a prompt. The others continue
            // after the previous row, so that the training covers all parts of stories.
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

//! The output of a step: logits, or the tokens that a device drew from them.

use std::slice::ChunksExact;

/// Output of a step: for every token whose logits are needed, in order, a row of logits `[vocab]`
/// or the token drawn from it.
#[derive(Debug, PartialEq)]
pub struct StepOutput {
    /// Drawn tokens; `None` where the logits are in `logits`.
    drawn: Vec<Option<u32>>,
    /// Logits of the tokens that were not drawn, row by row.
    logits: Vec<f32>,
    vocab: usize,
}

/// Output for one token whose logits are needed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum OutputRow<'a> {
    /// The logits, `[vocab]`.
    Logits(&'a [f32]),
    /// The token that the device drew.
    Drawn(u32),
}

impl StepOutput {
    /// Takes the drawn tokens, and the logits of the others: rows of `vocab` values.
    pub(crate) fn new(drawn: Vec<Option<u32>>, logits: Vec<f32>, vocab: usize) -> Self {
        Self { drawn, logits, vocab: vocab.max(1) }
    }

    /// Takes logits for all tokens.
    pub(crate) fn from_logits(logits: Vec<f32>, vocab: usize) -> Self {
        Self::new(vec![None; logits.len() / vocab.max(1)], logits, vocab)
    }

    /// Rows of logits that were returned.
    pub fn logits(&self) -> ChunksExact<'_, f32> {
        self.logits.chunks_exact(self.vocab)
    }

    /// Row `index` of the returned logits.
    pub fn row(&self, index: usize) -> &[f32] {
        &self.logits[index * self.vocab..(index + 1) * self.vocab]
    }

    /// All rows, in order.
    pub(crate) fn rows(&self) -> impl Iterator<Item = OutputRow<'_>> {
        let mut logits = self.logits();
        self.drawn.iter().filter_map(move |drawn| match drawn {
            Some(token) => Some(OutputRow::Drawn(*token)),
            None => logits.next().map(OutputRow::Logits),
        })
    }
}

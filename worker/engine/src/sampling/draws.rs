//! Draws the tokens of a step on the threads of the operations.

use std::sync::OnceLock;

use stoker_ops::cpu::pool::pool;

use super::{Drawn, Sampler};
use crate::{error::RequestError, step_output::OutputRow};

/// With fewer logits than this, one thread draws: waking another may take longer.
const PARALLEL_THRESHOLD: usize = 1 << 15;

/// Rows of one sequence to draw from.
pub(crate) struct Draws<'a> {
    /// Sampler of the sequence.
    pub(crate) sampler: &'a Sampler,
    /// Position in the sequence of the first token to draw.
    pub(crate) position: usize,
    /// The row after the sequence's last token, and a row after each draft token.
    pub(crate) rows: Vec<OutputRow<'a>>,
    /// Draft tokens, which are taken to follow the sequence.
    pub(crate) drafts: &'a [u32],
}

/// Tokens drawn from the rows of one sequence. Drawing continues as long as the draft token equals
/// the drawn one. An error is the last entry.
pub(crate) type DrawnTokens = Vec<Result<Drawn, RequestError>>;

impl Draws<'_> {
    /// Draws for every sequence of a step. A result depends on its own rows alone, not on the
    /// thread.
    pub(crate) fn run_all(step: &[Draws<'_>]) -> Vec<DrawnTokens> {
        let drawn: Vec<_> = step.iter().map(|_| OnceLock::new()).collect();
        let run = |index: usize| {
            // Set once for each index.
            let _ = drawn[index].set(step[index].run());
        };
        if step.iter().map(Draws::logits).sum::<usize>() < PARALLEL_THRESHOLD {
            (0..step.len()).for_each(run);
        } else {
            pool().run(step.len(), run);
        }
        drawn.into_iter().map(|drawn| drawn.into_inner().unwrap_or_default()).collect()
    }

    /// Number of logits to read.
    fn logits(&self) -> usize {
        let row =
            |row: &OutputRow| if let OutputRow::Logits(logits) = row { logits.len() } else { 0 };
        self.rows.iter().map(row).sum()
    }

    fn run(&self) -> DrawnTokens {
        let mut tokens = Vec::with_capacity(1);
        for (i, row) in self.rows.iter().enumerate() {
            // The draft tokens so far were all accepted.
            let accepted = &self.drafts[..i];
            let drawn = self.sampler.draw(*row, self.position + i, accepted);
            let id = drawn.as_ref().ok().map(|drawn| drawn.id);
            tokens.push(drawn);
            if id.is_none() || id != self.drafts.get(i).copied() {
                break;
            }
        }
        tokens
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sampling::{Adjustments, Logprobs, Sampling, mix64};

    #[test]
    fn all_threads_draw_the_same_as_one() {
        const VOCAB: usize = 4_000;
        let logit = |n: usize| (mix64(n as u64) >> 40) as f32 / (1u64 << 21) as f32;
        let rows: Vec<Vec<f32>> =
            (0..32).map(|row| (0..VOCAB).map(|n| logit(row * VOCAB + n)).collect()).collect();
        let sampler = |row: usize| {
            let sampling = Sampling { top_p: 0.9, seed: row as u64, ..Sampling::default() };
            let adjustments = Adjustments { presence_penalty: 0.3, ..Adjustments::default() };
            Sampler::new(sampling, adjustments, Logprobs::default(), &[], Vec::new(), 0)
        };
        let samplers: Vec<_> = (0..rows.len()).map(sampler).collect();
        let draws = |row: usize| Draws {
            sampler: &samplers[row],
            position: row,
            rows: vec![OutputRow::Logits(&rows[row]), OutputRow::Logits(&rows[(row + 1) % 32])],
            drafts: &[],
        };
        // An accepted draft token is followed by another draw.
        let firsts: Vec<_> = (0..rows.len()).map(|row| draws(row).run()).collect();
        let drafts: Vec<Vec<u32>> =
            firsts.iter().map(|first| first.iter().flatten().map(|d| d.id).collect()).collect();
        let step: Vec<_> = (0..rows.len())
            .map(|row| Draws { drafts: &drafts[row][..(row + 1) % 2], ..draws(row) })
            .collect();
        assert!(step.iter().map(Draws::logits).sum::<usize>() >= PARALLEL_THRESHOLD);
        let alone: Vec<_> = step.iter().map(Draws::run).collect();
        assert_eq!(Draws::run_all(&step), alone);
        for (row, drawn) in alone.iter().enumerate() {
            assert_eq!(drawn.len(), 1 + (row + 1) % 2);
            assert_eq!(drawn[0], firsts[row][0]);
        }
    }
}

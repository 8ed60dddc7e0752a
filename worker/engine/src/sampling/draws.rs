//! Draws the tokens of a step, on all threads that operations run on.

use std::sync::OnceLock;

use stoker_ops::cpu::pool::pool;

use super::{Drawn, Sampler};
use crate::{request::RequestError, runner::OutputRow};

/// Fewer logits than this are drawn from on one thread: to wake another may take longer.
const WORTH_SHARING: usize = 1 << 15;

/// Rows of one sequence, to draw from.
pub(crate) struct Draws<'a> {
    /// How.
    pub(crate) sampler: &'a Sampler,
    /// Of the first token that is drawn, in the sequence.
    pub(crate) position: usize,
    /// One after what is known of the sequence, and one after each of its drafts.
    pub(crate) rows: Vec<OutputRow<'a>>,
    /// What is taken to follow what is known.
    pub(crate) drafts: &'a [u32],
}

/// What was drawn from one sequence's rows: a token, and another one as long as the draft before it is what was drawn. A
/// failure is the last.
pub(crate) type DrawnTokens = Vec<Result<Drawn, RequestError>>;

impl Draws<'_> {
    /// Draws for every sequence of a step. Each depends on its own rows alone, whichever thread draws.
    pub(crate) fn run_all(step: &[Draws<'_>]) -> Vec<DrawnTokens> {
        let drawn: Vec<_> = step.iter().map(|_| OnceLock::new()).collect();
        let run = |index: usize| {
            // Once for each.
            let _ = drawn[index].set(step[index].run());
        };
        if step.iter().map(Draws::logits).sum::<usize>() < WORTH_SHARING {
            (0..step.len()).for_each(run);
        } else {
            pool().run(step.len(), run);
        }
        drawn.into_iter().map(|drawn| drawn.into_inner().unwrap_or_default()).collect()
    }

    /// Logits to look at.
    fn logits(&self) -> usize {
        let row = |row: &OutputRow| if let OutputRow::Logits(logits) = row { logits.len() } else { 0 };
        self.rows.iter().map(row).sum()
    }

    fn run(&self) -> DrawnTokens {
        let mut tokens = Vec::with_capacity(1);
        for (i, row) in self.rows.iter().enumerate() {
            // As many drafts as tokens drawn so far, and the same.
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
    fn threads_draw_what_one_draws() {
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
        // A draft that was drawn is followed by what is drawn after it.
        let firsts: Vec<_> = (0..rows.len()).map(|row| draws(row).run()).collect();
        let drafts: Vec<Vec<u32>> =
            firsts.iter().map(|first| first.iter().flatten().map(|d| d.id).collect()).collect();
        let step: Vec<_> = (0..rows.len())
            .map(|row| Draws { drafts: &drafts[row][..(row + 1) % 2], ..draws(row) })
            .collect();
        assert!(step.iter().map(Draws::logits).sum::<usize>() >= WORTH_SHARING);
        let alone: Vec<_> = step.iter().map(Draws::run).collect();
        assert_eq!(Draws::run_all(&step), alone);
        for (row, drawn) in alone.iter().enumerate() {
            assert_eq!(drawn.len(), 1 + (row + 1) % 2);
            assert_eq!(drawn[0], firsts[row][0]);
        }
    }
}

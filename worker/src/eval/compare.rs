//! Several ways to keep the weights of a model, side by side over the same tokens.

use std::time::Instant;

use stoker_engine::{
    blocks::{Block, BlockPool},
    model::Quantization,
    runner::{BatchEntry, Runner, StepOutput},
    scheduler::blocks_for,
};

use super::{score::Score, windows::Windows};
use crate::failure::Failure;

/// What the logits of one step may take, in bytes.
const LOGITS_BYTES: usize = 32 << 20;
/// Tokens of one step at most: more would not make it faster.
const CHUNK: usize = 512;

/// A model with its weights kept in one way, and a cache for one window.
pub(super) struct Subject {
    pub(super) kind: Quantization,
    runner: Runner,
}

impl Subject {
    pub(super) fn new(kind: Quantization, runner: Runner) -> Self {
        Self { kind, runner }
    }
}

/// Scores all `subjects` on `windows`, and compares all but the first with it. Tells `watch` how many more
/// tokens are done.
pub(super) fn compare(
    subjects: &mut [Subject],
    windows: &Windows,
    mut watch: impl FnMut(usize),
) -> Result<Vec<Score>, Failure> {
    let blocks = blocks_for(windows.length);
    let pool = BlockPool::new(u32::try_from(blocks).unwrap_or(u32::MAX));
    let table = pool.take(blocks).unwrap_or_default();
    let mut scores = vec![Score::default(); subjects.len()];
    for window in &windows.windows {
        // The last token is predicted, and predicts nothing that is known.
        let mut start = 0;
        while start + 1 < window.len() {
            let end = (start + chunk(subjects)).min(window.len() - 1);
            step(subjects, &mut scores, &table, window, start..end)?;
            watch(end - start);
            start = end;
        }
    }
    Ok(scores)
}

/// Runs the tokens at `range` of a window through all subjects.
fn step(
    subjects: &mut [Subject],
    scores: &mut [Score],
    table: &[Block],
    window: &[u32],
    range: std::ops::Range<usize>,
) -> Result<(), Failure> {
    let mut reference: Option<StepOutput> = None;
    for (subject, score) in subjects.iter_mut().zip(scores) {
        let part = BatchEntry {
            ids: &window[range.clone()],
            start: range.start,
            table,
            logits: range.len(),
            draws: &[],
        };
        let begun = Instant::now();
        let outcome = subject.runner.run(&[part]);
        score.time += begun.elapsed();
        for (row, (logits, next)) in outcome.logits().zip(&window[range.start + 1..]).enumerate() {
            if !score.add(logits, *next) {
                let (kind, position) = (subject.kind, range.start + row);
                return Err(Failure::Failed(format!(
                    "--quantize {kind}: the logits after position {position} of a window are not all finite"
                )));
            }
            if let Some(reference) = &reference {
                score.apart.add(logits, reference.row(row));
            }
        }
        reference.get_or_insert(outcome);
    }
    Ok(())
}

/// Tokens of one step.
fn chunk(subjects: &[Subject]) -> usize {
    let vocab = subjects.first().map_or(1, |subject| subject.runner.model().config.vocab_size);
    (LOGITS_BYTES / (vocab * size_of::<f32>()).max(1)).clamp(1, CHUNK)
}

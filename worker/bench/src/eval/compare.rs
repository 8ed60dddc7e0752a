//! Scores several quantizations of a model on the same tokens.

use std::time::Instant;

use stoker_engine::{
    kv_cache::blocks_for,
    kv_cache::{Block, BlockPool},
    model::Quantization,
    runner::{BatchEntry, Runner},
    step_output::StepOutput,
};

use super::{score::Score, windows::Windows};
use crate::Error;

/// Maximum size of the logits of one step in bytes.
const LOGITS_BYTES: usize = 32 << 20;
/// Maximum tokens of one step. More would not be faster.
const CHUNK: usize = 512;

/// A model in one quantization, with KV cache for one window.
pub(super) struct Variant {
    pub(super) kind: Quantization,
    runner: Runner,
}

impl Variant {
    pub(super) fn new(kind: Quantization, runner: Runner) -> Self {
        Self { kind, runner }
    }
}

/// Scores all `variants` on `windows` and compares all others with the first. Reports the number of
/// newly scored tokens to `on_progress`.
pub(super) fn compare(
    variants: &mut [Variant],
    windows: &Windows,
    mut on_progress: impl FnMut(usize),
) -> Result<Vec<Score>, Error> {
    let blocks = blocks_for(windows.length);
    let pool = BlockPool::new(u32::try_from(blocks).unwrap_or(u32::MAX));
    let table = pool.allocate(blocks).unwrap_or_default();
    let mut scores = vec![Score::default(); variants.len()];
    for window in &windows.windows {
        // The last token is only predicted: its successor is unknown.
        let mut start = 0;
        while start + 1 < window.len() {
            let end = (start + chunk(variants)).min(window.len() - 1);
            step(variants, &mut scores, &table, window, start..end)?;
            on_progress(end - start);
            start = end;
        }
    }
    Ok(scores)
}

/// Runs the tokens at `range` of a window through all variants and adds their scores.
fn step(
    variants: &mut [Variant],
    scores: &mut [Score],
    table: &[Block],
    window: &[u32],
    range: std::ops::Range<usize>,
) -> Result<(), Error> {
    let mut reference: Option<StepOutput> = None;
    for (variant, score) in variants.iter_mut().zip(scores) {
        let entry = BatchEntry {
            ids: &window[range.clone()],
            start: range.start,
            table,
            logits: range.len(),
            draws: &[],
        };
        let begun = Instant::now();
        let result = variant.runner.run(&[entry]);
        score.time += begun.elapsed();
        for (row, (logits, next)) in result.logits().zip(&window[range.start + 1..]).enumerate() {
            if !score.add(logits, *next) {
                let (kind, position) = (variant.kind, range.start + row);
                return Err(Error::Failed(format!(
                    "--quantize {kind}: the logits after position {position} of a window are not all finite"
                )));
            }
            if let Some(reference) = &reference {
                score.difference.add(logits, reference.row(row));
            }
        }
        reference.get_or_insert(result);
    }
    Ok(())
}

/// Returns the number of tokens of one step.
fn chunk(variants: &[Variant]) -> usize {
    let vocab = variants.first().map_or(1, |variant| variant.runner.model().config.vocab_size);
    (LOGITS_BYTES / (vocab * size_of::<f32>()).max(1)).clamp(1, CHUNK)
}

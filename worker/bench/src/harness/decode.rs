//! A batch of sequences that decode together.

use std::time::{Duration, Instant};

use stoker_engine::Model;
use stoker_ops::{cpu, launches};

use super::{
    Harness, Measurement, Meter, Progress, SequenceEvent,
    time::{median, overhead},
};
use crate::Error;

/// Submits prompts of these lengths and runs until each sequence has its first token. Then measures
/// the steps in which all sequences decode the rest of their `tokens` tokens, at least 2.
pub(crate) fn decode(
    model: Model,
    prompts: &[usize],
    tokens: usize,
    progress: &mut Progress,
) -> Result<Measurement, Error> {
    // Shorter prompts start earlier and generate more tokens, so all sequences reach the same
    // length.
    let longest = prompts.iter().max().copied().unwrap_or_default() + tokens;
    let lengths = vec![longest; prompts.len()];
    let device = model.network.device().cloned();
    let mut harness = Harness::new(model, &lengths);
    let begun = Instant::now();
    for (slot, prompt) in prompts.iter().enumerate() {
        // No sequence finishes before the measurement ends.
        harness.submit(slot, *prompt, 2 * longest)?;
    }
    let mut ttfts: Vec<Option<Duration>> = vec![None; prompts.len()];
    let mut output_tokens = 0;
    loop {
        let count = ttfts.iter().flatten().count();
        if count == ttfts.len() {
            break;
        }
        progress.stage(|| format!("prompts, {count}/{} done", prompts.len()))?;
        for (slot, at, event) in harness.step()?.1 {
            if let SequenceEvent::Token = event {
                output_tokens += 1;
                ttfts[slot].get_or_insert(at.saturating_duration_since(begun));
            }
        }
    }
    let prefill = begun.elapsed();

    let mut steps = Vec::with_capacity(tokens);
    let meter = device.as_ref().map(Meter::begin);
    let (kernels, launched) = (cpu::kernel_time(), launches());
    for done in 1..tokens {
        progress.stage(|| format!("decoding, {done}/{tokens} tokens"))?;
        let (time, events) = harness.step()?;
        let sampled =
            events.iter().filter(|(_, _, event)| matches!(event, SequenceEvent::Token)).count();
        if sampled < prompts.len() {
            let all = prompts.len();
            return Err(Error::Failed(format!("a step gave {sampled} tokens for {all} sequences")));
        }
        output_tokens += sampled;
        steps.push(time);
    }
    let kernels = cpu::kernel_time().saturating_sub(kernels);
    let overhead = overhead(kernels, steps.iter().sum());
    let launched = launches() - launched;
    let step = median(&mut steps).unwrap_or_default();
    let prompt_tokens = prompts.iter().sum();
    Ok(Measurement {
        prompt_tokens,
        output_tokens,
        ttft: median(&mut ttfts.into_iter().flatten().collect::<Vec<_>>()),
        step,
        decode_rate: prompts.len() as f64 / step.as_secs_f64(),
        prefill_rate: Some(prompt_tokens as f64 / prefill.as_secs_f64()),
        overhead,
        launches: (launched > 0).then(|| launched as f64 / (tokens - 1) as f64),
        gpu: meter.map(Meter::end).unwrap_or_default(),
        ..Measurement::default()
    })
}

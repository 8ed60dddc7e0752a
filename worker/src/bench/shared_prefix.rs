//! `--shared-prefix`: two prompts with a common prefix, one after the other.

use std::time::{Duration, Instant};

use stoker_engine::Model;

use super::{
    child::Progress,
    error::Error,
    harness::{Harness, Measurement, SequenceEvent, median},
};

/// Scenario names of the rows: the first prompt with the prefix, and the second.
pub(super) const NAMES: [&str; 2] = ["prefix cold", "prefix warm"];
/// Prompt tokens after the shared prefix.
const SUFFIX: usize = 8;
/// Output tokens of each prompt.
const OUTPUT: usize = 16;

/// Returns the length of a sequence with a prefix of `shared` tokens, output included.
pub(super) fn sequence_length(shared: usize) -> usize {
    shared + SUFFIX + OUTPUT
}

/// Runs two prompts that share a prefix of `shared` tokens. Returns the measurement of each.
pub(super) fn run(
    model: Model,
    shared: usize,
    progress: &mut Progress,
) -> Result<Vec<Measurement>, Error> {
    // KV cache for all three sequences, so that no block is evicted.
    let mut harness = Harness::new(model, &[sequence_length(shared); 3]);
    progress.stage(|| "warm-up prompt".into())?;
    let warm_up = harness.tokens(shared + SUFFIX);
    measure(&mut harness, warm_up)?;
    let shared = harness.tokens(shared);
    let mut measurements = Vec::with_capacity(NAMES.len());
    for name in NAMES {
        progress.stage(|| name.into())?;
        let prompt = [shared.clone(), harness.tokens(SUFFIX)].concat();
        measurements.push(measure(&mut harness, prompt)?);
    }
    Ok(measurements)
}

/// Runs one prompt.
fn measure(harness: &mut Harness, prompt: Vec<u32>) -> Result<Measurement, Error> {
    let prompt_tokens = prompt.len();
    let before = harness.load().prefix_tokens_found;
    let begun = Instant::now();
    harness.submit_prompt(0, prompt, OUTPUT)?;
    let (mut first, mut steps): (Option<Duration>, Vec<Duration>) = (None, Vec::new());
    loop {
        let (step, events) = harness.step()?;
        for (_, at, event) in events {
            match (event, first) {
                (SequenceEvent::Token, None) => first = Some(at.saturating_duration_since(begun)),
                (SequenceEvent::Token, Some(_)) => steps.push(step),
                _ => {}
            }
        }
        // The first token is sampled in the prompt's last step.
        if steps.len() + 1 >= OUTPUT {
            break;
        }
    }
    let step = median(&mut steps).unwrap_or_default();
    Ok(Measurement {
        prompt_tokens,
        cached_prompt_tokens: Some(harness.load().prefix_tokens_found - before),
        output_tokens: OUTPUT,
        ttft: first,
        step,
        decode_rate: 1.0 / step.as_secs_f64(),
        prefill_rate: first.map(|first| prompt_tokens as f64 / first.as_secs_f64()),
        ..Measurement::default()
    })
}

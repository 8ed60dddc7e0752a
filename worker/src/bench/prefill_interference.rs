//! `--long-prompt`: inter-token latency of decoding sequences, first without prefill and then while
//! a long prompt is computed.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use stoker_engine::Model;

use super::{
    child::Progress,
    error::Error,
    harness::{Harness, Measurement, SequenceEvent, median},
};

/// Inter-token gaps measured for the baseline. A 99th percentile needs at least 100.
pub(super) const BASELINE_GAPS: usize = 128;

/// Effect of a long prompt on the inter-token latency of decoding sequences.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(super) struct PrefillInterference {
    /// Length of the long prompt in tokens.
    pub(super) prompt: usize,
    /// Time to first token of the long prompt.
    pub(super) ttft: Duration,
    /// Inter-token latency before the long prompt: p50 and p99.
    pub(super) baseline: [Duration; 2],
    /// Inter-token latency while the long prompt is computed: p50 and p99.
    pub(super) under_prefill: [Duration; 2],
}

impl PrefillInterference {
    /// Returns the p99 under prefill divided by the baseline p99.
    pub(super) fn ratio(&self) -> f64 {
        self.under_prefill[1].as_secs_f64() / self.baseline[1].as_secs_f64()
    }
}

/// Decodes sequences with prompts of these lengths, then also computes a prompt of `prompt` tokens
/// in chunks such that steps take at most `slowdown` times as long as decode-only steps.
pub(super) fn run(
    model: Model,
    prompts: &[usize],
    prompt: usize,
    slowdown: f64,
    progress: &mut Progress,
) -> Result<Measurement, Error> {
    let context = model.config.context_length;
    let mut lengths = vec![context; prompts.len()];
    lengths.push(prompt + 1);
    let mut harness = Harness::with_max_decode_slowdown(model, &lengths, slowdown);
    for (slot, prompt) in prompts.iter().enumerate() {
        harness.submit(slot, *prompt, context - prompt)?;
    }
    let mut started = vec![false; prompts.len()];
    while started.contains(&false) {
        progress.stage(|| "prompts of the decoding sequences".into())?;
        for (slot, _, event) in harness.step()?.1 {
            started[slot] |= matches!(event, SequenceEvent::Token);
        }
    }
    let mut last = Instant::now();
    let mut baseline = Vec::with_capacity(BASELINE_GAPS);
    while baseline.len() < BASELINE_GAPS {
        progress.stage(|| format!("baseline, {}/{BASELINE_GAPS} tokens", baseline.len()))?;
        (last, _) = gap(&mut harness, prompts.len(), last, &mut baseline)?;
    }
    let submitted = Instant::now();
    harness.submit(prompts.len(), prompt, 1)?;
    let mut under_prefill = Vec::new();
    let ttft = loop {
        progress.stage(|| format!("during prefill, {} tokens", under_prefill.len()))?;
        let first;
        (last, first) = gap(&mut harness, prompts.len(), last, &mut under_prefill)?;
        if let Some(first) = first {
            break first.saturating_duration_since(submitted);
        }
    };
    let step = median(&mut baseline).unwrap_or_default();
    let interference = PrefillInterference {
        prompt,
        ttft,
        baseline: percentiles(&mut baseline),
        under_prefill: percentiles(&mut under_prefill),
    };
    Ok(Measurement {
        prompt_tokens: prompts.iter().sum::<usize>() + prompt,
        output_tokens: (1 + baseline.len() + under_prefill.len()) * prompts.len() + 1,
        step,
        decode_rate: prompts.len() as f64 / step.as_secs_f64(),
        prefill_rate: Some(prompt as f64 / ttft.as_secs_f64()),
        prefill_interference: Some(interference),
        ..Measurement::default()
    })
}

/// Runs a step and adds the time since `last` to `gaps`. Returns the time of the decoding
/// sequences' tokens, and the time of the long prompt's first token if it was sampled in this step.
fn gap(
    harness: &mut Harness,
    decoding: usize,
    last: Instant,
    gaps: &mut Vec<Duration>,
) -> Result<(Instant, Option<Instant>), Error> {
    let (_, events) = harness.step()?;
    let (mut sampled, mut now, mut first) = (0, last, None);
    for (slot, at, event) in events {
        match event {
            SequenceEvent::Token if slot < decoding => (sampled, now) = (sampled + 1, at),
            SequenceEvent::Token => first = Some(at),
            SequenceEvent::Finished | SequenceEvent::Failed(_) => {}
        }
    }
    if sampled < decoding {
        let why = format!("a step gave {sampled} tokens for {decoding} sequences that decode");
        return Err(Error::Failed(why));
    }
    gaps.push(now.saturating_duration_since(last));
    Ok((now, first))
}

/// Returns the 50th and the 99th percentile.
fn percentiles(times: &mut [Duration]) -> [Duration; 2] {
    times.sort_unstable();
    [50, 99].map(|percent| {
        let rank = (times.len() * percent).div_ceil(100).saturating_sub(1);
        times.get(rank).copied().unwrap_or_default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_measured_values() {
        let times = |count: u64| (1..=count).rev().map(Duration::from_millis).collect::<Vec<_>>();
        let of = |count| percentiles(&mut times(count)).map(|time| time.as_millis());
        assert_eq!(of(200), [100, 198]);
        assert_eq!(of(100), [50, 99]);
        assert_eq!(of(3), [2, 3]);
        assert_eq!(percentiles(&mut []), [Duration::ZERO; 2]);
    }
}

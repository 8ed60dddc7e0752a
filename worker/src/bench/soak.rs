//! `--soak`: a batch that stays full for a long time.

use std::time::{Duration, Instant};

use stoker_engine::Model;
use stoker_ops::cpu;

use super::{
    child::Progress,
    error::Error,
    harness::{Harness, Measurement, SequenceEvent, median, overhead},
};
use crate::gpu::{Meter, Reading};

const MINUTE: Duration = Duration::from_secs(60);

/// Measurements of one minute.
#[derive(Default)]
struct Minute {
    prompt_tokens: usize,
    output_tokens: usize,
    ttfts: Vec<Duration>,
    steps: Vec<Duration>,
}

/// State of the sequence in a slot of the batch.
struct Slot {
    submitted: Instant,
    started: bool,
}

/// Keeps `batch` sequences of `prompt + output` tokens running for `time`. Returns one measurement
/// per minute.
pub(super) fn run(
    model: Model,
    batch: usize,
    (prompt, output): (usize, usize),
    time: Duration,
    progress: &mut Progress,
) -> Result<Vec<Measurement>, Error> {
    let device = model.network.device().cloned();
    let mut harness = Harness::new(model, &vec![prompt + output; batch]);
    let mut slots = Vec::with_capacity(batch);
    let mut minute = Minute::default();
    for slot in 0..batch {
        // Staggers the lengths of the first sequences, so that sequences finish one after the
        // other.
        harness.submit(slot, prompt, (output * (slot + 1) / batch).max(1))?;
        minute.prompt_tokens += prompt;
        slots.push(Slot { submitted: Instant::now(), started: false });
    }
    let (begun, mut measurements) = (Instant::now(), Vec::new());
    let (mut since, mut kernels) = (begun, cpu::kernel_time());
    let meter = || device.as_ref().map(Meter::begin);
    let mut metered = meter();
    loop {
        let (step, events) = harness.step()?;
        let sampled =
            events.iter().filter(|(_, _, event)| matches!(event, SequenceEvent::Token)).count();
        let mut decode_only = sampled == batch;
        for (slot, at, event) in events {
            let state = &mut slots[slot];
            match event {
                SequenceEvent::Token => {
                    minute.output_tokens += 1;
                    if !state.started {
                        state.started = true;
                        // The step also computed a prompt.
                        decode_only = false;
                        minute.ttfts.push(at.saturating_duration_since(state.submitted));
                    }
                }
                SequenceEvent::Finished => {
                    harness.submit(slot, prompt, output)?;
                    minute.prompt_tokens += prompt;
                    *state = Slot { submitted: Instant::now(), started: false };
                }
                // `Harness::step` returns an error for these.
                SequenceEvent::Failed(_) => {}
            }
        }
        if decode_only {
            minute.steps.push(step);
        }
        let over = begun.elapsed() >= time;
        let elapsed = since.elapsed();
        if elapsed >= MINUTE || over {
            let now = cpu::kernel_time();
            let overhead = overhead(now.saturating_sub(kernels), elapsed);
            let gpu = std::mem::replace(&mut metered, meter()).map(Meter::end);
            let measurement = Measurement {
                gpu: gpu.unwrap_or_default(),
                ..std::mem::take(&mut minute).measurement(elapsed, overhead)
            };
            measurements.push(measurement);
            progress.minute(measurements.len() as u64, measurement.decode_rate)?;
            (since, kernels) = (Instant::now(), now);
        }
        if over {
            return Ok(measurements);
        }
        progress.stage(|| format!("{} s of {} s", begun.elapsed().as_secs(), time.as_secs()))?;
    }
}

impl Minute {
    fn measurement(mut self, elapsed: Duration, overhead: Option<f64>) -> Measurement {
        Measurement {
            prompt_tokens: self.prompt_tokens,
            cached_prompt_tokens: None,
            output_tokens: self.output_tokens,
            ttft: median(&mut self.ttfts),
            // There is no decode-only step if every step also computed a prompt.
            step: median(&mut self.steps).unwrap_or(elapsed),
            decode_rate: self.output_tokens as f64 / elapsed.as_secs_f64(),
            // Prompts are spread over the minute, so there is no prefill phase to measure.
            prefill_rate: None,
            overhead,
            launches: None,
            gpu: Reading::default(),
            prefill_interference: None,
            gain: None,
        }
    }
}

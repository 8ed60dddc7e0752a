//! Steps an engine over prompts and measures the time.

use std::{
    num::NonZeroU32,
    sync::mpsc,
    time::{Duration, Instant},
};

use stoker_engine::{
    Adjustments, Engine, EngineConfig, Event, EventSink, Load, Logprobs, Model, Request, Sampling,
    Scope, Stopping, sampling::mix64, scheduler::QueueKey,
};
use stoker_ops::{cpu, launches};

use super::{
    child::Progress, error::Error, lengths, prefill_interference::PrefillInterference,
    speculate::SpeculationGain,
};
use crate::gpu::{Meter, Reading};

/// Maximum tokens of a step: the default of a worker.
pub(super) const MAX_NUM_BATCHED_TOKENS: usize = 512;
/// Seed of the random prompts.
const SEED: u64 = 0x5709_4e12;

/// Results of one measurement.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Measurement {
    /// Prompt tokens of all sequences.
    pub(super) prompt_tokens: usize,
    /// Prompt tokens found in the prefix cache. None where that is not measured.
    pub(super) cached_prompt_tokens: Option<u64>,
    /// Output tokens of all sequences.
    pub(super) output_tokens: usize,
    /// Median time to first token over sequences.
    pub(super) ttft: Option<Duration>,
    /// Median duration of a step in which all sequences decode.
    pub(super) step: Duration,
    /// Output tokens per second of all sequences.
    pub(super) decode_rate: f64,
    /// Prompt tokens per second of all sequences.
    pub(super) prefill_rate: Option<f64>,
    /// Share of the time spent outside the model's operations. None where operations are not timed.
    pub(super) overhead: Option<f64>,
    /// Kernel and graph launches of a GPU per step in which all sequences decode.
    pub(super) launches: Option<f64>,
    /// Readings of the GPU driver during the measurement.
    pub(super) gpu: Reading,
    /// Effect of a long prompt on decoding sequences. None where that is not measured.
    pub(super) prefill_interference: Option<PrefillInterference>,
    /// Gain of speculative decoding. None without it.
    pub(super) gain: Option<SpeculationGain>,
}

impl Measurement {
    /// Returns the median step of the model. With speculative decoding a step yields several tokens
    /// of a sequence.
    pub(super) fn model_step(&self) -> Duration {
        self.step.mul_f64(self.gain.map_or(1.0, |gain| gain.mean_accepted_length()))
    }
}

/// An event of a sequence.
pub(super) enum SequenceEvent {
    /// A token was sampled.
    Token,
    /// The sequence has finished.
    Finished,
    /// The sequence failed, with the reason.
    Failed(String),
}

/// An event of a sequence: its slot in the batch, the time and the event.
pub(super) type TimedEvent = (usize, Instant, SequenceEvent);

/// Records the events of a sequence.
struct EventRecorder {
    slot: usize,
    events: mpsc::Sender<TimedEvent>,
}

impl EventSink for EventRecorder {
    fn send(&mut self, event: Event) {
        let event = match event {
            Event::Token(_) => SequenceEvent::Token,
            Event::Finished(_) => SequenceEvent::Finished,
            Event::Failed(error) => SequenceEvent::Failed(error.to_string()),
            Event::PromptLogprobs(_) | Event::Preempted { .. } => return,
        };
        // The receiver lives as long as the engine.
        let _ = self.events.send((self.slot, Instant::now(), event));
    }

    fn is_closed(&self) -> bool {
        false
    }
}

/// An engine that records the events of its sequences.
pub(super) struct Harness {
    engine: Engine,
    sender: mpsc::Sender<TimedEvent>,
    events: mpsc::Receiver<TimedEvent>,
    vocab_size: usize,
    /// Random texts generated so far.
    texts: u64,
}

impl Harness {
    /// Creates an engine for `model` with KV cache for concurrent sequences of `lengths`. Prompts
    /// are computed without a limit on decode slowdown.
    pub(super) fn new(model: Model, lengths: &[usize]) -> Self {
        Self::with_max_decode_slowdown(model, lengths, f64::INFINITY)
    }

    /// Creates the same engine, with steps that take at most `max_decode_slowdown` times as long as
    /// a decode-only step.
    pub(super) fn with_max_decode_slowdown(
        model: Model,
        lengths: &[usize],
        max_decode_slowdown: f64,
    ) -> Self {
        let config = EngineConfig {
            max_num_seqs: lengths.len(),
            max_num_batched_tokens: MAX_NUM_BATCHED_TOKENS.max(lengths.len()),
            kv_blocks: lengths::blocks(lengths.iter().copied()),
            prefix_cache: true,
            max_decode_slowdown,
        };
        let vocab_size = model.config.vocab_size;
        let (sender, events) = mpsc::channel();
        Self { engine: Engine::new(model, config), sender, events, vocab_size, texts: 0 }
    }

    /// Returns `count` random tokens. The `n`th call always returns the same tokens.
    pub(super) fn tokens(&mut self, count: usize) -> Vec<u32> {
        self.texts += 1;
        let key = mix64(SEED + self.texts);
        let token = |i: usize| (mix64(key.wrapping_add(i as u64)) % self.vocab_size as u64) as u32;
        (0..count).map(token).collect()
    }

    /// Submits a prompt of `prompt` random tokens.
    pub(super) fn submit(
        &mut self,
        slot: usize,
        prompt: usize,
        output: usize,
    ) -> Result<(), Error> {
        let prompt = self.tokens(prompt);
        self.submit_prompt(slot, prompt, output)
    }

    /// Submits a prompt.
    pub(super) fn submit_prompt(
        &mut self,
        slot: usize,
        prompt: Vec<u32>,
        output: usize,
    ) -> Result<(), Error> {
        let request = Request {
            prompt: prompt.into(),
            sampling: Sampling { temperature: 0.0, ..Sampling::default() },
            adjustments: Adjustments::default(),
            num_sequences: NonZeroU32::MIN,
            stopping: Stopping {
                max_tokens: Some(output),
                ignore_eos: true,
                ..Stopping::default()
            },
            logprobs: Logprobs::default(),
            resumed: Vec::new(),
            accepted_before: false,
            suspect: false,
            scope: Scope::default(),
            bypass_prefix_cache: false,
            arrived: Instant::now(),
            queue_key: QueueKey::default(),
            deadline: None,
        };
        let recorder = EventRecorder { slot, events: self.sender.clone() };
        let submitted = self.engine.submit(request, Box::new(recorder));
        submitted.map_err(|error| Error::Failed(format!("the engine refused a prompt: {error}")))
    }

    /// Returns the engine's load.
    pub(super) fn load(&self) -> Load {
        self.engine.load()
    }

    /// Runs a step and returns its duration and the events of its sequences.
    pub(super) fn step(&mut self) -> Result<(Duration, Vec<TimedEvent>), Error> {
        let begun = Instant::now();
        let worked = self.engine.step();
        let time = begun.elapsed();
        let events: Vec<_> = self.events.try_iter().collect();
        for (_, _, event) in &events {
            if let SequenceEvent::Failed(why) = event {
                return Err(Error::Failed(why.clone()));
            }
        }
        if !worked || self.engine.load().preemptions > 0 {
            return Err(Error::Failed(
                "the engine preempted a sequence for lack of KV cache, or had nothing to run"
                    .into(),
            ));
        }
        Ok((time, events))
    }
}

/// Submits prompts of these lengths and runs until each sequence has its first token. Then measures
/// the steps in which all sequences decode the rest of their `tokens` tokens, at least 2.
pub(super) fn decode(
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

/// Returns the share of `time` spent outside operations. None if operations are not timed.
pub(super) fn overhead(kernels: Duration, time: Duration) -> Option<f64> {
    let counted = !kernels.is_zero() && !time.is_zero();
    counted.then(|| 1.0 - kernels.as_secs_f64() / time.as_secs_f64())
}

/// Returns the median of `times`. For an even number it is the mean of the middle two.
pub(super) fn median(times: &mut [Duration]) -> Option<Duration> {
    times.sort_unstable();
    let (low, high) = (times.get(times.len().checked_sub(1)? / 2)?, times.get(times.len() / 2)?);
    Some((*low + *high) / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_value_or_the_mean_of_two() {
        let median = |times: &[u64]| {
            let mut times: Vec<_> = times.iter().copied().map(Duration::from_secs).collect();
            median(&mut times).map(|time| time.as_secs())
        };
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3]), Some(3));
        assert_eq!(median(&[9, 1, 5]), Some(5));
        assert_eq!(median(&[8, 2, 4, 100]), Some(6));
    }

    #[test]
    fn overhead_is_the_time_outside_operations() {
        let seconds = Duration::from_secs;
        assert_eq!(overhead(seconds(3), seconds(4)), Some(0.25));
        assert_eq!(overhead(Duration::ZERO, seconds(4)), None);
    }
}

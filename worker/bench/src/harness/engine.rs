//! An engine that records the events of its sequences.

use std::{
    sync::mpsc,
    time::{Duration, Instant},
};

use stoker_engine::{
    Engine, EngineConfig, Event, EventSink, Load, Model, Request, Sampling, Stopping,
    sampling::mix64,
};

use super::lengths::{self, MAX_NUM_BATCHED_TOKENS};
use crate::Error;

/// Seed of the random prompts.
const SEED: u64 = 0x5709_4e12;

/// An event of a sequence.
pub(crate) enum SequenceEvent {
    /// A token was sampled.
    Token,
    /// The sequence has finished.
    Finished,
    /// The sequence failed, with the reason.
    Failed(String),
}

/// An event of a sequence: its slot in the batch, the time and the event.
pub(crate) type TimedEvent = (usize, Instant, SequenceEvent);

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
pub(crate) struct Harness {
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
    pub(crate) fn new(model: Model, lengths: &[usize]) -> Self {
        Self::with_max_decode_slowdown(model, lengths, f64::INFINITY)
    }

    /// Creates the same engine, with steps that take at most `max_decode_slowdown` times as long as
    /// a decode-only step.
    pub(crate) fn with_max_decode_slowdown(
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
        #[expect(clippy::disallowed_methods, reason = "it is read on the thread that writes it")]
        let (sender, events) = mpsc::channel();
        Self { engine: Engine::new(model, config), sender, events, vocab_size, texts: 0 }
    }

    /// Returns `count` random tokens. The `n`th call always returns the same tokens.
    pub(crate) fn tokens(&mut self, count: usize) -> Vec<u32> {
        self.texts += 1;
        let key = mix64(SEED + self.texts);
        let token = |i: usize| (mix64(key.wrapping_add(i as u64)) % self.vocab_size as u64) as u32;
        (0..count).map(token).collect()
    }

    /// Submits a prompt of `prompt` random tokens.
    pub(crate) fn submit(
        &mut self,
        slot: usize,
        prompt: usize,
        output: usize,
    ) -> Result<(), Error> {
        let prompt = self.tokens(prompt);
        self.submit_prompt(slot, prompt, output)
    }

    /// Submits a prompt.
    pub(crate) fn submit_prompt(
        &mut self,
        slot: usize,
        prompt: Vec<u32>,
        output: usize,
    ) -> Result<(), Error> {
        let stopping =
            Stopping { max_tokens: Some(output), ignore_eos: true, ..Stopping::default() };
        let request = Request { sampling: Sampling::greedy(), stopping, ..Request::new(prompt) };
        let recorder = EventRecorder { slot, events: self.sender.clone() };
        let submitted = self.engine.submit(request, Box::new(recorder));
        submitted.map_err(|error| Error::Failed(format!("the engine refused a prompt: {error}")))
    }

    /// Returns the engine's load.
    pub(crate) fn load(&self) -> Load {
        self.engine.load()
    }

    /// Runs a step and returns its duration and the events of its sequences.
    pub(crate) fn step(&mut self) -> Result<(Duration, Vec<TimedEvent>), Error> {
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

//! Gain of speculative decoding: decodes the same requests with and without it, alternating the
//! steps of both engines in one process.

use std::{
    num::NonZeroU32,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use stoker_engine::{
    Adjustments, Engine, EngineConfig, Event, EventSink, Logprobs, Model, Request, Sampling, Scope,
    Stopping, scheduler::QueueKey,
};
use storyteller::corpus::{HELD_OUT_SEED, Storyteller};

use super::{
    child::Progress,
    error::Error,
    harness::{MAX_NUM_BATCHED_TOKENS, Measurement, median},
    lengths,
};
use crate::config::SpeculationConfig;

/// Prompt length. A prompt is the prefix of a story that the bundled model was not trained on.
pub(super) const PROMPT: usize = 32;
/// Measured rounds, each with different prompts. A warm-up round for caches and estimates precedes
/// them.
const ROUNDS: u64 = 5;

/// Gain of speculative decoding.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct SpeculationGain {
    /// Speedup over plain decoding: the median of the ratios of the rounds.
    pub(super) speedup: f64,
    /// Output tokens of all rounds.
    pub(super) tokens: u64,
    /// Drafted tokens of all rounds.
    pub(super) drafted: u64,
    /// Accepted draft tokens of all rounds.
    pub(super) accepted: u64,
}

/// Decodes `batch` concurrent stories of `tokens` tokens at this temperature, with and without
/// speculative decoding.
pub(super) fn run(
    model: &Model,
    config: &SpeculationConfig,
    batch: usize,
    tokens: usize,
    temperature: f32,
    progress: &mut Progress,
) -> Result<Measurement, Error> {
    let size = EngineConfig {
        max_num_seqs: batch,
        max_num_batched_tokens: MAX_NUM_BATCHED_TOKENS.max(batch),
        // Includes KV cache for draft tokens, so that no draft is shortened.
        kv_blocks: lengths::blocks(vec![PROMPT + tokens + PROMPT; batch]),
        prefix_cache: false,
        max_decode_slowdown: f64::INFINITY,
    };
    let mut plain = Engine::new(model.clone(), size);
    let speculation = config.method(model, size.kv_blocks);
    let mut speculative = Engine::new(model.clone(), size).speculating(speculation);
    let mut gain = SpeculationGain::default();
    let (mut times, mut ratios) = (vec![], vec![]);
    for round in 0..=ROUNDS {
        progress.stage(|| format!("decoding, round {round}/{ROUNDS}"))?;
        let requests = requests(model, round, batch, tokens, temperature)?;
        let before = speculative.load();
        let [without, with] = run_alternately([&mut plain, &mut speculative], &requests)?;
        if round == 0 {
            continue;
        }
        let after = speculative.load();
        gain.tokens += with.tokens;
        gain.drafted += after.drafted - before.drafted;
        gain.accepted += after.accepted - before.accepted;
        ratios.push(without.seconds_per_token(batch) / with.seconds_per_token(batch));
        times.push(Duration::from_secs_f64(with.seconds_per_token(batch)));
    }
    ratios.sort_unstable_by(f64::total_cmp);
    gain.speedup = ratios[ratios.len() / 2];
    let step = median(&mut times).unwrap_or_default();
    Ok(Measurement {
        prompt_tokens: PROMPT * batch,
        output_tokens: gain.tokens as usize,
        step,
        decode_rate: batch as f64 / step.as_secs_f64(),
        gain: Some(gain),
        ..Measurement::default()
    })
}

impl SpeculationGain {
    /// Returns the mean tokens of a sequence per step of the model.
    pub(super) fn mean_accepted_length(&self) -> f64 {
        self.tokens as f64 / self.tokens.saturating_sub(self.accepted).max(1) as f64
    }
}

/// Result of decoding a batch.
struct Decoded {
    /// Output tokens after the first of each sequence.
    tokens: u64,
    time: Duration,
}

impl Decoded {
    /// Returns the mean time per output token of a sequence in seconds.
    fn seconds_per_token(&self, batch: usize) -> f64 {
        self.time.as_secs_f64() / self.tokens.max(1) as f64 * batch as f64
    }
}

/// Runs the same requests on both engines until they finish, alternating their steps so that other
/// load on the machine affects both equally. Measures from the time all sequences have their first
/// token.
fn run_alternately(engines: [&mut Engine; 2], requests: &[Request]) -> Result<[Decoded; 2], Error> {
    let [one, other] = engines;
    let mut both = [EngineRun::begin(one, requests)?, EngineRun::begin(other, requests)?];
    // Steps both engines until neither has work left.
    while both.iter_mut().fold(false, |any, run| run.step() | any) {}
    let [one, other] = both;
    Ok([one.finish(requests)?, other.finish(requests)?])
}

/// A run of requests on one engine.
struct EngineRun<'a> {
    engine: &'a mut Engine,
    counters: Vec<TokenCounter>,
    /// Tokens before the measured steps.
    before: u64,
    /// Duration of the measured steps.
    time: Duration,
}

impl<'a> EngineRun<'a> {
    /// Submits `requests` and runs until all sequences have their first token.
    fn begin(engine: &'a mut Engine, requests: &[Request]) -> Result<Self, Error> {
        let counters: Vec<_> = requests.iter().map(|_| TokenCounter::default()).collect();
        for (request, counter) in requests.iter().zip(&counters) {
            let submitted = engine.submit(request.clone(), Box::new(counter.clone()));
            submitted.map_err(|error| failed(&format!("refused a prompt: {error}")))?;
        }
        while counters.iter().any(|counter| counter.tokens() == 0) {
            if !engine.step() {
                return Err(failed("produced no token"));
            }
        }
        let before = counters.iter().map(TokenCounter::tokens).sum();
        Ok(Self { engine, counters, before, time: Duration::ZERO })
    }

    /// Runs a step. Returns false if the engine has no work.
    fn step(&mut self) -> bool {
        let begun = Instant::now();
        let ran = self.engine.step();
        self.time += begun.elapsed();
        ran
    }

    /// Returns the result. Fails if a response is shorter than requested.
    fn finish(self, requests: &[Request]) -> Result<Decoded, Error> {
        let tokens: u64 = self.counters.iter().map(TokenCounter::tokens).sum();
        let requested =
            requests.iter().filter_map(|request| request.stopping.max_tokens).sum::<usize>();
        if tokens as usize != requested {
            return Err(failed("ended a response early"));
        }
        Ok(Decoded { tokens: tokens - self.before, time: self.time })
    }
}

fn failed(why: &str) -> Error {
    Error::Failed(format!("the engine {why}"))
}

/// Counts the tokens of a sequence.
#[derive(Clone, Default)]
struct TokenCounter(Arc<AtomicU64>);

impl TokenCounter {
    fn tokens(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl EventSink for TokenCounter {
    fn send(&mut self, event: Event) {
        if let Event::Token(_) = event {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn is_closed(&self) -> bool {
        false
    }
}

/// Returns requests for `batch` stories, different ones in each round.
fn requests(
    model: &Model,
    round: u64,
    batch: usize,
    tokens: usize,
    temperature: f32,
) -> Result<Vec<Request>, Error> {
    let broken = |error: &dyn std::fmt::Display| Error::Failed(format!("the stories: {error}"));
    let storyteller = Storyteller::new().map_err(|error| broken(&error))?;
    let request = |index: u64| {
        let story = storyteller.story(HELD_OUT_SEED, index).map_err(|error| broken(&error))?;
        let mut prompt = model.tokenizer.encode(&story, true).map_err(|error| broken(&error))?;
        prompt.truncate(PROMPT);
        Ok(Request {
            prompt: prompt.into(),
            sampling: Sampling { temperature, seed: index, ..Sampling::default() },
            adjustments: Adjustments::default(),
            num_sequences: NonZeroU32::MIN,
            stopping: Stopping {
                max_tokens: Some(tokens),
                ignore_eos: true,
                ..Stopping::default()
            },
            logprobs: Logprobs::default(),
            resumed: Vec::new(),
            accepted_before: false,
            suspect: false,
            scope: Scope::default(),
            bypass_prefix_cache: true,
            arrived: Instant::now(),
            queue_key: QueueKey::default(),
            deadline: None,
        })
    };
    let first = round * batch as u64;
    (first..first + batch as u64).map(request).collect()
}

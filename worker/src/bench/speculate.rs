//! What guessing ahead gains: the same answers with and without it, step by step in one process.

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
    child::Tell,
    drive::{MAX_NUM_BATCHED_TOKENS, Pace, median},
    error::Error,
    lengths,
};
use crate::config::SpeculationConfig;

/// Tokens of a prompt: the beginning of a story that the bundled model has not seen.
pub(super) const PROMPT: usize = 32;
/// Rounds that count, each with other prompts. One more before them warms up caches and estimates.
const ROUNDS: u64 = 5;

/// What came of it.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Gain {
    /// How many times as fast: the median over rounds of the ratio within one.
    pub(super) speedup: f64,
    /// Of all rounds.
    pub(super) tokens: u64,
    pub(super) drafted: u64,
    pub(super) accepted: u64,
}

/// Decodes `batch` stories of `tokens` tokens at once at this temperature, plain and speculating.
pub(super) fn run(
    model: &Model,
    config: &SpeculationConfig,
    batch: usize,
    tokens: usize,
    temperature: f32,
    tell: &mut Tell,
) -> Result<Pace, Error> {
    let size = EngineConfig {
        max_num_seqs: batch,
        max_num_batched_tokens: MAX_NUM_BATCHED_TOKENS.max(batch),
        // Room for guesses too, so that none is left out.
        kv_blocks: lengths::blocks(vec![PROMPT + tokens + PROMPT; batch]),
        prefix_cache: false,
        max_decode_slowdown: f64::INFINITY,
    };
    let mut plain = Engine::new(model.clone(), size);
    let speculation = config.of(model, size.kv_blocks);
    let mut speculative = Engine::new(model.clone(), size).speculating(speculation);
    let mut gain = Gain::default();
    let (mut times, mut ratios) = (vec![], vec![]);
    for round in 0..=ROUNDS {
        tell.stage(|| format!("decoding, round {round}/{ROUNDS}"))?;
        let requests = requests(model, round, batch, tokens, temperature)?;
        let before = speculative.load();
        let [first, second] = race([&mut plain, &mut speculative], &requests)?;
        if round == 0 {
            continue;
        }
        let after = speculative.load();
        gain.tokens += second.tokens;
        gain.drafted += after.drafted - before.drafted;
        gain.accepted += after.accepted - before.accepted;
        ratios.push(first.each(batch) / second.each(batch));
        times.push(Duration::from_secs_f64(second.each(batch)));
    }
    ratios.sort_unstable_by(f64::total_cmp);
    gain.speedup = ratios[ratios.len() / 2];
    let step = median(&mut times).unwrap_or_default();
    Ok(Pace {
        prompt_tokens: PROMPT * batch,
        output_tokens: gain.tokens as usize,
        step,
        decode_rate: batch as f64 / step.as_secs_f64(),
        gain: Some(gain),
        ..Pace::default()
    })
}

impl Gain {
    /// Tokens that a sequence got in one step of the model, on average.
    pub(super) fn mean_accepted_length(&self) -> f64 {
        self.tokens as f64 / self.tokens.saturating_sub(self.accepted).max(1) as f64
    }
}

/// A batch, decoded.
struct Decoded {
    /// After the first of each sequence.
    tokens: u64,
    time: Duration,
}

impl Decoded {
    /// Seconds for a token of each sequence.
    fn each(&self, batch: usize) -> f64 {
        self.time.as_secs_f64() / self.tokens.max(1) as f64 * batch as f64
    }
}

/// Has both engines answer the same requests to their end, a step of one and a step of the other by turns: what else the
/// machine does is unfair to both alike. What counts begins once all have their first token.
fn race(engines: [&mut Engine; 2], requests: &[Request]) -> Result<[Decoded; 2], Error> {
    let [one, other] = engines;
    let mut both = [Answering::begin(one, requests)?, Answering::begin(other, requests)?];
    // Both step, whether the first still has something to do or not.
    while both.iter_mut().fold(false, |any, answering| answering.step() | any) {}
    let [one, other] = both;
    Ok([one.end(requests)?, other.end(requests)?])
}

/// An engine that answers requests.
struct Answering<'a> {
    engine: &'a mut Engine,
    clients: Vec<Client>,
    /// Tokens before any that count.
    before: u64,
    /// What steps took that count.
    time: Duration,
}

impl<'a> Answering<'a> {
    /// Submits them, and runs until all have their first token.
    fn begin(engine: &'a mut Engine, requests: &[Request]) -> Result<Self, Error> {
        let clients: Vec<_> = requests.iter().map(|_| Client::default()).collect();
        for (request, client) in requests.iter().zip(&clients) {
            let submitted = engine.submit(request.clone(), Box::new(client.clone()));
            submitted.map_err(|error| failed(&format!("refused a prompt: {error}")))?;
        }
        while clients.iter().any(|client| client.tokens() == 0) {
            if !engine.step() {
                return Err(failed("gave no token"));
            }
        }
        let before = clients.iter().map(Client::tokens).sum();
        Ok(Self { engine, clients, before, time: Duration::ZERO })
    }

    /// Runs a step. False if there was nothing to do.
    fn step(&mut self) -> bool {
        let begun = Instant::now();
        let ran = self.engine.step();
        self.time += begun.elapsed();
        ran
    }

    fn end(self, requests: &[Request]) -> Result<Decoded, Error> {
        let told: u64 = self.clients.iter().map(Client::tokens).sum();
        let wanted =
            requests.iter().filter_map(|request| request.stopping.max_tokens).sum::<usize>();
        if told as usize != wanted {
            return Err(failed("ended an answer early"));
        }
        Ok(Decoded { tokens: told - self.before, time: self.time })
    }
}

fn failed(why: &str) -> Error {
    Error::Failed(format!("the engine {why}"))
}

/// Counts the tokens that it is told.
#[derive(Clone, Default)]
struct Client(Arc<AtomicU64>);

impl Client {
    fn tokens(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl EventSink for Client {
    fn send(&mut self, event: Event) {
        if let Event::Token(_) = event {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn is_closed(&self) -> bool {
        false
    }
}

/// The beginnings of `batch` stories, others in each round.
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

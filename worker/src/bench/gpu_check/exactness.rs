//! The same requests, answered in different ways: the tokens must be the same.

use std::{
    num::NonZeroU32,
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use serde::Serialize;
use stoker_engine::{
    Adjustments, Engine, EngineConfig, Event, EventSink, Logprobs, Model, Request, Sampling, Scope,
    Stopping, scheduler::QueueKey,
};

use crate::bench::Error;

/// Requests, and tokens of each answer.
const REQUESTS: u32 = 8;
const TOKENS: usize = 32;
/// Room for all of them at once.
const ROOMY: EngineConfig = EngineConfig {
    max_num_seqs: 8,
    max_num_batched_tokens: 1024,
    kv_blocks: 256,
    prefix_cache: true,
    max_decode_slowdown: f64::INFINITY,
};

/// Whether two ways gave the same.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Pair {
    /// The two ways, and how weights were kept.
    pub(super) what: String,
    /// Whether every token was the same.
    pub(super) same: bool,
    /// Tokens that were compared.
    pub(super) tokens: usize,
}

/// What a model answers, and that it answers the same in other ways.
pub(super) struct Answers {
    tokens: Vec<Vec<u32>>,
    pub(super) pairs: Vec<Pair>,
}

impl Answers {
    pub(super) fn of(model: &Model) -> Result<Self, Error> {
        let requests = requests();
        let tokens = run(model, ROOMY, &requests)?;
        let mut answers = Self { tokens, pairs: Vec::new() };
        let alone = requests.iter().map(|one| run(model, ROOMY, std::slice::from_ref(one)));
        let alone = alone.collect::<Result<Vec<_>, _>>()?.concat();
        answers.add(model, "together and alone", &alone);
        let chunks = EngineConfig { max_num_batched_tokens: 17, ..ROOMY };
        let chunked = run(model, chunks, &requests)?;
        answers.add(model, "prompts whole and in chunks of 17", &chunked);
        let tight = EngineConfig { kv_blocks: 14, ..ROOMY };
        let (preempted, preemptions) = count_preemptions(model, tight, &requests)?;
        let what = format!("with room and preempted {preemptions} times");
        answers.add(model, &what, if preemptions > 0 { &preempted } else { &[] });
        let told = Logprobs { output: true, ..Logprobs::default() };
        let asked: Vec<_> = requests.into_iter().map(|r| Request { logprobs: told, ..r }).collect();
        let on_host = run(model, ROOMY, &asked)?;
        answers.add(model, "drawn on the device and on the host", &on_host);
        Ok(answers)
    }

    /// Compares with the answers that `model` gives now.
    pub(super) fn again(&self, model: &Model, what: &str) -> Result<Pair, Error> {
        let tokens = run(model, ROOMY, &requests())?;
        Ok(self.pair(model, &format!("with everything and {what}"), &tokens))
    }

    fn add(&mut self, model: &Model, what: &str, other: &[Vec<u32>]) {
        self.pairs.push(self.pair(model, what, other));
    }

    fn pair(&self, model: &Model, what: &str, other: &[Vec<u32>]) -> Pair {
        let complete = self.tokens.iter().all(|tokens| tokens.len() == TOKENS);
        Pair {
            what: format!("{what}, {}", model.quantization),
            same: complete && self.tokens == other,
            tokens: self.tokens.iter().map(Vec::len).sum(),
        }
    }
}

/// Prompts of many lengths; greedy, and drawn in every way.
fn requests() -> Vec<Request> {
    let request = |i: u32| {
        let length = 1 + i * 19;
        let seeded = Sampling { seed: u64::from(i), ..Sampling::default() };
        let sampling = match i % 4 {
            0 => Sampling { temperature: 0.0, ..seeded },
            1 => seeded,
            2 => Sampling { temperature: 0.7, ..seeded },
            _ => Sampling { top_p: 0.9, top_k: 40, ..seeded },
        };
        Request {
            prompt: (0..length).map(|j| (i * 131 + j * 17 + 3) % 1000).collect(),
            sampling,
            adjustments: Adjustments::default(),
            num_sequences: NonZeroU32::MIN,
            stopping: Stopping {
                max_tokens: Some(TOKENS),
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
        }
    };
    (0..REQUESTS).map(request).collect()
}

/// Collects what is drawn, and forgets it if that fails.
#[derive(Clone, Default)]
struct Tokens(Arc<Mutex<Vec<u32>>>);

impl EventSink for Tokens {
    fn send(&mut self, event: Event) {
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            Event::Token(token) => told.push(token.id),
            Event::Failed(failure) => {
                tracing::warn!(%failure, "an answer failed");
                told.clear();
            }
            Event::PromptLogprobs(_) | Event::Preempted { .. } | Event::Finished(_) => {}
        }
    }

    fn is_closed(&self) -> bool {
        false
    }
}

/// The tokens of each answer.
fn run(model: &Model, config: EngineConfig, requests: &[Request]) -> Result<Vec<Vec<u32>>, Error> {
    count_preemptions(model, config, requests).map(|(tokens, _)| tokens)
}

/// The tokens of each answer, and how often a sequence lost its place. An answer that failed is empty.
fn count_preemptions(
    model: &Model,
    config: EngineConfig,
    requests: &[Request],
) -> Result<(Vec<Vec<u32>>, u64), Error> {
    let mut engine = Engine::new(model.clone(), config);
    let sinks: Vec<_> = requests.iter().map(|_| Tokens::default()).collect();
    for (request, sink) in requests.iter().zip(&sinks) {
        let submitted = engine.submit(request.clone(), Box::new(sink.clone()));
        submitted
            .map_err(|error| Error::Failed(format!("the engine refused a prompt: {error}")))?;
    }
    while engine.step() {}
    let tokens = sinks.into_iter().map(|sink| {
        let told = sink.0.lock().unwrap_or_else(PoisonError::into_inner);
        told.clone()
    });
    Ok((tokens.collect(), engine.load().preemptions))
}

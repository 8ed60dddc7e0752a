//! Runs the same requests under different configurations and verifies that the tokens are
//! identical.

use std::sync::{Arc, Mutex, PoisonError};

use serde::Serialize;
use stoker_engine::{
    Engine, EngineConfig, Event, EventSink, Logprobs, Model, Request, Sampling, Stopping,
};

use crate::Error;

/// Number of requests.
const REQUESTS: u32 = 8;
/// Output tokens of each request.
const TOKENS: usize = 32;
/// Reference configuration, with KV cache for all requests at once.
const REFERENCE: EngineConfig = EngineConfig {
    max_num_seqs: 8,
    max_num_batched_tokens: 1024,
    kv_blocks: 256,
    prefix_cache: true,
    max_decode_slowdown: f64::INFINITY,
};

/// Comparison of the output under two configurations.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Comparison {
    /// The two configurations, and the quantization.
    pub(super) what: String,
    /// Whether all tokens are identical.
    pub(super) same: bool,
    /// Number of compared tokens.
    pub(super) tokens: usize,
}

/// Output of a model under the reference configuration, and comparisons with other configurations.
pub(super) struct ReferenceOutput {
    tokens: Vec<Vec<u32>>,
    pub(super) comparisons: Vec<Comparison>,
}

impl ReferenceOutput {
    /// Runs the requests under all configurations.
    pub(super) fn of(model: &Model) -> Result<Self, Error> {
        let requests = requests();
        let tokens = run(model, REFERENCE, &requests)?;
        let mut reference = Self { tokens, comparisons: Vec::new() };
        let alone = requests.iter().map(|one| run(model, REFERENCE, std::slice::from_ref(one)));
        let alone = alone.collect::<Result<Vec<_>, _>>()?.concat();
        reference.add(model, "together and alone", &alone);
        let chunks = EngineConfig { max_num_batched_tokens: 17, ..REFERENCE };
        let chunked = run(model, chunks, &requests)?;
        reference.add(model, "prompts whole and in chunks of 17", &chunked);
        let small_cache = EngineConfig { kv_blocks: 14, ..REFERENCE };
        let (preempted, preemptions) = count_preemptions(model, small_cache, &requests)?;
        let what = format!("without preemption and with {preemptions} preemptions");
        reference.add(model, &what, if preemptions > 0 { &preempted } else { &[] });
        let logprobs = Logprobs { output: true, ..Logprobs::default() };
        let with_logprobs: Vec<_> =
            requests.into_iter().map(|r| Request { logprobs, ..r }).collect();
        let on_host = run(model, REFERENCE, &with_logprobs)?;
        reference.add(model, "sampled on the device and on the host", &on_host);
        Ok(reference)
    }

    /// Runs the requests again on `model` and compares the output with the reference.
    pub(super) fn compare(&self, model: &Model, what: &str) -> Result<Comparison, Error> {
        let tokens = run(model, REFERENCE, &requests())?;
        Ok(self.comparison(model, &format!("with all features and {what}"), &tokens))
    }

    fn add(&mut self, model: &Model, what: &str, other: &[Vec<u32>]) {
        self.comparisons.push(self.comparison(model, what, other));
    }

    fn comparison(&self, model: &Model, what: &str, other: &[Vec<u32>]) -> Comparison {
        let complete = self.tokens.iter().all(|tokens| tokens.len() == TOKENS);
        Comparison {
            what: format!("{what}, {}", model.quantization),
            same: complete && self.tokens == other,
            tokens: self.tokens.iter().map(Vec::len).sum(),
        }
    }
}

/// Returns requests with prompts of different lengths and different sampling parameters.
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
        let prompt: Vec<u32> = (0..length).map(|j| (i * 131 + j * 17 + 3) % 1000).collect();
        let stopping =
            Stopping { max_tokens: Some(TOKENS), ignore_eos: true, ..Stopping::default() };
        Request { sampling, stopping, ..Request::new(prompt) }
    };
    (0..REQUESTS).map(request).collect()
}

/// Collects the tokens of a sequence. Clears them if the sequence fails.
#[derive(Clone, Default)]
struct TokenCollector(Arc<Mutex<Vec<u32>>>);

impl EventSink for TokenCollector {
    fn send(&mut self, event: Event) {
        let mut tokens = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            Event::Token(token) => tokens.push(token.id),
            Event::Failed(error) => {
                tracing::warn!(%error, "a sequence failed");
                tokens.clear();
            }
            Event::PromptLogprobs(_) | Event::Preempted { .. } | Event::Finished(_) => {}
        }
    }

    fn is_closed(&self) -> bool {
        false
    }
}

/// Returns the output tokens of each request.
fn run(model: &Model, config: EngineConfig, requests: &[Request]) -> Result<Vec<Vec<u32>>, Error> {
    count_preemptions(model, config, requests).map(|(tokens, _)| tokens)
}

/// Returns the output tokens of each request, empty if it failed, and the number of preemptions.
fn count_preemptions(
    model: &Model,
    config: EngineConfig,
    requests: &[Request],
) -> Result<(Vec<Vec<u32>>, u64), Error> {
    let mut engine = Engine::new(model.clone(), config);
    let sinks: Vec<_> = requests.iter().map(|_| TokenCollector::default()).collect();
    for (request, sink) in requests.iter().zip(&sinks) {
        let submitted = engine.submit(request.clone(), Box::new(sink.clone()));
        submitted
            .map_err(|error| Error::Failed(format!("the engine refused a prompt: {error}")))?;
    }
    while engine.step() {}
    let tokens = sinks.into_iter().map(|sink| {
        let tokens = sink.0.lock().unwrap_or_else(PoisonError::into_inner);
        tokens.clone()
    });
    Ok((tokens.collect(), engine.load().preemptions))
}

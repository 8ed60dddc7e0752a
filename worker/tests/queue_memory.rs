//! Memory of a waiting request: little more than its prompt, regardless of its number of sequences.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use peak_alloc::PeakAlloc;
use prost::Message;
use stoker_engine::{Engine, EngineConfig, Event, Model};
use stoker_loader::simulated::SimulatedDevice;
use stoker_ops::KV_BLOCK;
use stoker_proto::v1::{
    GenerateRequest, Resume, ResumedChoice, Routing, Sampling, StopCondition, Stopping, TokenIds,
    generate_request::Input, stop_condition::Kind,
};
use stoker_worker::{
    ModelSource, WorkerConfig,
    admit::Admission,
    engine_thread::{Attachments, event_channel},
    load,
};
use tokio::sync::mpsc;

#[global_allocator]
static ALLOCATOR: PeakAlloc = PeakAlloc;

/// Length of the longest sequence, in tokens.
const MAX_SEQUENCE_TOKENS: usize = 1 << 17;
/// Length of each prompt, in tokens.
const PROMPT: usize = 20_000;
const REQUESTS: usize = 100;
/// Maximum memory of a waiting request, in bytes, in addition to 4 bytes per prompt token: its
/// options, the first block of its channel and its queue entries.
const CONSTANT: usize = 16 << 10;
/// Maximum additional memory of each started sequence, in bytes: its generated tokens, the end of
/// its text and its queue entry.
const SEQUENCE: usize = 1 << 10;

struct TestEngine {
    model: Model,
    engine: Engine,
    events: Vec<mpsc::Receiver<Event>>,
}

impl TestEngine {
    /// Creates an engine with a KV cache of `capacity` tokens.
    fn new(capacity: usize) -> Self {
        let device: SimulatedDevice =
            format!("context_length = {MAX_SEQUENCE_TOKENS}").parse().unwrap();
        let source = ModelSource::Simulated(device.0);
        let model = load(&source, &WorkerConfig::default(), 1).unwrap();
        let config = EngineConfig {
            max_num_seqs: 16,
            max_num_batched_tokens: MAX_SEQUENCE_TOKENS,
            kv_blocks: capacity / KV_BLOCK,
            prefix_cache: true,
            max_decode_slowdown: f64::INFINITY,
        };
        let engine = Engine::new(model.clone(), config);
        Self { model, engine, events: Vec::new() }
    }

    /// Submits an encoded request.
    fn submit(&mut self, encoded: &[u8]) {
        let request = GenerateRequest::decode(encoded).unwrap();
        let admission = Admission {
            model: &self.model,
            templates: &self.model.chat_templates.compile(),
            name: "m",
            max_sequence_tokens: MAX_SEQUENCE_TOKENS,
            max_num_seqs: 16,
        };
        let request = admission.admit(request).unwrap();
        let (sink, events) = event_channel(&request, MAX_SEQUENCE_TOKENS, Attachments::default());
        self.engine.submit(request, Box::new(sink)).unwrap();
        self.events.push(events);
    }

    /// Submits requests, all of which wait, and returns the bytes that each of them holds.
    fn bytes_per_request(&mut self, requests: &[Vec<u8>]) -> usize {
        self.events.reserve(requests.len());
        let before = ALLOCATOR.current_usage();
        requests.iter().for_each(|request| self.submit(request));
        (ALLOCATOR.current_usage() - before) / requests.len()
    }
}

/// Returns an encoded request with all options that keep state per sequence.
fn encoded_request(seed: u32, num_sequences: u32, routing: Option<Routing>) -> Vec<u8> {
    let ids: Vec<u32> = (0..PROMPT as u32).map(|i| 3 + (i * 7 + seed) % 900).collect();
    let stop = |text: &str| StopCondition { kind: Some(Kind::Text(text.into())) };
    let request = GenerateRequest {
        input: Some(Input::TokenIds(TokenIds { ids })),
        sampling: Some(Sampling {
            num_sequences: Some(num_sequences),
            repetition_penalty: Some(1.1),
            frequency_penalty: Some(0.1),
            logit_bias: (0..30).map(|id| (id, 1.0)).collect(),
            ..Sampling::default()
        }),
        stopping: Some(Stopping {
            max_tokens: Some(50_000),
            min_tokens: Some(10),
            conditions: vec![stop("The end"), stop("\n\n")],
            ..Stopping::default()
        }),
        routing,
        priority: Some(seed % 1_000),
        ..GenerateRequest::default()
    };
    request.encode_to_vec()
}

fn encoded_requests(
    num_sequences: u32,
    routing: impl Fn(&TestEngine) -> Option<Routing>,
    engine: &TestEngine,
) -> Vec<Vec<u8>> {
    let encode = |seed| encoded_request(seed, num_sequences, routing(engine));
    (0..REQUESTS as u32).map(encode).collect()
}

/// The only test of this file, because others would allocate at the same time.
#[test]
fn a_waiting_request_holds_its_prompt_once_and_little_else() {
    let tokens = PROMPT * size_of::<u32>();
    let limit = tokens + CONSTANT;
    let started_limit = limit + 16 * SEQUENCE;
    assert!(started_limit < 2 * tokens);

    let mut new = TestEngine::new(MAX_SEQUENCE_TOKENS);
    for num_sequences in [1, 16] {
        let requests = encoded_requests(num_sequences, |_| None, &new);
        let bytes = new.bytes_per_request(&requests);
        eprintln!("{num_sequences} sequences: {bytes} bytes, {tokens} for the tokens");
        assert!(bytes <= limit, "{num_sequences} sequences: {bytes} bytes, at most {limit}");
    }

    // Resumed requests: each sequence has its own generated tokens.
    let mut resumed = TestEngine::new(MAX_SEQUENCE_TOKENS);
    let choice = ResumedChoice { token_ids: vec![40; 5], ..ResumedChoice::default() };
    let text = |engine: &TestEngine| engine.model.tokenizer.decode(&[40; 5], true).len() as u64;
    let routing = |engine: &TestEngine| {
        let choice = ResumedChoice { text_bytes_sent: text(engine), ..choice.clone() };
        let digest = engine.model.digest.clone();
        let choices = vec![choice; 16];
        let resume = Resume { digest, choices, max_tokens: 50_000 };
        Some(Routing { resume: Some(resume), ..Routing::default() })
    };
    let requests = encoded_requests(16, routing, &resumed);
    let bytes = resumed.bytes_per_request(&requests);
    eprintln!("16 sequences, resumed: {bytes} bytes");
    assert!(bytes <= started_limit, "resumed: {bytes} bytes, at most {started_limit}");
    assert_eq!(resumed.engine.load().waiting, 16 * REQUESTS, "all of them wait");

    // Preempted requests: each is started and then preempted by the next one, which has a higher
    // priority. The KV cache is so small that the second request fills it.
    let mut preempted = TestEngine::new(PROMPT + 2_000);
    let requests: Vec<_> =
        (0..REQUESTS as u32).rev().map(|seed| encoded_request(seed, 16, None)).collect();
    preempted.events.reserve(requests.len());
    let mut before = 0;
    for (i, request) in requests.iter().enumerate() {
        preempted.submit(request);
        // Computes the prompt and then tokens of all sequences.
        (0..3).for_each(|_| assert!(preempted.engine.step()));
        preempted.events.iter_mut().for_each(|events| while events.try_recv().is_ok() {});
        // From here on, the state of the cache and of the running request have a constant size.
        if i == REQUESTS / 2 {
            before = ALLOCATOR.current_usage();
        }
    }
    let bytes = (ALLOCATOR.current_usage() - before) / (REQUESTS - 1 - REQUESTS / 2);
    let load = preempted.engine.load();
    assert_eq!((load.running, load.waiting), (16, 16 * (REQUESTS - 1)));
    eprintln!("16 sequences, preempted: {bytes} bytes");
    assert!(bytes <= started_limit, "preempted: {bytes} bytes, at most {started_limit}");
}

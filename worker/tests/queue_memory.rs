//! What a request holds while it waits: little more than its prompt, however many sequences are to continue it.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use peak_alloc::PeakAlloc;
use prost::Message;
use stoker_engine::{Engine, EngineConfig, Event, Model};
use stoker_ops::KV_BLOCK;
use stoker_proto::v1::{
    GenerateRequest, Resume, ResumedChoice, Routing, Sampling, StopCondition, Stopping, TokenIds,
    generate_request::Input, stop_condition::Kind,
};
use stoker_worker::{
    ModelSource, WorkerConfig, admit::Admission, engine_thread::channel, load,
    simulate::SimulatedDevice,
};
use tokio::sync::mpsc;

#[global_allocator]
static ALLOCATOR: PeakAlloc = PeakAlloc;

/// Tokens of the longest sequence.
const ROOM: usize = 1 << 17;
const PROMPT: usize = 20_000;
const REQUESTS: usize = 100;
/// What a waiting request may hold besides 4 bytes a token: its options, the first block of its channel, and its place in
/// queues.
const CONSTANT: usize = 16 << 10;
/// What each sequence that has begun may hold besides: what it has drawn, the end of its text, its place in the queue.
const SEQUENCE: usize = 1 << 10;

struct World {
    model: Model,
    engine: Engine,
    events: Vec<mpsc::Receiver<Event>>,
}

impl World {
    /// With a cache for so many tokens.
    fn new(cached: usize) -> Self {
        let device: SimulatedDevice = format!("context_length = {ROOM}").parse().unwrap();
        let source = ModelSource::Simulated(device.0);
        let model = load(&source, &WorkerConfig::default(), 1).unwrap();
        let config = EngineConfig {
            max_num_seqs: 16,
            max_num_batched_tokens: ROOM,
            kv_blocks: cached / KV_BLOCK,
            prefix_cache: true,
            max_decode_slowdown: f64::INFINITY,
        };
        let engine = Engine::new(model.clone(), config);
        Self { model, engine, events: Vec::new() }
    }

    /// Submits a request as it comes from the wire.
    fn submit(&mut self, wire: &[u8]) {
        let request = GenerateRequest::decode(wire).unwrap();
        let admission = Admission { model: &self.model, name: "m", max_sequence_tokens: ROOM, max_num_seqs: 16 };
        let request = admission.admit(request).unwrap();
        let (sink, events) = channel(&request, ROOM, None);
        self.engine.submit(request, Box::new(sink)).unwrap();
        self.events.push(events);
    }

    /// Bytes that each of so many requests adds, all of which wait.
    fn bytes_of_each(&mut self, wires: &[Vec<u8>]) -> usize {
        self.events.reserve(wires.len());
        let before = ALLOCATOR.current_usage();
        wires.iter().for_each(|wire| self.submit(wire));
        (ALLOCATOR.current_usage() - before) / wires.len()
    }
}

/// A request that asks for everything that keeps state for each of its sequences.
fn wire(seed: u32, num_sequences: u32, routing: Option<Routing>) -> Vec<u8> {
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

fn wires(
    num_sequences: u32,
    routing: impl Fn(&World) -> Option<Routing>,
    world: &World,
) -> Vec<Vec<u8>> {
    (0..REQUESTS as u32).map(|seed| wire(seed, num_sequences, routing(world))).collect()
}

/// One test: others would allocate at the same time.
#[test]
fn a_waiting_request_holds_its_prompt_once_and_little_else() {
    let tokens = PROMPT * size_of::<u32>();
    let limit = tokens + CONSTANT;
    let begun = limit + 16 * SEQUENCE;
    assert!(begun < 2 * tokens);

    let mut new = World::new(ROOM);
    for num_sequences in [1, 16] {
        let wires = wires(num_sequences, |_| None, &new);
        let each = new.bytes_of_each(&wires);
        eprintln!("{num_sequences} sequences: {each} bytes, {tokens} for the tokens");
        assert!(each <= limit, "{num_sequences} sequences: {each} bytes, at most {limit}");
    }

    // Begun elsewhere: what each sequence has drawn is its own.
    let mut resumed = World::new(ROOM);
    let choice = ResumedChoice { token_ids: vec![40; 5], ..ResumedChoice::default() };
    let text = |world: &World| world.model.tokenizer.decode(&[40; 5], true).len() as u64;
    let routing = |world: &World| {
        let choice = ResumedChoice { text_bytes_sent: text(world), ..choice.clone() };
        let digest = world.model.digest.clone();
        let choices = vec![choice; 16];
        let resume = Resume { digest, choices, max_tokens: 50_000 };
        Some(Routing { resume: Some(resume), ..Routing::default() })
    };
    let wires = wires(16, routing, &resumed);
    let each = resumed.bytes_of_each(&wires);
    eprintln!("16 sequences, resumed: {each} bytes");
    assert!(each <= begun, "resumed: {each} bytes, at most {begun}");
    assert_eq!(resumed.engine.load().waiting, 16 * REQUESTS, "all of them wait");

    // Begun here, and preempted by more urgent ones, one after the other.
    // A small cache: it is full from the second on.
    let mut preempted = World::new(PROMPT + 2_000);
    let all: Vec<_> = (0..REQUESTS as u32).rev().map(|seed| wire(seed, 16, None)).collect();
    preempted.events.reserve(all.len());
    let mut before = 0;
    for (i, wire) in all.iter().enumerate() {
        preempted.submit(wire);
        // Its prompt, and then tokens of all sequences.
        (0..3).for_each(|_| assert!(preempted.engine.step()));
        preempted.events.iter_mut().for_each(|events| while events.try_recv().is_ok() {});
        // What the cache knows of its blocks, and the one that runs, are there before and after.
        if i == REQUESTS / 2 {
            before = ALLOCATOR.current_usage();
        }
    }
    let each = (ALLOCATOR.current_usage() - before) / (REQUESTS - 1 - REQUESTS / 2);
    let load = preempted.engine.load();
    assert_eq!((load.running, load.waiting), (16, 16 * (REQUESTS - 1)));
    eprintln!("16 sequences, preempted: {each} bytes");
    assert!(each <= begun, "preempted: {each} bytes, at most {begun}");
}

//! Ten thousand requests of all kinds with too few KV blocks, many of whose clients disconnect.

use std::time::{Duration, Instant};

use stoker_engine::{
    Engine, EngineConfig, Event, Model, Request, Sampling, Stopping,
    profile::Profile,
    request::Resumed,
    sampling::mix64,
    scheduler::{AdmissionError, QueueKey},
    speculation::{Depth, SpeculationMethod},
    tokenizer::Tokenizer,
};

use crate::support::{Client, ROOMY, request, with_choices};

const REQUESTS: u64 = 10_000;
/// Maximum number of concurrent requests.
const AT_ONCE: usize = 150;

/// Profile of a device that takes no time.
const INSTANT: Profile = Profile {
    step: Duration::ZERO,
    prefill_token: Duration::ZERO,
    decode_token: Duration::ZERO,
    context_token: Duration::ZERO,
    response_tokens: 0,
    context_length: 256,
    panic_token: 0,
    hang_token: 0,
};

fn model() -> Model {
    let json = storyteller::file(storyteller::model(), "tokenizer.json").unwrap();
    let tokenizer = Tokenizer::from_json_bytes(json).unwrap();
    let eos = tokenizer.token_id("<|end|>").unwrap();
    Model::simulated(INSTANT, tokenizer, eos)
}

/// A deterministic random number generator.
struct SeededRng(u64);

impl SeededRng {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 += 1;
        mix64(self.0) % limit
    }
}

struct Submitted {
    client: Client,
    choices: usize,
    disconnected: bool,
}

/// A random request: prompt and output lengths, choices, tenants, priorities and deadlines vary.
fn random(rng: &mut SeededRng, now: Instant) -> Request {
    let longest = [8, 40, 150][rng.below(3) as usize];
    let prompt = vec![7; 1 + rng.below(longest) as usize];
    let sampling = Sampling { seed: rng.below(100), ..Sampling::default() };
    let tokens = 1 + rng.below(24) as usize;
    let priority = [0, 100, 100, 100, 500][rng.below(5) as usize];
    let tenant = rng.below(4).to_string();
    let plain = request(&prompt, sampling, tokens);
    let deadline = match rng.below(20) {
        0 => Some(now),
        1 => Some(now + Duration::from_secs(3_600)),
        _ => None,
    };
    let choices = if rng.below(4) == 0 { 1 + rng.below(6) as u32 } else { 1 };
    let resumed = Resumed { tokens: Vec::new(), text_bytes: 0, ended: false };
    let is_resumed = rng.below(10) == 0;
    Request {
        queue_key: QueueKey { priority, tenant: tenant.into() },
        deadline,
        accepted_before: rng.below(10) == 0,
        suspect: rng.below(20) == 0,
        resumed: if is_resumed { vec![resumed; choices as usize] } else { Vec::new() },
        ..with_choices(choices, plain)
    }
}

#[test]
fn every_request_ends_once_and_every_block_is_freed() {
    let config = EngineConfig {
        max_num_seqs: 12,
        max_num_batched_tokens: 64,
        kv_blocks: 40,
        prefix_cache: true,
        max_decode_slowdown: 2.0,
    };
    let speculation = SpeculationMethod::Ngram { tokens: Depth::default() };
    let mut engine = Engine::new(model(), config).speculating(speculation);
    let mut rng = SeededRng(0);
    let now = Instant::now();
    let (mut submissions, mut active): (Vec<Submitted>, Vec<usize>) = (Vec::new(), Vec::new());
    let (mut submitted, mut refused, mut steps) = (0, 0, 0_u64);
    loop {
        while submitted < REQUESTS && active.len() < AT_ONCE && rng.below(3) > 0 {
            let client = Client::default();
            let request = random(&mut rng, now);
            let choices = request.num_sequences.get() as usize;
            submitted += 1;
            match engine.submit(request, Box::new(client.clone())) {
                Ok(()) => {
                    active.push(submissions.len());
                    submissions.push(Submitted { client, choices, disconnected: false });
                }
                Err(AdmissionError::TooLate { .. }) => refused += 1,
                Err(other) => panic!("{other}"),
            }
        }
        if !active.is_empty() && rng.below(8) == 0 {
            let one = &mut submissions[active[rng.below(active.len() as u64) as usize]];
            one.client.disconnect();
            one.disconnected = true;
        }
        let worked = engine.step();
        steps += 1;
        if steps.is_multiple_of(16) {
            active.retain(|i| {
                !submissions[*i].disconnected && !is_over(&submissions[*i].client.events())
            });
        }
        if !worked && submitted == REQUESTS {
            break;
        }
    }
    let load = engine.load();
    assert_eq!((load.running, load.waiting, load.queued_tokens), (0, 0, 0));
    assert_eq!(load.free_blocks, load.total_blocks, "every block is free");
    assert!(load.preemptions > 100, "too few preemptions: {load:?}");
    assert_eq!(submissions.len() as u64 + refused, REQUESTS);
    let (mut whole, mut failed, mut num_disconnected, mut preempted) = (0, 0_u64, 0, 0);
    for Submitted { client, choices, disconnected } in &submissions {
        let events = client.events();
        let tokens = events.iter().filter(|e| matches!(e, Event::Token(_))).count();
        let reported = client.preempted().len();
        assert!(
            reported <= tokens + choices,
            "at most one preemption before each token: {reported}, {tokens}"
        );
        preempted += reported;
        let ends = events.iter().filter(|event| is_last(event)).count();
        let finished = events.iter().filter(|e| matches!(e, Event::Finished(_))).count();
        if *disconnected {
            assert!(ends <= 1 && finished <= *choices);
            num_disconnected += 1;
        } else {
            assert_eq!(ends, 1, "{events:?}");
            assert!(ends_with_last(&events));
            let is_whole = finished == *choices;
            assert!(is_whole || matches!(events.last(), Some(Event::Failed(_))), "{events:?}");
            whole += usize::from(is_whole);
            failed += u64::from(!is_whole);
        }
    }
    assert!(whole > 4_000 && num_disconnected > 500, "{whole} {num_disconnected}");
    assert!(preempted > 100, "{preempted} of {load:?}");
    assert!(refused + failed > 200, "{refused} {failed}");
}

/// Whether `event` is the last one of its request.
fn is_last(event: &Event) -> bool {
    match event {
        Event::Finished(finish) => finish.summary.is_some(),
        Event::Failed(_) => true,
        Event::Token(_) | Event::PromptLogprobs(_) | Event::Preempted { .. } => false,
    }
}

fn is_over(events: &[Event]) -> bool {
    events.iter().any(is_last)
}

fn ends_with_last(events: &[Event]) -> bool {
    events.last().is_some_and(is_last)
}

#[test]
fn requests_past_their_deadline_are_dropped_before_they_run() {
    let config = EngineConfig {
        max_num_seqs: 1,
        max_num_batched_tokens: 64,
        kv_blocks: 40,
        prefix_cache: true,
        max_decode_slowdown: 2.0,
    };
    let mut engine = Engine::new(model(), config);
    let now = Instant::now();
    let request_by = |deadline| Request { deadline, ..request(&[7; 20], Sampling::greedy(), 4) };
    let clients = [None, Some(now), Some(now + Duration::from_secs(3_600))].map(|deadline| {
        let client = Client::default();
        engine.submit(request_by(deadline), Box::new(client.clone())).unwrap();
        client
    });
    assert!(engine.step());
    let passed = stoker_engine::RequestError::DeadlinePassed { scheduled: false };
    assert_eq!(clients[1].events(), [Event::Failed(passed)]);
    while engine.step() {}
    assert_eq!([clients[0].ids().len(), clients[2].ids().len()], [4, 4]);
    assert_eq!(engine.load().deadline_rejections, 1);
    // With measured step times, a request without time for a step is rejected at once.
    let late = engine.submit(request_by(Some(now)), Box::new(Client::default()));
    assert!(matches!(late, Err(AdmissionError::TooLate { .. })), "{late:?}");
    assert_eq!(engine.load().deadline_rejections, 2);
}

#[test]
fn one_in_sixteen_requests_with_an_unreachable_deadline_is_admitted() {
    let mut engine = Engine::new(model(), ROOMY);
    let (prompt, client) = ([7; 20], Client::default());
    let first = request(&prompt, Sampling::greedy(), 40);
    engine.submit(first.clone(), Box::new(client.clone())).unwrap();
    while engine.step() {}
    // An hour is too short for 2^40 tokens, however fast a step is.
    let stopping = Stopping { min_tokens: 1 << 40, ..first.stopping.clone() };
    let deadline = Some(Instant::now() + Duration::from_secs(3_600));
    let unreachable_deadline = Request { stopping, deadline, ..first };
    let refused = (0..32).filter(|_| {
        let taken = engine.submit(unreachable_deadline.clone(), Box::new(Client::default()));
        matches!(taken, Err(AdmissionError::TooLate { .. }))
    });
    assert_eq!(refused.count(), 30);
    assert_eq!(engine.load().deadline_rejections, 30);
    // A resumed request is admitted always, since its client is already reading.
    let begun = Resumed { tokens: client.ids()[..5].to_vec(), text_bytes: 0, ended: false };
    let resumed = Request { resumed: vec![begun], ..unreachable_deadline };
    engine.submit(resumed, Box::new(Client::default())).unwrap();
}

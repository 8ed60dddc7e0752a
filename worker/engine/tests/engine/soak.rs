//! Ten thousand requests of every kind, in far too little room, many of whose clients leave.

use std::time::{Duration, Instant};

use stoker_engine::{
    Engine, EngineConfig, Event, Model, Request, Sampling, Stopping,
    request::Resumed,
    sampling::mix64,
    scheduler::{AdmissionError, QueueKey},
    simulate::Profile,
    speculation::{Depth, SpeculationMethod},
    tokenizer::Tokenizer,
};

use crate::support::{Client, ROOMY, request, several};

const REQUESTS: u64 = 10_000;
/// Requests that are there at once.
const AT_ONCE: usize = 150;

/// A device that takes no time.
const INSTANT: Profile = Profile {
    step: Duration::ZERO,
    prefill_token: Duration::ZERO,
    decode_token: Duration::ZERO,
    context_token: Duration::ZERO,
    answer_tokens: 0,
    context_length: 256,
    panic_token: 0,
};

fn model() -> Model {
    let json = storyteller::file(storyteller::model(), "tokenizer.json").unwrap();
    let tokenizer = Tokenizer::from_json_bytes(json).unwrap();
    let eos = tokenizer.token_id("<|end|>").unwrap();
    Model::simulated(INSTANT, tokenizer, eos)
}

/// A chance that is the same each time.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 += 1;
        mix64(self.0) % limit
    }
}

struct Asked {
    client: Client,
    choices: usize,
    left: bool,
}

/// Prompts and answers of all lengths, with choices, tenants, priorities and deadlines.
fn random(dice: &mut Dice, now: Instant) -> Request {
    let longest = [8, 40, 150][dice.below(3) as usize];
    let prompt = vec![7; 1 + dice.below(longest) as usize];
    let sampling = Sampling { seed: dice.below(100), ..Sampling::default() };
    let tokens = 1 + dice.below(24) as usize;
    let priority = [0, 100, 100, 100, 500][dice.below(5) as usize];
    let tenant = dice.below(4).to_string();
    let plain = request(&prompt, sampling, tokens);
    let deadline = match dice.below(20) {
        0 => Some(now),
        1 => Some(now + Duration::from_secs(3_600)),
        _ => None,
    };
    let choices = if dice.below(4) == 0 { 1 + dice.below(6) as u32 } else { 1 };
    let resumed = Resumed { tokens: Vec::new(), text_bytes: 0, ended: false };
    let is_resumed = dice.below(10) == 0;
    Request {
        queue_key: QueueKey { priority, tenant: tenant.into() },
        deadline,
        accepted_before: dice.below(10) == 0,
        suspect: dice.below(20) == 0,
        resumed: if is_resumed { vec![resumed; choices as usize] } else { Vec::new() },
        ..several(choices, plain)
    }
}

#[test]
fn every_request_ends_once_and_every_block_comes_home() {
    let config = EngineConfig {
        max_num_seqs: 12,
        max_num_batched_tokens: 64,
        kv_blocks: 40,
        prefix_cache: true,
        max_decode_slowdown: 2.0,
    };
    let speculation = SpeculationMethod::Ngram { tokens: Depth::default() };
    let mut engine = Engine::new(model(), config).speculating(speculation);
    let mut dice = Dice(0);
    let now = Instant::now();
    let (mut asked, mut there): (Vec<Asked>, Vec<usize>) = (Vec::new(), Vec::new());
    let (mut submitted, mut refused, mut steps) = (0, 0, 0_u64);
    loop {
        while submitted < REQUESTS && there.len() < AT_ONCE && dice.below(3) > 0 {
            let client = Client::default();
            let request = random(&mut dice, now);
            let choices = request.num_sequences.get() as usize;
            submitted += 1;
            match engine.submit(request, Box::new(client.clone())) {
                Ok(()) => {
                    there.push(asked.len());
                    asked.push(Asked { client, choices, left: false });
                }
                Err(AdmissionError::TooLate { .. }) => refused += 1,
                Err(other) => panic!("{other}"),
            }
        }
        if !there.is_empty() && dice.below(8) == 0 {
            let one = &mut asked[there[dice.below(there.len() as u64) as usize]];
            one.client.leave();
            one.left = true;
        }
        let worked = engine.step();
        steps += 1;
        if steps.is_multiple_of(16) {
            there.retain(|i| !asked[*i].left && !is_over(&asked[*i].client.events()));
        }
        if !worked && submitted == REQUESTS {
            break;
        }
    }
    let load = engine.load();
    assert_eq!((load.running, load.waiting, load.queued_tokens), (0, 0, 0));
    assert_eq!(load.free_blocks, load.total_blocks, "every block comes home");
    assert!(load.preemptions > 100, "there was room for all: {load:?}");
    assert_eq!(asked.len() as u64 + refused, REQUESTS);
    let (mut whole, mut failed, mut left, mut preempted) = (0, 0_u64, 0, 0);
    for Asked { client, choices, left: gone } in &asked {
        let events = client.events();
        let tokens = events.iter().filter(|e| matches!(e, Event::Token(_))).count();
        let reported = client.preempted().len();
        assert!(reported <= tokens + choices, "one before each token: {reported}, {tokens}");
        preempted += reported;
        let ends = events.iter().filter(|event| ends(event)).count();
        let finished = events.iter().filter(|e| matches!(e, Event::Finished(_))).count();
        if *gone {
            assert!(ends <= 1 && finished <= *choices);
            left += 1;
        } else {
            assert_eq!(ends, 1, "{events:?}");
            assert!(ends_with_its_end(&events));
            let is_whole = finished == *choices;
            assert!(is_whole || matches!(events.last(), Some(Event::Failed(_))), "{events:?}");
            whole += usize::from(is_whole);
            failed += u64::from(!is_whole);
        }
    }
    assert!(whole > 4_000 && left > 500, "{whole} {left}");
    assert!(preempted > 100, "{preempted} of {load:?}");
    assert!(refused + failed > 200, "{refused} {failed}");
}

/// Whether nothing comes after this.
fn ends(event: &Event) -> bool {
    match event {
        Event::Finished(finish) => finish.summary.is_some(),
        Event::Failed(_) => true,
        Event::Token(_) | Event::PromptLogprobs(_) | Event::Preempted { .. } => false,
    }
}

fn is_over(events: &[Event]) -> bool {
    events.iter().any(ends)
}

fn ends_with_its_end(events: &[Event]) -> bool {
    events.last().is_some_and(ends)
}

#[test]
fn what_is_too_late_is_dropped_before_it_runs() {
    let config = EngineConfig {
        max_num_seqs: 1,
        max_num_batched_tokens: 64,
        kv_blocks: 40,
        prefix_cache: true,
        max_decode_slowdown: 2.0,
    };
    let mut engine = Engine::new(model(), config);
    let now = Instant::now();
    let asks = |deadline| Request { deadline, ..request(&[7; 20], Sampling::greedy(), 4) };
    let clients = [None, Some(now), Some(now + Duration::from_secs(3_600))].map(|deadline| {
        let client = Client::default();
        engine.submit(asks(deadline), Box::new(client.clone())).unwrap();
        client
    });
    assert!(engine.step());
    let passed = stoker_engine::RequestError::DeadlinePassed { began: false };
    assert_eq!(clients[1].events(), [Event::Failed(passed)]);
    while engine.step() {}
    assert_eq!([clients[0].ids().len(), clients[2].ids().len()], [4, 4]);
    assert_eq!(engine.load().too_late, 1);
    // Now it knows what steps cost, and that there is no time for one.
    let late = engine.submit(asks(Some(now)), Box::new(Client::default()));
    assert!(matches!(late, Err(AdmissionError::TooLate { .. })), "{late:?}");
    assert_eq!(engine.load().too_late, 2);
}

#[test]
fn one_in_many_that_would_take_too_long_is_tried() {
    let mut engine = Engine::new(model(), ROOMY);
    let (prompt, client) = ([7; 20], Client::default());
    let first = request(&prompt, Sampling::greedy(), 40);
    engine.submit(first.clone(), Box::new(client.clone())).unwrap();
    while engine.step() {}
    // An hour is too little for so many tokens, however fast a step is.
    let stopping = Stopping { min_tokens: 1 << 40, ..first.stopping.clone() };
    let deadline = Some(Instant::now() + Duration::from_secs(3_600));
    let hurried = Request { stopping, deadline, ..first };
    let refused = (0..32).filter(|_| {
        let taken = engine.submit(hurried.clone(), Box::new(Client::default()));
        matches!(taken, Err(AdmissionError::TooLate { .. }))
    });
    assert_eq!(refused.count(), 30);
    assert_eq!(engine.load().too_late, 30);
    // Somebody reads already what was begun elsewhere.
    let begun = Resumed { tokens: client.ids()[..5].to_vec(), text_bytes: 0, ended: false };
    let resumed = Request { resumed: vec![begun], ..hurried };
    engine.submit(resumed, Box::new(Client::default())).unwrap();
}

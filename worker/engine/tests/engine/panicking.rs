//! A device that panics at one request: what the others are told, and how the request is found out.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    time::Duration,
};

use stoker_engine::{
    Engine, EngineConfig, Event, Model, Request, RequestError, Sampling,
    simulate::Profile,
    speculation::{Depth, SpeculationMethod},
    tokenizer::Tokenizer,
};

use crate::support::{Client, ROOMY, request, run, several};

/// The end of a text, which no text of a simulated device has in its middle.
fn model() -> (Model, u32) {
    let json = storyteller::file(storyteller::model(), "tokenizer.json").unwrap();
    let tokenizer = Tokenizer::from_json_bytes(json).unwrap();
    let poison = tokenizer.token_id("<|end|>").unwrap();
    let profile = Profile {
        step: Duration::ZERO,
        prefill_token: Duration::ZERO,
        decode_token: Duration::ZERO,
        context_token: Duration::ZERO,
        answer_tokens: 0,
        context_length: 256,
        panic_token: poison,
    };
    (Model::simulated(profile, tokenizer, poison), poison)
}

fn healthy(seed: u64) -> Request {
    request(&[5, 6, 7 + seed as u32], Sampling { seed, ..Sampling::default() }, 40)
}

/// Submits all, and steps until the engine panics or all is done: the clients, and whether it panicked.
fn until_panic(engine: &mut Engine, requests: &[Request]) -> (Vec<Client>, bool) {
    let clients: Vec<_> = requests
        .iter()
        .map(|request| {
            let client = Client::default();
            engine.submit(request.clone(), Box::new(client.clone())).unwrap();
            client
        })
        .collect();
    let panicked = catch_unwind(AssertUnwindSafe(|| while engine.step() {})).is_err();
    if panicked {
        engine.fail_all("the reason");
    }
    (clients, panicked)
}

/// The sequences of a request that were in the step.
fn in_step(client: &Client) -> Vec<u32> {
    match client.events().pop() {
        Some(Event::Failed(RequestError::EnginePanicked { cause, sequences })) => {
            assert_eq!(cause, "the reason");
            sequences
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_panic_is_reported_to_all_and_names_those_of_the_step() {
    let (model, poison) = model();
    let config = EngineConfig { max_num_seqs: 4, ..ROOMY };
    let mut engine = Engine::new(model, config);
    let doomed = request(&[8, poison, 9], Sampling::default(), 10);
    // Two sequences, one, and the one that does it; the last one waits for a slot.
    let requests = [several(2, healthy(1)), healthy(2), doomed, healthy(4)];
    let (clients, panicked) = until_panic(&mut engine, &requests);
    assert!(panicked);
    // The first step has the prompts alone, of one sequence each.
    let reported: Vec<_> = clients.iter().map(in_step).collect();
    assert_eq!(reported, [vec![0], vec![0], vec![0], vec![]]);
}

#[test]
fn of_suspects_the_one_that_does_it_is_alone_in_the_next_panic_and_the_others_lose_nothing() {
    let (model, poison) = model();
    for drafts in [SpeculationMethod::Off, SpeculationMethod::Ngram { tokens: Depth::default() }] {
        let suspect =
            |request: Request| Request { suspect: true, accepted_before: true, ..request };
        let doomed = suspect(request(&[8, poison, 9], Sampling::default(), 10));
        let others: Vec<_> = (0..15).map(healthy).collect();
        let alone = run(&model, ROOMY, &others);
        let mut requests: Vec<_> = others.iter().cloned().map(suspect).collect();
        requests.insert(7, doomed);
        let bystander = healthy(99);
        requests.push(bystander);
        let mut engine = Engine::new(model.clone(), ROOMY).speculating(drafts);
        let (clients, panicked) = until_panic(&mut engine, &requests);
        assert!(panicked);
        for (at, client) in clients.iter().enumerate() {
            let ended = matches!(client.events().last(), Some(Event::Finished(_)));
            let named = if ended { vec![] } else { in_step(client) };
            assert_eq!(named, if at == 7 { vec![0] } else { vec![] }, "{at}");
        }
        // Without it, all of them come to their ends, as they would have anyway.
        requests.remove(7);
        requests.pop();
        let together = run(&model, ROOMY, &requests);
        for (alone, together) in alone.iter().zip(&together) {
            assert_eq!(alone.ids(), together.ids());
        }
    }
}

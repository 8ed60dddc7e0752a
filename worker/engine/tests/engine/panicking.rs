//! A device that panics at one request: the errors of other requests, and the isolation of the
//! culprit.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    time::Duration,
};

use stoker_engine::{
    Engine, EngineConfig, Event, Model, Request, RequestError, Sampling,
    profile::Profile,
    speculation::{Depth, SpeculationMethod},
    tokenizer::Tokenizer,
};

use crate::support::{Client, ROOMY, request, run, with_choices};

/// A simulated model that panics at its EOS token, which no simulated text contains, and that
/// token.
fn model() -> (Model, u32) {
    let json = storyteller::file(storyteller::model(), "tokenizer.json").unwrap();
    let tokenizer = Tokenizer::from_json_bytes(json).unwrap();
    let poison = tokenizer.token_id("<|end|>").unwrap();
    let profile = Profile {
        step: Duration::ZERO,
        prefill_token: Duration::ZERO,
        decode_token: Duration::ZERO,
        context_token: Duration::ZERO,
        response_tokens: 0,
        context_length: 256,
        panic_token: poison,
        hang_token: 0,
    };
    (Model::simulated(profile, tokenizer, poison), poison)
}

fn healthy(seed: u64) -> Request {
    request(&[5, 6, 7 + seed as u32], Sampling { seed, ..Sampling::default() }, 40)
}

/// Submits all requests and steps until the engine panics or is done. Returns the clients and
/// whether it panicked.
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

/// The sequences of a request that were in the step that panicked.
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
fn a_panic_is_reported_to_all_and_names_the_sequences_of_the_step() {
    let (model, poison) = model();
    let config = EngineConfig { max_num_seqs: 4, ..ROOMY };
    let mut engine = Engine::new(model, config);
    let poisoned = request(&[8, poison, 9], Sampling::default(), 10);
    // A request with two sequences, one with one, and the one that panics; the last waits for a
    // slot.
    let requests = [with_choices(2, healthy(1)), healthy(2), poisoned, healthy(4)];
    let (clients, panicked) = until_panic(&mut engine, &requests);
    assert!(panicked);
    // The first step has only the prompts, one sequence for each.
    let reported: Vec<_> = clients.iter().map(in_step).collect();
    assert_eq!(reported, [vec![0], vec![0], vec![0], vec![]]);
}

#[test]
fn isolation_of_suspects_finds_the_request_that_panics_and_the_others_complete() {
    let (model, poison) = model();
    for drafts in [SpeculationMethod::Off, SpeculationMethod::Ngram { tokens: Depth::default() }] {
        let suspect =
            |request: Request| Request { suspect: true, accepted_before: true, ..request };
        let poisoned = suspect(request(&[8, poison, 9], Sampling::default(), 10));
        let others: Vec<_> = (0..15).map(healthy).collect();
        let alone = run(&model, ROOMY, &others);
        let mut requests: Vec<_> = others.iter().cloned().map(suspect).collect();
        requests.insert(7, poisoned);
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
        // Without it, all of them complete with the same output.
        requests.remove(7);
        requests.pop();
        let together = run(&model, ROOMY, &requests);
        for (alone, together) in alone.iter().zip(&together) {
            assert_eq!(alone.ids(), together.ids());
        }
    }
}

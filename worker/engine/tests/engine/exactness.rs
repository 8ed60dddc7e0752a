//! A token depends on its request alone: batched, chunked or preempted, the output is the same.

use proptest::prelude::*;
use stoker_engine::{
    Adjustments, Engine, EngineConfig, FinishReason, Logprobs, Model, Request, Sampling, Stopping,
    Token, TokenLogprob, model::Quantization, scheduler::AdmissionError,
};

use crate::support::{
    Client, ROOMY, bundled_model, bundled_models, load_as, request, run, with_choices, write_random,
};

/// Requests with prompts of many lengths, half of them greedy, that cover all options of requests.
pub fn requests(model: &Model, count: usize, longest_prompt: usize, tokens: usize) -> Vec<Request> {
    let vocab = model.config.vocab_size as u32;
    (0..count)
        .map(|i| {
            let length = 1 + (i * 37) % longest_prompt;
            let prompt: Vec<u32> =
                (0..length).map(|j| (i as u32 * 131 + j as u32 * 17 + 3) % vocab).collect();
            let sampling = match i % 4 {
                0 | 2 => Sampling::greedy(),
                1 => Sampling { seed: i as u64, temperature: 0.9, ..Sampling::default() },
                _ => Sampling { seed: i as u64, top_k: 40, top_p: 0.9, ..Sampling::default() },
            };
            let plain = request(&prompt, sampling, tokens);
            with_choices(if i % 5 == 2 { 3 } else { 1 }, with_options(i, plain))
        })
        .collect()
}

/// `request` with adjustments, logprobs and minimum lengths that vary with `i`.
fn with_options(i: usize, request: Request) -> Request {
    let adjustments = match i % 3 {
        0 => Adjustments::default(),
        _ => Adjustments {
            bias: vec![(5, 2.0), (17, -3.0)],
            repetition_penalty: 1.3,
            frequency_penalty: 0.4,
            presence_penalty: -0.2,
        },
    };
    let logprobs = Logprobs { output: i.is_multiple_of(2), prompt: i % 4 < 2, top: i % 3 };
    // Equal to the maximum: the stop tokens are masked throughout.
    let min_tokens = if i % 7 < 3 { request.stopping.max_tokens.unwrap() } else { 0 };
    let token_ids = if min_tokens > 0 { vec![3, 4, 13] } else { vec![] };
    let stopping = Stopping { min_tokens, token_ids, ..request.stopping };
    Request { adjustments, logprobs, stopping, ..request }
}

/// Prompt log probabilities and tokens that a client received.
#[derive(Debug, Clone, PartialEq)]
pub struct Output {
    prompt: Vec<TokenLogprob>,
    choices: Vec<Vec<Token>>,
}

pub fn outputs(clients: &[Client]) -> Vec<Output> {
    let output = |client: &Client| Output {
        prompt: client.prompt_logprobs().concat(),
        choices: (0..3).map(|choice| client.tokens(choice)).collect(),
    };
    clients.iter().map(output).collect()
}

fn ids(clients: &[Client]) -> Vec<Vec<u32>> {
    clients.iter().map(Client::ids).collect()
}

/// Runs each request in its own engine.
fn alone(model: &Model, requests: &[Request]) -> Vec<Output> {
    let one = |r| outputs(&run(model, ROOMY, std::slice::from_ref(r))).remove(0);
    requests.iter().map(one).collect()
}

#[test]
fn batched_equals_alone() {
    for model in bundled_models() {
        let requests = requests(&model, 24, 90, 40);
        let clients = run(&model, ROOMY, &requests);
        assert!(ids(&clients).iter().all(|ids| ids.len() == 40));
        assert_eq!(outputs(&clients), alone(&model, &requests), "{}", model.quantization);
    }
}

#[test]
fn chunked_equals_whole_and_preempted_equals_not() {
    for model in bundled_models() {
        let requests = requests(&model, 12, 120, 60);
        let expected = outputs(&run(&model, ROOMY, &requests));
        for max_num_batched_tokens in [12, 17, 64] {
            let config = EngineConfig { max_num_batched_tokens, max_num_seqs: 12, ..ROOMY };
            let actual = outputs(&run(&model, config, &requests));
            assert_eq!(actual, expected, "{}, {max_num_batched_tokens} a step", model.quantization);
        }
        // 24 blocks hold two of the longest sequences: the others are preempted repeatedly.
        let tight = EngineConfig { kv_blocks: 24, ..ROOMY };
        let clients = run(&model, tight, &requests);
        let preemptions = |c: &Client| c.summary().timings.preemptions;
        assert!(clients.iter().map(preemptions).sum::<u32>() > 0, "this test must preempt");
        let forked = clients.iter().filter(|c| !c.tokens(1).is_empty());
        assert!(forked.map(preemptions).sum::<u32>() > 0, "forks too");
        assert_eq!(outputs(&clients), expected, "{}", model.quantization);
    }
}

#[test]
fn batched_equals_alone_at_real_widths() {
    for (hidden, inner, tied) in [(64, 172, false), (2048, 5632, true)] {
        let folder = tempfile::tempdir().unwrap();
        write_random(folder.path(), hidden, inner, tied);
        for quantization in Quantization::ALL {
            let model = load_as(folder.path(), quantization);
            let requests = requests(&model, 7, 30, 6);
            let expected = alone(&model, &requests);
            let actual = outputs(&run(&model, ROOMY, &requests));
            assert_eq!(actual, expected, "batched at {hidden} in {quantization}");
            let chunks = EngineConfig { max_num_batched_tokens: 9, max_num_seqs: 7, ..ROOMY };
            let actual = outputs(&run(&model, chunks, &requests));
            assert_eq!(actual, expected, "chunked at {hidden} in {quantization}");
            let tokens = expected.into_iter().flat_map(|output| output.choices.concat());
            let drawn: std::collections::HashSet<u32> = tokens.map(|token| token.id).collect();
            assert!(drawn.len() > 10, "random weights give too few distinct tokens: {drawn:?}");
        }
    }
}

#[test]
fn outputs_depend_on_the_seed_and_are_reproducible() {
    let model = bundled_model();
    let seeded = |seed| request(&[1], Sampling { seed, ..Sampling::default() }, 30);
    let ids = ids(&run(&model, ROOMY, &[seeded(1), seeded(2), seeded(1)]));
    assert_eq!(ids[0], ids[2]);
    assert_ne!(ids[0], ids[1]);
}

#[test]
fn a_client_that_disconnects_frees_its_blocks_before_the_next_step() {
    let model = bundled_model();
    let mut engine = Engine::new(model, ROOMY);
    let (connected, disconnecting) = (Client::default(), Client::default());
    for (client, token) in [(&connected, 1), (&disconnecting, 2)] {
        let long = request(&[token; 40], Sampling::greedy(), 100);
        engine.submit(long, Box::new(client.clone())).unwrap();
    }
    engine.step();
    engine.step();
    assert_eq!(engine.load().running, 2);
    let held = engine.load().total_blocks - engine.load().free_blocks;
    disconnecting.disconnect();
    engine.step();
    assert_eq!(engine.load().running, 1);
    assert_eq!(engine.load().total_blocks - engine.load().free_blocks, held / 2);
    assert_eq!(disconnecting.ids().len(), 2, "not one token more");
    while engine.step() {}
    assert_eq!(connected.ids().len(), 100);
    assert_eq!(engine.load().free_blocks, engine.load().total_blocks);
}

#[test]
fn the_end_of_the_context_is_a_limit() {
    let model = bundled_model();
    let room = model.config.context_length;
    let mut endless = request(&vec![5; room - 3], Sampling::greedy(), 1);
    endless.stopping.max_tokens = None;
    let client = &run(&model, ROOMY, &[endless])[0];
    assert_eq!(client.reasons(), [(0, FinishReason::Length)]);
    assert_eq!(client.ids().len(), 3);

    let mut engine = Engine::new(model, EngineConfig { kv_blocks: 4, ..ROOMY });
    let sink = Box::new(Client::default());
    let refused = engine.submit(request(&[1; 64], Sampling::greedy(), 1), sink).unwrap_err();
    assert_eq!(refused, AdmissionError::TooLong { needed: 5, total: 4 });
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..Default::default() })]

    #[test]
    fn outputs_do_not_depend_on_limits(
        max_num_seqs in 3usize..9,
        extra in 0usize..40,
        kv_blocks in 12usize..40,
        count in 1usize..9,
        max_decode_slowdown in prop_oneof![Just(1.0), Just(2.0), Just(f64::INFINITY)],
    ) {
        let model = bundled_model();
        let requests = requests(&model, count, 60, 24);
        let config = EngineConfig {
            max_num_seqs,
            max_num_batched_tokens: max_num_seqs + extra,
            kv_blocks,
            max_decode_slowdown,
            ..ROOMY
        };
        let actual = outputs(&run(&model, config, &requests));
        prop_assert_eq!(actual, outputs(&run(&model, ROOMY, &requests)));
    }
}

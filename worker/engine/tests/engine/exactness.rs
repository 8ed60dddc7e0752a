//! A token depends on its request alone: batched, chunked or preempted, the answer is the same.

use proptest::prelude::*;
use stoker_engine::{
    Adjustments, Engine, EngineConfig, FinishReason, Logprobs, Model, Request, Sampling, Stopping,
    Token, TokenLogprob, model::Quantization, scheduler::AdmissionError,
};

use crate::support::{
    Client, ROOMY, load_as, request, run, several, stories, stories_in_all, write_random,
};

/// Prompts of many lengths, half of them greedy, with every wish of the contract in some.
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
            several(if i % 5 == 2 { 3 } else { 1 }, wishing(i, plain))
        })
        .collect()
}

/// `request` with what changes a draw or comes beside it, in every combination over `i`.
fn wishing(i: usize, request: Request) -> Request {
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
    // As many as there can be: nothing ends the answer, but something is masked.
    let min_tokens = if i % 7 < 3 { request.stopping.max_tokens.unwrap() } else { 0 };
    let token_ids = if min_tokens > 0 { vec![3, 4, 13] } else { vec![] };
    let stopping = Stopping { min_tokens, token_ids, ..request.stopping };
    Request { adjustments, logprobs, stopping, ..request }
}

/// All that a client is told that a text is made of.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    prompt: Vec<TokenLogprob>,
    choices: Vec<Vec<Token>>,
}

pub fn answers(clients: &[Client]) -> Vec<Answer> {
    let answer = |client: &Client| Answer {
        prompt: client.prompt_logprobs().concat(),
        choices: (0..3).map(|choice| client.tokens(choice)).collect(),
    };
    clients.iter().map(answer).collect()
}

fn ids(clients: &[Client]) -> Vec<Vec<u32>> {
    clients.iter().map(Client::ids).collect()
}

/// Each request in an engine of its own.
fn alone(model: &Model, requests: &[Request]) -> Vec<Answer> {
    let one = |r| answers(&run(model, ROOMY, std::slice::from_ref(r))).remove(0);
    requests.iter().map(one).collect()
}

#[test]
fn batched_equals_alone() {
    for model in stories_in_all() {
        let requests = requests(&model, 24, 90, 40);
        let clients = run(&model, ROOMY, &requests);
        assert!(ids(&clients).iter().all(|ids| ids.len() == 40));
        assert_eq!(answers(&clients), alone(&model, &requests), "{}", model.quantization);
    }
}

#[test]
fn chunked_equals_whole_and_preempted_equals_not() {
    for model in stories_in_all() {
        let requests = requests(&model, 12, 120, 60);
        let want = answers(&run(&model, ROOMY, &requests));
        for max_num_batched_tokens in [12, 17, 64] {
            let config = EngineConfig { max_num_batched_tokens, max_num_seqs: 12, ..ROOMY };
            let got = answers(&run(&model, config, &requests));
            assert_eq!(got, want, "{}, {max_num_batched_tokens} a step", model.quantization);
        }
        // 24 blocks hold two of the longest sequences: the rest is preempted again and again.
        let tight = EngineConfig { kv_blocks: 24, ..ROOMY };
        let clients = run(&model, tight, &requests);
        let preemptions = |c: &Client| c.summary().timings.preemptions;
        assert!(clients.iter().map(preemptions).sum::<u32>() > 0, "this test must preempt");
        let forked = clients.iter().filter(|c| !c.tokens(1).is_empty());
        assert!(forked.map(preemptions).sum::<u32>() > 0, "forks too");
        assert_eq!(answers(&clients), want, "{}", model.quantization);
    }
}

#[test]
fn at_real_widths_too() {
    for (hidden, inner, tied) in [(64, 172, false), (2048, 5632, true)] {
        let folder = tempfile::tempdir().unwrap();
        write_random(folder.path(), hidden, inner, tied);
        for quantization in Quantization::ALL {
            let model = load_as(folder.path(), quantization);
            let requests = requests(&model, 7, 30, 6);
            let want = alone(&model, &requests);
            let got = answers(&run(&model, ROOMY, &requests));
            assert_eq!(got, want, "batched at {hidden} in {quantization}");
            let chunks = EngineConfig { max_num_batched_tokens: 9, max_num_seqs: 7, ..ROOMY };
            let got = answers(&run(&model, chunks, &requests));
            assert_eq!(got, want, "chunked at {hidden} in {quantization}");
            let tokens = want.into_iter().flat_map(|answer| answer.choices.concat());
            let drawn: std::collections::HashSet<u32> = tokens.map(|token| token.id).collect();
            assert!(drawn.len() > 10, "random weights should not always say the same: {drawn:?}");
        }
    }
}

#[test]
fn seeds_matter_and_repeat() {
    let model = stories();
    let seeded = |seed| request(&[1], Sampling { seed, ..Sampling::default() }, 30);
    let ids = ids(&run(&model, ROOMY, &[seeded(1), seeded(2), seeded(1)]));
    assert_eq!(ids[0], ids[2]);
    assert_ne!(ids[0], ids[1]);
}

#[test]
fn a_client_that_leaves_frees_its_blocks_before_the_next_step() {
    let model = stories();
    let mut engine = Engine::new(model, ROOMY);
    let (stays, leaves) = (Client::default(), Client::default());
    for (client, token) in [(&stays, 1), (&leaves, 2)] {
        let long = request(&[token; 40], Sampling::greedy(), 100);
        engine.submit(long, Box::new(client.clone())).unwrap();
    }
    engine.step();
    engine.step();
    assert_eq!(engine.load().running, 2);
    let held = engine.load().total_blocks - engine.load().free_blocks;
    leaves.leave();
    engine.step();
    assert_eq!(engine.load().running, 1);
    assert_eq!(engine.load().total_blocks - engine.load().free_blocks, held / 2);
    assert_eq!(leaves.ids().len(), 2, "not one token more");
    while engine.step() {}
    assert_eq!(stays.ids().len(), 100);
    assert_eq!(engine.load().free_blocks, engine.load().total_blocks);
}

#[test]
fn the_end_of_the_context_is_a_limit() {
    let model = stories();
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
    fn whatever_the_limits(
        max_num_seqs in 3usize..9,
        extra in 0usize..40,
        kv_blocks in 12usize..40,
        count in 1usize..9,
        max_decode_slowdown in prop_oneof![Just(1.0), Just(2.0), Just(f64::INFINITY)],
    ) {
        let model = stories();
        let requests = requests(&model, count, 60, 24);
        let config = EngineConfig {
            max_num_seqs,
            max_num_batched_tokens: max_num_seqs + extra,
            kv_blocks,
            max_decode_slowdown,
            ..ROOMY
        };
        let got = answers(&run(&model, config, &requests));
        prop_assert_eq!(got, answers(&run(&model, ROOMY, &requests)));
    }
}

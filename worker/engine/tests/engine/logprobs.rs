//! Log probabilities compared with a softmax of the logits computed by the test.

use stoker_engine::{
    EngineConfig, Logprobs, Model, Request, Sampling, TokenLogprob,
    kv_cache::BlockPool,
    request::PROMPT_LOGPROBS_CHUNK,
    runner::{BatchEntry, Runner},
};
use stoker_ops::KV_BLOCK;

use crate::support::{ROOMY, bundled_model, request, run};

/// The model's logits after each of `tokens`.
fn logits(model: &Model, tokens: &[u32]) -> Vec<Vec<f32>> {
    let blocks = tokens.len().div_ceil(KV_BLOCK);
    let table = BlockPool::new(blocks as u32).allocate(blocks).unwrap();
    let entry =
        BatchEntry { ids: tokens, start: 0, table: &table, logits: tokens.len(), draws: &[] };
    let logits = Runner::new(model.clone(), blocks).run(&[entry]);
    logits.logits().map(<[f32]>::to_vec).collect()
}

/// Asserts that `got` has the log softmax of `row` for `id` and for the `top` most likely tokens.
fn assert_matches(got: &TokenLogprob, row: &[f32], id: u32, top: usize) {
    let total: f64 = row.iter().map(|l| f64::from(*l).exp()).sum();
    let want = |id: u32| f64::from(row[id as usize]) - total.ln();
    let mut order: Vec<u32> = (0..row.len() as u32).collect();
    order.sort_by(|a, b| row[*b as usize].total_cmp(&row[*a as usize]));
    assert_eq!(got.id, id);
    assert_eq!(got.top.iter().map(|(id, _)| *id).collect::<Vec<_>>(), order[..top]);
    for (id, logprob) in got.top.iter().copied().chain([(id, got.logprob)]) {
        assert!((f64::from(logprob) - want(id)).abs() < 1e-5, "{id}: {logprob}, {}", want(id));
    }
}

#[test]
fn prompt_and_output_follow_the_softmax_of_the_logits() {
    let model = bundled_model();
    let prompt = model.tokenizer.encode("Once upon a time there was a small grey cat", true);
    let prompt = prompt.unwrap();
    let wanted = Logprobs { output: true, prompt: true, top: 5 };
    let sampling = Sampling { temperature: 0.7, top_p: 0.9, seed: 3, ..Sampling::default() };
    let client =
        &run(&model, ROOMY, &[Request { logprobs: wanted, ..request(&prompt, sampling, 12) }])[0];

    let all = [prompt.clone(), client.ids()].concat();
    let rows = logits(&model, &all);
    let reported = client.prompt_logprobs().concat();
    let drawn = client.tokens(0).into_iter().map(|token| token.logprob.unwrap());
    let reported: Vec<_> = reported.into_iter().chain(drawn).collect();
    assert_eq!(reported.len(), all.len() - 1);
    for ((got, row), id) in reported.iter().zip(&rows).zip(&all[1..]) {
        assert_matches(got, row, *id, 5);
    }
}

#[test]
fn logprobs_of_a_long_prompt_are_split_independently_of_prefill_chunks() {
    let model = bundled_model();
    let prompt: Vec<u32> = (0..600).map(|i| 3 + (i * 7) % 90).collect();
    let wanted = Logprobs { output: false, prompt: true, top: 1 };
    let request = Request { logprobs: wanted, ..request(&prompt, Sampling::greedy(), 3) };
    let whole = run(&model, ROOMY, std::slice::from_ref(&request)).remove(0);
    let lengths: Vec<_> = whole.prompt_logprobs().iter().map(Vec::len).collect();
    assert_eq!(
        lengths,
        [PROMPT_LOGPROBS_CHUNK, PROMPT_LOGPROBS_CHUNK, 599 - 2 * PROMPT_LOGPROBS_CHUNK]
    );
    assert!(whole.tokens(0).iter().all(|token| token.logprob.is_none()), "not requested");
    for max_num_batched_tokens in [7, 100] {
        let config = EngineConfig { max_num_batched_tokens, max_num_seqs: 2, ..ROOMY };
        let chunked = run(&model, config, std::slice::from_ref(&request)).remove(0);
        assert_eq!(chunked.events()[..3], whole.events()[..3], "{max_num_batched_tokens} a step");
    }
}

#[test]
fn a_prompt_of_one_token_has_an_empty_list_of_logprobs() {
    let wanted = Logprobs { output: false, prompt: true, top: 0 };
    let request = Request { logprobs: wanted, ..request(&[1], Sampling::greedy(), 1) };
    let client = &run(&bundled_model(), ROOMY, &[request])[0];
    assert_eq!(client.prompt_logprobs(), [vec![]]);
}

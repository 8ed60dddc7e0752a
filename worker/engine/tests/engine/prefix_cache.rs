//! The prefix cache changes latency and no output.

use stoker_engine::{Engine, EngineConfig, Model, Request, Sampling, Scope, model::Quantization};
use stoker_ops::KV_BLOCK;

use crate::{
    exactness::{outputs, requests},
    resuming,
    support::{
        Client, ROOMY, bundled_model, bundled_models, load_as, request, run, run_on, with_choices,
        write_random,
    },
};

fn cached(client: &Client) -> usize {
    client.summary().cached_prompt_tokens
}

/// Number of prompt tokens that are reused if the whole prompt is cached.
fn whole_blocks(request: &Request) -> usize {
    // Log probabilities of a prompt need its prefill.
    if request.logprobs.prompt { 0 } else { (request.prompt.len() - 1) / KV_BLOCK * KV_BLOCK }
}

/// The first `count` tokens of text number `which`.
fn text(which: u32, count: usize) -> Vec<u32> {
    (0..count as u32).map(|i| (which * 131 + i * 17 + 3) % 500).collect()
}

fn greedy(prompt: &[u32]) -> Request {
    request(prompt, Sampling::greedy(), 8)
}

fn cold_equals_warm(model: &Model, requests: &[Request], what: &str) {
    let mut engine = Engine::new(model.clone(), ROOMY);
    let cold = run_on(&mut engine, requests);
    assert!(
        cold.iter().all(|client| cached(client) == 0),
        "{what}: prompts must not share prefixes"
    );
    for _ in 0..2 {
        let warm = run_on(&mut engine, requests);
        assert_eq!(outputs(&warm), outputs(&cold), "{what}");
        for (client, request) in warm.iter().zip(requests) {
            assert_eq!(cached(client), whole_blocks(request), "{what}");
        }
    }
    // Runs them one by one, so that batch sizes differ.
    for (request, cold) in requests.iter().zip(&cold) {
        let warm = run_on(&mut engine, std::slice::from_ref(request));
        assert_eq!(outputs(&warm), outputs(std::slice::from_ref(cold)), "{what}");
    }
}

#[test]
fn warm_equals_cold() {
    for model in bundled_models() {
        let requests = requests(&model, 24, 90, 40);
        cold_equals_warm(&model, &requests, model.quantization.name());
    }
}

#[test]
fn warm_equals_cold_at_real_widths() {
    let folder = tempfile::tempdir().unwrap();
    write_random(folder.path(), 2048, 5632, true);
    for quantization in Quantization::ALL {
        let model = load_as(folder.path(), quantization);
        cold_equals_warm(&model, &requests(&model, 7, 60, 6), quantization.name());
    }
}

#[test]
fn warm_equals_cold_with_evictions_and_preemptions() {
    for model in bundled_models() {
        // Four texts with a few lengths of each, so that many share prefixes.
        let requests: Vec<_> = (0..16)
            .map(|i| {
                let sampling = Sampling { seed: u64::from(i), ..Sampling::default() };
                let prompt = text(i % 4, 20 + 9 * i as usize);
                with_choices(1 + i % 3, request(&prompt, sampling, 30))
            })
            .collect();
        let alone: Vec<_> = requests
            .iter()
            .map(|one| outputs(&run(&model, ROOMY, std::slice::from_ref(one))).remove(0))
            .collect();
        for (kv_blocks, max_num_batched_tokens) in [(14, 64), (24, 12), (40, 200)] {
            let config =
                EngineConfig { kv_blocks, max_num_batched_tokens, max_num_seqs: 12, ..ROOMY };
            let mut engine = Engine::new(model.clone(), config);
            let mut found = 0;
            for _ in 0..3 {
                let clients = run_on(&mut engine, &requests);
                assert_eq!(outputs(&clients), alone, "{} in {kv_blocks}", model.quantization);
                found += clients.iter().map(cached).sum::<usize>();
            }
            assert!(found > 0, "this test needs cache hits with {kv_blocks} blocks");
            assert!(
                engine.load().preemptions > 0 || kv_blocks == 40,
                "this test needs preemptions"
            );
            assert!(engine.load().prefix_tokens_found < engine.load().prefix_tokens);
        }
    }
}

#[test]
fn a_response_resumes_alike_with_a_cached_prompt() {
    for model in bundled_models() {
        for request in resuming::requests() {
            let prompt = [text(1, 40).as_slice(), &request.prompt].concat();
            let request = Request { prompt: prompt.into(), ..request };
            let mut engine = Engine::new(model.clone(), ROOMY);
            let whole = run_on(&mut engine, std::slice::from_ref(&request))[0].events();
            let choices = request.num_sequences.get();
            assert!(whole.len() > 5, "{request:?} ends too early to be cut");
            for cut in (3..whole.len()).step_by(7) {
                let (before, _) = whole.split_at(cut);
                let resumed = resuming::resume_states(before, choices);
                let client = &run_on(&mut engine, &[Request { resumed, ..request.clone() }])[0];
                let joined: Vec<_> = before.iter().cloned().chain(client.events()).collect();
                assert_eq!(
                    resuming::comparable(&joined),
                    resuming::comparable(&whole),
                    "cut at {cut}"
                );
                if choices > 1 {
                    continue;
                }
                // Whole blocks of all tokens but the last. No lookup takes place if nothing remains
                // to be computed.
                let prompt = request.prompt.len();
                let has = prompt + resuming::resume_states(before, 1)[0].tokens.len();
                let whole = ((has - 1) / KV_BLOCK * KV_BLOCK).min(prompt);
                let continues = !client.ids().is_empty();
                assert_eq!(cached(client), if continues { whole } else { 0 }, "cut at {cut}");
            }
        }
    }
}

#[test]
fn the_next_turn_of_a_conversation_reuses_completions_too() {
    let mut engine = Engine::new(bundled_model(), ROOMY);
    let mut conversation = text(0, 21);
    let mut known = 0;
    for turn in 0..4 {
        let client =
            run_on(&mut engine, &[request(&conversation, Sampling::greedy(), 30)]).remove(0);
        assert_eq!(cached(&client), known / KV_BLOCK * KV_BLOCK, "turn {turn}");
        conversation.extend(client.ids());
        // The last token was sampled and has no KV entry yet.
        known = conversation.len() - 1;
        conversation.extend(text(5 + turn, 3));
        let load = engine.load();
        assert_eq!(load.cached_blocks, known / KV_BLOCK, "no block is cached twice");
        assert_eq!(load.free_blocks, load.total_blocks);
    }
}

#[test]
fn a_prompt_is_reused_up_to_its_last_whole_block_without_its_last_token() {
    let mut engine = Engine::new(bundled_model(), ROOMY);
    assert_eq!(cached(&run_on(&mut engine, &[greedy(&text(0, 200))])[0]), 0);
    for (length, found) in [(1, 0), (16, 0), (17, 16), (32, 16), (33, 32), (200, 192)] {
        assert_eq!(cached(&run_on(&mut engine, &[greedy(&text(0, length))])[0]), found, "{length}");
    }
    let load = engine.load();
    assert_eq!(
        (load.prefix_tokens, load.prefix_tokens_found),
        (200 + 16 + 17 + 32 + 33 + 200, 256)
    );
}

#[test]
fn tenants_and_salts_do_not_see_each_others_blocks() {
    let mut engine = Engine::new(bundled_model(), ROOMY);
    let scopes = [("", ""), ("a", ""), ("", "a"), ("a", "b"), ("ab", "")];
    for found in [0, 48] {
        for (tenant, salt) in scopes {
            let request = Request { scope: Scope::shared(tenant, salt), ..greedy(&text(0, 50)) };
            let client = &run_on(&mut engine, &[request])[0];
            assert_eq!(cached(client), found, "{tenant:?} {salt:?}");
        }
    }
}

#[test]
fn requests_that_bypass_the_cache_fill_it_for_others() {
    let mut engine = Engine::new(bundled_model(), ROOMY);
    let plain = greedy(&text(0, 50));
    let bypassing = Request { bypass_prefix_cache: true, ..plain.clone() };
    let want = outputs(&run_on(&mut engine, std::slice::from_ref(&bypassing)));
    for (request, found) in [(&plain, 48), (&bypassing, 0), (&plain, 48)] {
        let clients = run_on(&mut engine, std::slice::from_ref(request));
        assert_eq!((outputs(&clients), cached(&clients[0])), (want.clone(), found));
    }
    assert_eq!(engine.load().prefix_tokens, 100, "without a lookup, no tokens are counted");
}

#[test]
fn without_a_prefix_cache_nothing_is_reused() {
    let mut engine = Engine::new(bundled_model(), EngineConfig { prefix_cache: false, ..ROOMY });
    for _ in 0..2 {
        assert_eq!(cached(&run_on(&mut engine, &[greedy(&text(0, 50))])[0]), 0);
    }
    assert_eq!((engine.load().prefix_tokens, engine.load().prefix_tokens_found), (0, 0));
}

#[test]
fn concurrent_requests_compute_a_shared_prefix_once() {
    let model = bundled_model();
    let requests: Vec<_> = (0..6)
        .map(|i| {
            let prompt = [text(0, 100), text(1 + i, 5)].concat();
            request(&prompt, Sampling { seed: u64::from(i), ..Sampling::default() }, 12)
        })
        .collect();
    let alone: Vec<_> = requests
        .iter()
        .map(|one| outputs(&run(&model, ROOMY, std::slice::from_ref(one))).remove(0))
        .collect();
    let together = run(&model, ROOMY, &requests);
    assert_eq!(outputs(&together), alone);
    let found: Vec<_> = together.iter().map(cached).collect();
    assert_eq!(found, [0, 96, 96, 96, 96, 96]);
}

#[test]
fn blocks_of_a_disconnected_client_stay_cached() {
    let config = EngineConfig { max_num_batched_tokens: 64, ..ROOMY };
    let mut engine = Engine::new(bundled_model(), config);
    let client = Client::default();
    engine.submit(greedy(&text(0, 200)), Box::new(client.clone())).unwrap();
    assert!(engine.step());
    client.disconnect();
    assert!(!engine.step());
    assert_eq!(cached(&run_on(&mut engine, &[greedy(&text(0, 200))])[0]), 64);
}

//! What is in the cache changes when an answer comes, and nothing of it.

use stoker_engine::{Engine, EngineConfig, Model, Request, Sampling, Scope, model::Quantization};
use stoker_ops::KV_BLOCK;

use crate::{
    exactness::{answers, requests},
    resuming,
    support::{
        Client, ROOMY, load_as, request, run, run_on, several, stories, stories_in_all,
        write_random,
    },
};

fn cached(client: &Client) -> usize {
    client.summary().cached_prompt_tokens
}

/// What the cache has of a prompt that it has seen all of.
fn whole_blocks(request: &Request) -> usize {
    // Log probabilities of a prompt come from computing it.
    if request.logprobs.prompt { 0 } else { (request.prompt.len() - 1) / KV_BLOCK * KV_BLOCK }
}

/// `count` tokens of a text, one of several.
fn text(which: u32, count: usize) -> Vec<u32> {
    (0..count as u32).map(|i| (which * 131 + i * 17 + 3) % 500).collect()
}

fn greedy(prompt: &[u32]) -> Request {
    request(prompt, Sampling::greedy(), 8)
}

fn cold_equals_warm(model: &Model, requests: &[Request], what: &str) {
    let mut engine = Engine::new(model.clone(), ROOMY);
    let cold = run_on(&mut engine, requests);
    assert!(cold.iter().all(|client| cached(client) == 0), "{what}: no two begin alike");
    for _ in 0..2 {
        let warm = run_on(&mut engine, requests);
        assert_eq!(answers(&warm), answers(&cold), "{what}");
        for (client, request) in warm.iter().zip(requests) {
            assert_eq!(cached(client), whole_blocks(request), "{what}");
        }
    }
    // One by one, so that steps have other sizes.
    for (request, cold) in requests.iter().zip(&cold) {
        let warm = run_on(&mut engine, std::slice::from_ref(request));
        assert_eq!(answers(&warm), answers(std::slice::from_ref(cold)), "{what}");
    }
}

#[test]
fn warm_equals_cold() {
    for model in stories_in_all() {
        let requests = requests(&model, 24, 90, 40);
        cold_equals_warm(&model, &requests, model.quantization.name());
    }
}

#[test]
fn at_real_widths_too() {
    let folder = tempfile::tempdir().unwrap();
    write_random(folder.path(), 2048, 5632, true);
    for quantization in Quantization::ALL {
        let model = load_as(folder.path(), quantization);
        cold_equals_warm(&model, &requests(&model, 7, 60, 6), quantization.name());
    }
}

#[test]
fn warm_equals_cold_where_blocks_are_forgotten_and_sequences_preempted() {
    for model in stories_in_all() {
        // Four texts, of each a few lengths, so that many begin alike.
        let requests: Vec<_> = (0..16)
            .map(|i| {
                let sampling = Sampling { seed: u64::from(i), ..Sampling::default() };
                let prompt = text(i % 4, 20 + 9 * i as usize);
                several(1 + i % 3, request(&prompt, sampling, 30))
            })
            .collect();
        let alone: Vec<_> = requests
            .iter()
            .map(|one| answers(&run(&model, ROOMY, std::slice::from_ref(one))).remove(0))
            .collect();
        for (kv_blocks, max_num_batched_tokens) in [(14, 64), (24, 12), (40, 200)] {
            let config =
                EngineConfig { kv_blocks, max_num_batched_tokens, max_num_seqs: 12, ..ROOMY };
            let mut engine = Engine::new(model.clone(), config);
            let mut found = 0;
            for _ in 0..3 {
                let clients = run_on(&mut engine, &requests);
                assert_eq!(answers(&clients), alone, "{} in {kv_blocks}", model.quantization);
                found += clients.iter().map(cached).sum::<usize>();
            }
            assert!(found > 0, "this test must find something in {kv_blocks}");
            assert!(engine.load().preemptions > 0 || kv_blocks == 40, "and preempt");
            assert!(engine.load().prefix_tokens_found < engine.load().prefix_tokens);
        }
    }
}

#[test]
fn an_answer_goes_on_alike_where_its_prompt_is_known() {
    for model in stories_in_all() {
        for request in resuming::requests() {
            let prompt = [text(1, 40).as_slice(), &request.prompt].concat();
            let request = Request { prompt: prompt.into(), ..request };
            let mut engine = Engine::new(model.clone(), ROOMY);
            let whole = run_on(&mut engine, std::slice::from_ref(&request))[0].events();
            let choices = request.num_sequences.get();
            assert!(whole.len() > 5, "{request:?} ends too early to be cut");
            for cut in (3..whole.len()).step_by(7) {
                let (before, _) = whole.split_at(cut);
                let resumed = resuming::had(before, choices);
                let client = &run_on(&mut engine, &[Request { resumed, ..request.clone() }])[0];
                let joined: Vec<_> = before.iter().cloned().chain(client.events()).collect();
                assert_eq!(resuming::told(&joined), resuming::told(&whole), "cut at {cut}");
                if choices > 1 {
                    continue;
                }
                // Whole blocks of what there is, but for its last token. Nothing is looked for where nothing is left to
                // compute.
                let prompt = request.prompt.len();
                let has = prompt + resuming::had(before, 1)[0].tokens.len();
                let whole = ((has - 1) / KV_BLOCK * KV_BLOCK).min(prompt);
                let goes_on = !client.ids().is_empty();
                assert_eq!(cached(client), if goes_on { whole } else { 0 }, "cut at {cut}");
            }
        }
    }
}

#[test]
fn the_next_turn_finds_the_answer_too() {
    let mut engine = Engine::new(stories(), ROOMY);
    let mut conversation = text(0, 21);
    let mut known = 0;
    for turn in 0..4 {
        let client =
            run_on(&mut engine, &[request(&conversation, Sampling::greedy(), 30)]).remove(0);
        assert_eq!(cached(&client), known / KV_BLOCK * KV_BLOCK, "turn {turn}");
        conversation.extend(client.ids());
        // The last token is drawn, not computed.
        known = conversation.len() - 1;
        conversation.extend(text(5 + turn, 3));
        let load = engine.load();
        assert_eq!(load.cached_blocks, known / KV_BLOCK, "nothing is there twice");
        assert_eq!(load.free_blocks, load.total_blocks);
    }
}

#[test]
fn a_prompt_is_found_up_to_its_last_whole_block_and_not_its_last_token() {
    let mut engine = Engine::new(stories(), ROOMY);
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
    let mut engine = Engine::new(stories(), ROOMY);
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
fn who_does_not_read_the_cache_fills_it_for_others() {
    let mut engine = Engine::new(stories(), ROOMY);
    let plain = greedy(&text(0, 50));
    let bypassing = Request { bypass_prefix_cache: true, ..plain.clone() };
    let want = answers(&run_on(&mut engine, std::slice::from_ref(&bypassing)));
    for (request, found) in [(&plain, 48), (&bypassing, 0), (&plain, 48)] {
        let clients = run_on(&mut engine, std::slice::from_ref(request));
        assert_eq!((answers(&clients), cached(&clients[0])), (want.clone(), found));
    }
    assert_eq!(engine.load().prefix_tokens, 100, "where nothing is looked for, nothing is counted");
}

#[test]
fn without_a_cache_nothing_is_found() {
    let mut engine = Engine::new(stories(), EngineConfig { prefix_cache: false, ..ROOMY });
    for _ in 0..2 {
        assert_eq!(cached(&run_on(&mut engine, &[greedy(&text(0, 50))])[0]), 0);
    }
    assert_eq!((engine.load().prefix_tokens, engine.load().prefix_tokens_found), (0, 0));
}

#[test]
fn of_those_that_come_together_one_computes_what_all_share() {
    let model = stories();
    let requests: Vec<_> = (0..6)
        .map(|i| {
            let prompt = [text(0, 100), text(1 + i, 5)].concat();
            request(&prompt, Sampling { seed: u64::from(i), ..Sampling::default() }, 12)
        })
        .collect();
    let alone: Vec<_> = requests
        .iter()
        .map(|one| answers(&run(&model, ROOMY, std::slice::from_ref(one))).remove(0))
        .collect();
    let together = run(&model, ROOMY, &requests);
    assert_eq!(answers(&together), alone);
    let found: Vec<_> = together.iter().map(cached).collect();
    assert_eq!(found, [0, 96, 96, 96, 96, 96]);
}

#[test]
fn whose_client_leaves_has_kept_what_is_computed() {
    let config = EngineConfig { max_num_batched_tokens: 64, ..ROOMY };
    let mut engine = Engine::new(stories(), config);
    let client = Client::default();
    engine.submit(greedy(&text(0, 200)), Box::new(client.clone())).unwrap();
    assert!(engine.step());
    client.leave();
    assert!(!engine.step());
    assert_eq!(cached(&run_on(&mut engine, &[greedy(&text(0, 200))])[0]), 64);
}

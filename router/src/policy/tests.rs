#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeSet;

use bytesize::ByteSize;
use stoker_proto::v1::{Capacity, Load, ResponseOptions, generate_request::Input};

use super::*;
use crate::pool::{
    reservation::Reservation,
    worker::tests::{of_capacity, worker},
};

fn chooser(policy: Policy) -> Chooser {
    Chooser::new(&BalancingConfig { policy, ..Default::default() }, 1)
}

fn model(count: usize) -> Model {
    of((0..count).map(|i| worker(&i.to_string(), "m", "d")))
}

fn of(workers: impl IntoIterator<Item = Arc<Worker>>) -> Model {
    let mut model = Model::new("m");
    workers.into_iter().for_each(|worker| model.add(&worker));
    model
}

fn request(prompt: &str) -> GenerateRequest {
    GenerateRequest { input: Some(Input::Prompt(prompt.into())), ..Default::default() }
}

/// A prompt of `bytes` bytes, distinct for each `name`.
fn long_prompt(name: char, bytes: usize) -> GenerateRequest {
    request(&name.to_string().repeat(bytes))
}

fn choose(chooser: &Chooser, model: &Model, request: &GenerateRequest) -> Selection {
    chooser.choose(model, request, &Criteria::default()).unwrap()
}

/// Tokens expected in the worker's cache because this router sent them.
fn local_tokens(selection: &Selection) -> u64 {
    if selection.source == Source::Local { selection.expected } else { 0 }
}

fn reserve(selection: &Selection) -> Reservation {
    let RequestCost { prompt, completions } = selection.cost.clone();
    Reservation::new(&selection.worker, prompt - selection.saved, completions)
}

#[tokio::test]
async fn the_least_loaded_of_a_few_is_selected_every_time() {
    for policy in [Policy::PrefixAffinity, Policy::LeastTokens] {
        let (model, chooser) = (model(3), chooser(policy));
        let _busy = [0, 2].map(|i| Reservation::new(&model.live()[i], 10, vec![10]));
        for _ in 0..100 {
            assert_eq!(choose(&chooser, &model, &request("world")).worker.id.as_str(), "1");
        }
    }
}

#[tokio::test]
async fn load_reports_show_what_other_routers_sent() {
    let (model, chooser) = (model(2), chooser(Policy::PrefixAffinity));
    let load = Load { waiting: 1, queued_tokens: 9_000, ..Default::default() };
    model.live()[0].set_load(load);
    for _ in 0..10 {
        assert_eq!(choose(&chooser, &model, &request("world")).worker.id.as_str(), "1");
    }
}

#[tokio::test]
async fn a_thousand_workers_are_loaded_evenly() {
    // 20 each on average. Uniform random selection would put about 35 on the most loaded worker.
    for (policy, limit) in
        [(Policy::PrefixAffinity, 23), (Policy::LeastTokens, 23), (Policy::RoundRobin, 20)]
    {
        let (model, chooser) = (model(1_000), chooser(policy));
        let held: Vec<_> =
            (0..20_000).map(|_| reserve(&choose(&chooser, &model, &request("")))).collect();
        let streams = || model.live().iter().map(|w| w.outstanding.streams());
        let max = streams().max().unwrap();
        assert!(max <= limit, "{policy:?}: {max}");
        drop(held);
        assert_eq!(streams().sum::<u64>(), 0);
    }
}

#[tokio::test]
async fn round_robin_and_random_reach_every_worker() {
    for policy in [Policy::RoundRobin, Policy::Random] {
        let chooser = chooser(policy);
        let mut other = Model::new("n");
        (0..2).for_each(|i| other.add(&worker(&i.to_string(), "n", "d")));
        let models = [model(4), other];
        // Each model has a round-robin counter of its own.
        let mut selected: Vec<_> = Vec::new();
        for _ in 0..40 {
            selected
                .extend(models.iter().map(|m| choose(&chooser, m, &request("")).worker.serial.0));
        }
        assert_eq!(selected.iter().collect::<BTreeSet<_>>().len(), 6, "{policy:?}");
    }
}

#[tokio::test]
async fn a_prompt_goes_where_its_prefix_is_even_if_other_workers_are_idle() {
    let (model, chooser) = (model(16), chooser(Policy::PrefixAffinity));
    let first = choose(&chooser, &model, &long_prompt('a', 40_000));
    assert_eq!((local_tokens(&first), first.saved), (0, 0));
    let _busy = Reservation::new(&first.worker, 2_000, vec![]);
    for tail in ["", "and more"] {
        let Some(Input::Prompt(head)) = long_prompt('a', 40_000).input else { unreachable!() };
        let again = choose(&chooser, &model, &request(&(head + tail)));
        assert_eq!(again.worker.id, first.worker.id);
        assert!((9_600..=10_000).contains(&local_tokens(&again)), "{} of 10,000", again.expected);
        assert_eq!(again.saved, again.expected, "the initial hit rate is 1");
    }
    // This prompt was sent to no worker.
    assert_eq!(local_tokens(&choose(&chooser, &model, &long_prompt('b', 40_000))), 0);
}

#[tokio::test]
async fn other_policies_and_requests_that_bypass_the_cache_ignore_prefixes() {
    let plain = || long_prompt('a', 40_000);
    let bypassing = GenerateRequest { bypass_prefix_cache: true, ..plain() };
    let response = ResponseOptions { prompt_logprobs: true, ..Default::default() };
    let prompt_logprobs = GenerateRequest { response: Some(response), ..plain() };
    for (policy, request) in [
        (Policy::PrefixAffinity, bypassing),
        (Policy::PrefixAffinity, prompt_logprobs),
        (Policy::LeastTokens, plain()),
    ] {
        let (model, chooser) = (model(8), chooser(policy));
        let first = choose(&chooser, &model, &request);
        let _busy = Reservation::new(&first.worker, 100, vec![]);
        let second = choose(&chooser, &model, &request);
        assert_ne!(second.worker.id, first.worker.id);
        assert_eq!((local_tokens(&second), second.saved), (0, 0));
    }
}

#[tokio::test]
async fn a_prompt_that_bypasses_the_cache_is_recorded_for_later_requests() {
    let (model, chooser) = (model(8), chooser(Policy::PrefixAffinity));
    let bypassing = GenerateRequest { bypass_prefix_cache: true, ..long_prompt('a', 40_000) };
    let first = choose(&chooser, &model, &bypassing);
    let again = choose(&chooser, &model, &long_prompt('a', 40_000));
    assert_eq!(again.worker.id, first.worker.id);
    assert!(local_tokens(&again) > 9_000);
}

#[tokio::test]
async fn a_prefix_that_all_requests_share_creates_no_hot_spot() {
    let (model, chooser) = (model(8), chooser(Policy::PrefixAffinity));
    let held: Vec<_> =
        (0..400).map(|_| reserve(&choose(&chooser, &model, &long_prompt('a', 80_000)))).collect();
    let tokens: Vec<_> = model.live().iter().map(|w| w.outstanding.tokens()).collect();
    let mean = tokens.iter().sum::<u64>() / 8;
    assert!(tokens.iter().all(|t| *t < 2 * mean), "{tokens:?}");
    assert_eq!(held.len(), 400);
}

#[tokio::test]
async fn a_worker_whose_cache_never_hits_loses_its_preference() {
    let (model, chooser) = (model(4), chooser(Policy::PrefixAffinity));
    let first = choose(&chooser, &model, &long_prompt('a', 40_000));
    let _busy = Reservation::new(&first.worker, 1_000, vec![]);
    let mut attempts = 0;
    loop {
        let again = choose(&chooser, &model, &long_prompt('a', 40_000));
        if again.worker.id != first.worker.id {
            break;
        }
        attempts += 1;
        assert!(attempts < 40, "the hit rate still counts");
        again.worker.prefix_hit_rate.observe(0.0, 1.0 / 8.0);
    }
    assert!(attempts > 3, "the hit rate counted for {attempts} responses only");
}

#[tokio::test]
async fn a_cache_filled_by_later_tokens_has_evicted_the_prefix() {
    let capacity = Capacity { kv_blocks: 1_000, kv_block_size: 16, ..Default::default() };
    let model = of([of_capacity("a", capacity), of_capacity("b", capacity)]);
    let chooser = chooser(Policy::PrefixAffinity);
    let first = choose(&chooser, &model, &long_prompt('a', 40_000));
    drop(reserve(&first));
    assert!(local_tokens(&choose(&chooser, &model, &long_prompt('a', 40_000))) > 9_000);
    // That look-up counts as a use. Now other requests fill the 16,000 tokens.
    drop(Reservation::new(&first.worker, 16_100, vec![]));
    assert_eq!(local_tokens(&choose(&chooser, &model, &long_prompt('a', 40_000))), 0);
}

#[tokio::test]
async fn a_worker_that_failed_the_call_is_avoided_even_if_it_has_the_prefix() {
    let (model, chooser) = (model(30), chooser(Policy::PrefixAffinity));
    let first = choose(&chooser, &model, &long_prompt('a', 40_000));
    let tried = [first.worker.instance.clone()];
    let criteria = Criteria { tried: &tried, ..Criteria::default() };
    for _ in 0..20 {
        let again = chooser.choose(&model, &long_prompt('a', 40_000), &criteria).unwrap();
        assert_ne!(again.worker.id, first.worker.id);
    }
    let criteria = Criteria { digest: Some("other"), ..Criteria::default() };
    assert!(chooser.choose(&model, &long_prompt('a', 40_000), &criteria).is_none());
}

#[tokio::test]
async fn a_reconnected_worker_is_assumed_to_have_an_empty_cache() {
    let chooser = chooser(Policy::PrefixAffinity);
    choose(&chooser, &model(1), &long_prompt('a', 40_000));
    assert_eq!(local_tokens(&choose(&chooser, &model(1), &long_prompt('a', 40_000))), 0);
}

#[tokio::test]
async fn without_memory_no_prefix_is_known() {
    let config = BalancingConfig { affinity_memory: ByteSize::b(0), ..Default::default() };
    let (chooser, model) = (Chooser::new(&config, 1), model(4));
    for _ in 0..3 {
        assert_eq!(local_tokens(&choose(&chooser, &model, &long_prompt('a', 40_000))), 0);
    }
}

#[tokio::test]
async fn routers_agree_on_the_owner_of_a_prompt_without_communication() {
    // Two routers have separate objects for the same workers.
    let routers = [0, 1].map(|_| (model(16), chooser(Policy::PrefixAffinity)));
    let mut selected = BTreeSet::new();
    for name in 'a'..='p' {
        let [one, other] = routers
            .each_ref()
            .map(|(model, chooser)| choose(chooser, model, &long_prompt(name, 40_000)));
        assert_eq!(one.worker.id, other.worker.id);
        assert_eq!(
            (one.source, one.saved),
            (Source::Remote, 0),
            "expected, but with no savings yet"
        );
        selected.insert(one.worker.id.clone());
    }
    assert!(selected.len() > 6, "{selected:?}");
    // A busy owner is passed over.
    let (model, chooser) = &routers[0];
    let owner = model.live().iter().find(|w| selected.first() == Some(&w.id)).unwrap();
    let _busy = Reservation::new(owner, 20_000, vec![]);
    for name in 'A'..='Z' {
        assert_ne!(choose(chooser, model, &long_prompt(name, 40_000)).worker.id, owner.id);
    }
}

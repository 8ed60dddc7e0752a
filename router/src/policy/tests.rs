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

fn ask(prompt: &str) -> GenerateRequest {
    GenerateRequest { input: Some(Input::Prompt(prompt.into())), ..Default::default() }
}

/// A prompt of that many bytes that nobody else has.
fn long(name: char, bytes: usize) -> GenerateRequest {
    ask(&name.to_string().repeat(bytes))
}

fn choose(chooser: &Chooser, model: &Model, request: &GenerateRequest) -> Selection {
    chooser.choose(model, request, &Criteria::default()).unwrap()
}

/// Tokens that the worker was sent by this router and should have kept.
fn known(choice: &Selection) -> u64 {
    if choice.source == Source::Local { choice.expected } else { 0 }
}

fn reserve(choice: &Selection) -> Reservation {
    let RequestCost { prompt, completions } = choice.cost.clone();
    Reservation::new(&choice.worker, prompt - choice.saved, completions)
}

#[tokio::test]
async fn the_least_busy_of_a_few_is_chosen_every_time() {
    for policy in [Policy::PrefixAffinity, Policy::LeastTokens] {
        let (model, chooser) = (model(3), chooser(policy));
        let _busy = [0, 2].map(|i| Reservation::new(&model.live()[i], 10, vec![10]));
        for _ in 0..100 {
            assert_eq!(choose(&chooser, &model, &ask("hello")).worker.id.as_str(), "1");
        }
    }
}

#[tokio::test]
async fn what_other_routers_sent_is_seen_in_reports() {
    let (model, chooser) = (model(2), chooser(Policy::PrefixAffinity));
    let load = Load { waiting: 1, queued_tokens: 9_000, ..Default::default() };
    model.live()[0].set_load(load);
    for _ in 0..10 {
        assert_eq!(choose(&chooser, &model, &ask("hello")).worker.id.as_str(), "1");
    }
}

#[tokio::test]
async fn a_thousand_workers_are_loaded_evenly() {
    // 20 each on average. One random choice would put about 35 on somebody.
    for (policy, limit) in
        [(Policy::PrefixAffinity, 23), (Policy::LeastTokens, 23), (Policy::RoundRobin, 20)]
    {
        let (model, chooser) = (model(1_000), chooser(policy));
        let held: Vec<_> =
            (0..20_000).map(|_| reserve(&choose(&chooser, &model, &ask("")))).collect();
        let streams = || model.live().iter().map(|w| w.outstanding.streams());
        let most = streams().max().unwrap();
        assert!(most <= limit, "{policy:?}: {most}");
        drop(held);
        assert_eq!(streams().sum::<u64>(), 0);
    }
}

#[tokio::test]
async fn taking_turns_and_chance_leave_nobody_out() {
    for policy in [Policy::RoundRobin, Policy::Random] {
        let chooser = chooser(policy);
        let mut other = Model::new("n");
        (0..2).for_each(|i| other.add(&worker(&i.to_string(), "n", "d")));
        let models = [model(4), other];
        // Two models in turn do not take each other's turns.
        let mut chosen: Vec<_> = Vec::new();
        for _ in 0..40 {
            chosen.extend(models.iter().map(|m| choose(&chooser, m, &ask("")).worker.serial.0));
        }
        assert_eq!(chosen.iter().collect::<BTreeSet<_>>().len(), 6, "{policy:?}");
    }
}

#[tokio::test]
async fn a_known_prefix_goes_where_it_is_even_if_others_are_idle() {
    let (model, chooser) = (model(16), chooser(Policy::PrefixAffinity));
    let first = choose(&chooser, &model, &long('a', 40_000));
    assert_eq!((known(&first), first.saved), (0, 0));
    let _busy = Reservation::new(&first.worker, 2_000, vec![]);
    for tail in ["", "and more"] {
        let Some(Input::Prompt(head)) = long('a', 40_000).input else { unreachable!() };
        let again = choose(&chooser, &model, &ask(&(head + tail)));
        assert_eq!(again.worker.id, first.worker.id);
        assert!((9_600..=10_000).contains(&known(&again)), "{} of 10,000", again.expected);
        assert_eq!(again.saved, again.expected, "a worker is believed until it disappoints");
    }
    // Nobody has seen this one.
    assert_eq!(known(&choose(&chooser, &model, &long('b', 40_000))), 0);
}

#[tokio::test]
async fn other_policies_and_requests_that_do_not_read_the_cache_look_at_no_prefix() {
    let plain = || long('a', 40_000);
    let bypassing = GenerateRequest { bypass_prefix_cache: true, ..plain() };
    let response = ResponseOptions { prompt_logprobs: true, ..Default::default() };
    let told = GenerateRequest { response: Some(response), ..plain() };
    for (policy, request) in [
        (Policy::PrefixAffinity, bypassing),
        (Policy::PrefixAffinity, told),
        (Policy::LeastTokens, plain()),
    ] {
        let (model, chooser) = (model(8), chooser(policy));
        let first = choose(&chooser, &model, &request);
        let _busy = Reservation::new(&first.worker, 100, vec![]);
        let second = choose(&chooser, &model, &request);
        assert_ne!(second.worker.id, first.worker.id);
        assert_eq!((known(&second), second.saved), (0, 0));
    }
}

#[tokio::test]
async fn what_is_computed_for_who_does_not_read_it_is_known_to_others() {
    let (model, chooser) = (model(8), chooser(Policy::PrefixAffinity));
    let bypassing = GenerateRequest { bypass_prefix_cache: true, ..long('a', 40_000) };
    let first = choose(&chooser, &model, &bypassing);
    let again = choose(&chooser, &model, &long('a', 40_000));
    assert_eq!(again.worker.id, first.worker.id);
    assert!(known(&again) > 9_000);
}

#[tokio::test]
async fn a_prefix_that_everybody_has_makes_no_hot_spot() {
    let (model, chooser) = (model(8), chooser(Policy::PrefixAffinity));
    let held: Vec<_> =
        (0..400).map(|_| reserve(&choose(&chooser, &model, &long('a', 80_000)))).collect();
    let tokens: Vec<_> = model.live().iter().map(|w| w.outstanding.tokens()).collect();
    let mean = tokens.iter().sum::<u64>() / 8;
    assert!(tokens.iter().all(|t| *t < 2 * mean), "{tokens:?}");
    assert_eq!(held.len(), 400);
}

#[tokio::test]
async fn a_worker_that_never_keeps_a_prefix_is_no_longer_waited_for() {
    let (model, chooser) = (model(4), chooser(Policy::PrefixAffinity));
    let first = choose(&chooser, &model, &long('a', 40_000));
    let _busy = Reservation::new(&first.worker, 1_000, vec![]);
    let mut asked = 0;
    loop {
        let again = choose(&chooser, &model, &long('a', 40_000));
        if again.worker.id != first.worker.id {
            break;
        }
        asked += 1;
        assert!(asked < 40, "still believed");
        again.worker.prefix_hit_rate.observe(0.0, 1.0 / 8.0);
    }
    assert!(asked > 3, "believed for {asked} answers only");
}

#[tokio::test]
async fn a_cache_that_was_filled_since_has_lost_what_it_had() {
    let capacity = Capacity { kv_blocks: 1_000, kv_block_size: 16, ..Default::default() };
    let model = of([of_capacity("a", capacity), of_capacity("b", capacity)]);
    let chooser = chooser(Policy::PrefixAffinity);
    let first = choose(&chooser, &model, &long('a', 40_000));
    drop(reserve(&first));
    assert!(known(&choose(&chooser, &model, &long('a', 40_000))) > 9_000);
    // That look-up counts as a use. Now others fill the 16,000 tokens.
    drop(Reservation::new(&first.worker, 16_100, vec![]));
    assert_eq!(known(&choose(&chooser, &model, &long('a', 40_000))), 0);
}

#[tokio::test]
async fn a_worker_that_failed_the_call_is_avoided_whatever_it_has() {
    let (model, chooser) = (model(30), chooser(Policy::PrefixAffinity));
    let first = choose(&chooser, &model, &long('a', 40_000));
    let tried = [first.worker.instance.clone()];
    let wanted = Criteria { tried: &tried, ..Criteria::default() };
    for _ in 0..20 {
        let again = chooser.choose(&model, &long('a', 40_000), &wanted).unwrap();
        assert_ne!(again.worker.id, first.worker.id);
    }
    let wanted = Criteria { digest: Some("other"), ..Criteria::default() };
    assert!(chooser.choose(&model, &long('a', 40_000), &wanted).is_none());
}

#[tokio::test]
async fn a_worker_that_came_back_has_lost_its_cache() {
    let chooser = chooser(Policy::PrefixAffinity);
    choose(&chooser, &model(1), &long('a', 40_000));
    assert_eq!(known(&choose(&chooser, &model(1), &long('a', 40_000))), 0);
}

#[tokio::test]
async fn without_memory_no_prefix_is_known() {
    let config = BalancingConfig { affinity_memory: ByteSize::b(0), ..Default::default() };
    let (chooser, model) = (Chooser::new(&config, 1), model(4));
    for _ in 0..3 {
        assert_eq!(known(&choose(&chooser, &model, &long('a', 40_000))), 0);
    }
}

#[tokio::test]
async fn routers_agree_where_to_look_for_a_prompt_without_a_word() {
    // What two routers know of the same workers is not the same object.
    let routers = [0, 1].map(|_| (model(16), chooser(Policy::PrefixAffinity)));
    let mut chosen = BTreeSet::new();
    for name in 'a'..='p' {
        let [one, other] =
            routers.each_ref().map(|(model, chooser)| choose(chooser, model, &long(name, 40_000)));
        assert_eq!(one.worker.id, other.worker.id);
        assert_eq!((one.source, one.saved), (Source::Remote, 0), "hoped for, not counted on");
        chosen.insert(one.worker.id.clone());
    }
    assert!(chosen.len() > 6, "{chosen:?}");
    // But not whatever it costs.
    let (model, chooser) = &routers[0];
    let home = model.live().iter().find(|w| chosen.first() == Some(&w.id)).unwrap();
    let _busy = Reservation::new(home, 20_000, vec![]);
    for name in 'A'..='Z' {
        assert_ne!(choose(chooser, model, &long(name, 40_000)).worker.id, home.id);
    }
}

//! Workers of one model that do not have the same room: for tokens in the KV cache, for sequences in a batch.

use stoker_proto::v1::{
    FinishReason, GenerateRequest, Sampling, Stopping, TokenIds, generate_request::Input,
};
use tokio::task::JoinSet;
use tonic::Code;

use crate::{
    fault_case::FaultCase,
    fleet::{Fleet, addresses, router, wait_mid_stream},
    support::{Completion, Process, complete, inference, read, scrape},
};

/// Tokens of the model's context, and of a KV cache for an eighth of it.
const CONTEXT: usize = 2_048;
const SMALL: usize = 256;

/// A worker whose KV cache has 1 KiB for each token, beside others that are quick.
fn worker(memory: &str, flags: &[&str]) -> Process {
    let profile = format!(r#"step = "2ms", context_length = {CONTEXT}"#);
    let own = ["--simulate", profile.as_str(), "--kv-cache-memory", memory];
    Process::start("stoker-worker", &[&own[..], flags].concat())
}

fn large() -> Process {
    worker("64MiB", &[])
}

fn small() -> Process {
    worker("256KiB", &[])
}

/// A prompt of so many tokens that nothing but its limit ends.
fn sized(prompt: usize, seed: u64, max_tokens: Option<u32>) -> GenerateRequest {
    GenerateRequest {
        input: Some(Input::TokenIds(TokenIds { ids: vec![7; prompt] })),
        sampling: Some(Sampling { seed: Some(seed), ..Sampling::default() }),
        stopping: Some(Stopping { max_tokens, ignore_eos: true, ..Stopping::default() }),
        ..GenerateRequest::default()
    }
}

/// All of `requests` at once.
async fn all(address: &str, requests: Vec<GenerateRequest>) -> Vec<Completion> {
    let mut calls = JoinSet::new();
    for request in requests {
        let mut client = inference(address).await;
        calls.spawn(async move { complete(&mut client, request).await.unwrap() });
    }
    calls.join_all().await
}

fn ends_by_limit(response: &Completion) -> bool {
    response.finished.reason() == FinishReason::Length
        && response.ids.len() == response.accepted.max_tokens as usize
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_one_is_killed_beside_a_small_one() {
    let load = "--requests 12 --concurrency 12 --synthetic 16:900";
    let case =
        FaultCase::new("a worker is killed, and one of two others has too small a KV cache", load)
            .await;
    let mut fleet = Fleet::of(vec![large(), large(), small()]).await;
    let load = case.start(&fleet.router.address);
    let results = load
        .during(async {
            wait_mid_stream(&fleet.workers[0], 4, 50).await;
            drop(fleet.workers.remove(0));
        })
        .await;
    results.assert_unaffected();
    assert!(results.resumed() >= 4, "{:#}", results.json);
    let accepted = results.json["workers"].as_object().unwrap();
    assert!(!accepted.contains_key(&fleet.workers[1].address), "{:#}", results.json);
    fleet.wait_idle().await;
    case.report(&results, None, "kill -9; all continue on the other large one");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_only_the_killed_one_could_hold_ends_with_the_counts() {
    let workers = vec![large(), small()];
    let router = router(&addresses(&workers), &["--resume-timeout", "1s"]);
    let mut fleet = Fleet { workers, router };
    fleet.wait_for_workers().await;
    for limit in [Some(1_500), None] {
        if fleet.workers.len() == 1 {
            fleet.workers.insert(0, large());
            fleet.router =
                crate::fleet::router(&addresses(&fleet.workers), &["--resume-timeout", "1s"]);
            fleet.wait_for_workers().await;
        }
        let mut client = inference(&fleet.router.address).await;
        let stream = client.generate(sized(20, 1, limit)).await.unwrap().into_inner();
        let mut tokens = 0;
        let end = tokio::spawn(async move { (read(stream, || tokens += 1).await, tokens) });
        wait_mid_stream(&fleet.workers[0], 1, 300).await;
        drop(fleet.workers.remove(0));
        let (end, tokens) = end.await.unwrap();
        let status = end.unwrap_err();
        assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
        let needed = 20 + limit.unwrap_or(CONTEXT as u32 - 20);
        for part in [needed.to_string(), SMALL.to_string(), "cut off after".into()] {
            assert!(status.message().contains(&part), "{part} is not in {status:?}");
        }
        assert!(tokens >= 250, "what was made has come: {tokens}");
    }
    fleet.wait_idle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_nothing_killed_no_response_is_cut_and_no_prompt_refused() {
    let fleet = Fleet::of(vec![small(), large(), small()]).await;
    let address = &fleet.router.address;
    // Without a limit: as long as the model's context.
    let free = all(address, (0..8).map(|seed| sized(20, seed, None)).collect()).await;
    for response in &free {
        assert!(ends_by_limit(response));
        assert_eq!(response.ids.len(), CONTEXT - 20);
    }
    // Prompts and limits that the small ones cannot hold, the large one being busy.
    let mut held = Vec::new();
    let mut client = inference(address).await;
    for seed in 0..32 {
        held.push(client.generate(sized(20, seed, Some(1_900))).await.unwrap());
    }
    let long = (0..20).map(|seed| sized(SMALL + 44, seed, Some(10)));
    let limits = (0..20).map(|seed| sized(20, seed, Some(SMALL as u32 + 44)));
    for response in all(address, long.chain(limits).collect()).await {
        assert!(ends_by_limit(&response));
        assert_eq!(response.accepted.worker, fleet.workers[1].address);
    }
    // What they can hold, they get.
    let short = all(address, (0..30).map(|seed| sized(20, seed, Some(30))).collect()).await;
    assert!(short.iter().any(|response| response.accepted.worker != fleet.workers[1].address));
    drop(held);
    fleet.wait_idle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn choices_and_least_lengths_find_a_worker_that_holds_them() {
    let narrow = || worker("64MiB", &["--max-num-seqs", "4"]);
    let workers = vec![narrow(), large(), small(), narrow()];
    let fleet = Fleet::of(workers).await;
    let narrow = [0, 3].map(|at| fleet.workers[at].address.clone());
    let mut client = inference(&fleet.router.address).await;
    for seed in 0..10 {
        let mut eight = sized(20, seed, Some(4));
        eight.sampling.as_mut().unwrap().num_sequences = Some(8);
        let mut stream = client.generate(eight).await.unwrap().into_inner();
        let mut ends = 0;
        while let Some(event) = stream.message().await.unwrap() {
            use stoker_proto::v1::generate_response::Event;
            match event.event.unwrap() {
                Event::Accepted(accepted) => assert!(!narrow.contains(&accepted.worker)),
                Event::Finished(_) => ends += 1,
                _ => {}
            }
        }
        assert_eq!(ends, 8);
        let mut least = sized(20, seed, None);
        least.stopping = Some(Stopping { min_tokens: Some(500), ..Stopping::default() });
        let response = complete(&mut client, least).await.unwrap();
        assert!(response.ids.len() >= 500 && response.accepted.worker != fleet.workers[2].address);
    }
    // What no worker holds is refused with the counts, and is not a mistake of the request's.
    let narrow = Fleet::of(vec![worker("64MiB", &["--max-num-seqs", "4"])]).await;
    let mut client = inference(&narrow.router.address).await;
    let mut eight = sized(20, 1, Some(4));
    eight.sampling.as_mut().unwrap().num_sequences = Some(8);
    let status = client.generate(eight).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    assert!(status.message().contains('8') && status.message().contains('4'), "{status:?}");
    let metrics = scrape(&narrow.router).await;
    let retries = metrics.keys().filter(|name| name.starts_with("stoker_router_retries_total"));
    assert_eq!(retries.count(), 0, "no worker was asked: {metrics:#?}");
    fleet.wait_idle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lower_limit_is_another_digest() {
    let fleet = Fleet::of(vec![large(), worker("64MiB", &["--max-model-len", "512"])]).await;
    let mut digests = Vec::new();
    for worker in &fleet.workers {
        let mut control = crate::support::control(&worker.address).await;
        let info = control.get_model_info(stoker_proto::v1::GetModelInfoRequest::default()).await;
        let info = info.unwrap().into_inner();
        digests.push((info.digest, info.context_length));
    }
    assert_ne!(digests[0].0, digests[1].0);
    assert_eq!((digests[0].1, digests[1].1), (CONTEXT as u32, 512));
    // Too long for one and not for the other, whichever is asked first.
    for response in
        all(&fleet.router.address, (0..16).map(|s| sized(600, s, Some(5))).collect()).await
    {
        assert_eq!(response.accepted.worker, fleet.workers[0].address);
    }
    fleet.wait_idle().await;
}

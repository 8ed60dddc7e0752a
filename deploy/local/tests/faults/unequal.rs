//! Workers of one model with different capacities: KV cache, sequences in a batch, context length.

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

/// Context length of the model, in tokens.
const CONTEXT: usize = 2_048;
/// Capacity of a small KV cache, in tokens.
const SMALL: usize = 256;

/// A worker with a KV cache of `memory`, at 1 KiB for each token, and a fast device.
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

/// A request with a prompt of `prompt` tokens that only its length limit ends.
fn request_of(prompt: usize, seed: u64, max_tokens: Option<u32>) -> GenerateRequest {
    GenerateRequest {
        input: Some(Input::TokenIds(TokenIds { ids: vec![7; prompt] })),
        sampling: Some(Sampling { seed: Some(seed), ..Sampling::default() }),
        stopping: Some(Stopping { max_tokens, ignore_eos: true, ..Stopping::default() }),
        ..GenerateRequest::default()
    }
}

/// Sends all of `requests` at once and returns their completions.
async fn complete_all(address: &str, requests: Vec<GenerateRequest>) -> Vec<Completion> {
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
async fn a_large_worker_is_killed_beside_a_small_one() {
    let load = "--requests 12 --concurrency 12 --synthetic 16:900";
    let case = FaultCase::new(
        "a worker is killed, and one of the two others has too small a KV cache",
        load,
    )
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
    assert!(!accepted.contains_key(&fleet.workers[1].id), "{:#}", results.json);
    fleet.wait_idle().await;
    case.report(&results, None, "kill -9; all continue on the other large one");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_only_the_killed_worker_could_hold_fails_with_the_counts() {
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
        let stream = client.generate(request_of(20, 1, limit)).await.unwrap().into_inner();
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
        assert!(tokens >= 250, "tokens generated so far are delivered: {tokens}");
    }
    fleet.wait_idle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_faults_no_response_is_cut_and_no_prompt_refused() {
    let fleet = Fleet::of(vec![small(), large(), small()]).await;
    let address = &fleet.router.address;
    // Requests without a limit fill the model's context.
    let unlimited =
        complete_all(address, (0..8).map(|seed| request_of(20, seed, None)).collect()).await;
    for response in &unlimited {
        assert!(ends_by_limit(response));
        assert_eq!(response.ids.len(), CONTEXT - 20);
    }
    // Prompts and limits that the small workers cannot hold, while the large one is busy.
    let mut held = Vec::new();
    let mut client = inference(address).await;
    for seed in 0..32 {
        held.push(client.generate(request_of(20, seed, Some(1_900))).await.unwrap());
    }
    let long = (0..20).map(|seed| request_of(SMALL + 44, seed, Some(10)));
    let limits = (0..20).map(|seed| request_of(20, seed, Some(SMALL as u32 + 44)));
    for response in complete_all(address, long.chain(limits).collect()).await {
        assert!(ends_by_limit(&response));
        assert_eq!(response.accepted.worker, fleet.workers[1].id);
    }
    // Requests that the small workers can hold are sent to them too.
    let short =
        complete_all(address, (0..30).map(|seed| request_of(20, seed, Some(30))).collect()).await;
    assert!(short.iter().any(|response| response.accepted.worker != fleet.workers[1].id));
    drop(held);
    fleet.wait_idle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn choices_and_minimum_lengths_find_a_worker_that_holds_them() {
    let few_slots = || worker("64MiB", &["--max-num-seqs", "4"]);
    let workers = vec![few_slots(), large(), small(), few_slots()];
    let fleet = Fleet::of(workers).await;
    let few_slots = [0, 3].map(|at| fleet.workers[at].id.clone());
    let mut client = inference(&fleet.router.address).await;
    for seed in 0..10 {
        let mut eight = request_of(20, seed, Some(4));
        eight.sampling.as_mut().unwrap().num_sequences = Some(8);
        let mut stream = client.generate(eight).await.unwrap().into_inner();
        let mut ends = 0;
        while let Some(event) = stream.message().await.unwrap() {
            use stoker_proto::v1::generate_response::Event;
            match event.event.unwrap() {
                Event::Accepted(accepted) => assert!(!few_slots.contains(&accepted.worker)),
                Event::Finished(_) => ends += 1,
                _ => {}
            }
        }
        assert_eq!(ends, 8);
        let mut minimum = request_of(20, seed, None);
        minimum.stopping = Some(Stopping { min_tokens: Some(500), ..Stopping::default() });
        let response = complete(&mut client, minimum).await.unwrap();
        assert!(response.ids.len() >= 500 && response.accepted.worker != fleet.workers[2].id);
    }
    // A request that no worker can hold is refused with the counts, and not as invalid.
    let few_slots = Fleet::of(vec![worker("64MiB", &["--max-num-seqs", "4"])]).await;
    let mut client = inference(&few_slots.router.address).await;
    let mut eight = request_of(20, 1, Some(4));
    eight.sampling.as_mut().unwrap().num_sequences = Some(8);
    let status = client.generate(eight).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    assert!(status.message().contains('8') && status.message().contains('4'), "{status:?}");
    let metrics = scrape(&few_slots.router).await;
    let retries =
        metrics.iter().filter(|(name, _)| name.starts_with("stoker_router_retries_total"));
    let retries: f64 = retries.map(|(_, count)| count).sum();
    assert_eq!(retries, 0.0, "no worker was tried: {metrics:#?}");
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
    // Too long for one worker and not for the other, whichever is tried first.
    for response in
        complete_all(&fleet.router.address, (0..16).map(|s| request_of(600, s, Some(5))).collect())
            .await
    {
        assert_eq!(response.accepted.worker, fleet.workers[0].id);
    }
    fleet.wait_idle().await;
}

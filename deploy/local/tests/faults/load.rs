//! Load above the limits of caches, queues and streams.

use std::num::NonZeroU64;

use serde_json::Value;
use tonic::{Code, metadata::MetadataMap};
use tonic_types::StatusExt;

use crate::{
    fault_case::FaultCase,
    fleet::{Fleet, addresses, peak_memory, router, wait_mid_stream},
    support::{Process, control, inference, request, scrape, wait_for_load},
};

/// Flags for a KV cache that holds four contexts of 256 tokens.
const SMALL_CACHE: [&str; 4] = ["--kv-cache-memory", "1MiB", "--max-num-seqs", "64"];
/// Limit of the router's peak memory with ten thousand streams, in MiB.
const MAX_MEMORY: u64 = 2_048;

/// A worker with a short context, so that a small KV cache can hold one sequence.
fn small_worker(flags: &[&str]) -> Process {
    let profile = r#"step = "5ms", context_length = 256"#;
    let own = ["--simulate", profile, "--max-num-batched-tokens", "2048"];
    Process::start("stoker-worker", &[&own[..], flags].concat())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cache_is_exhausted() {
    let load = "--requests 64 --concurrency 64 --synthetic 16:200";
    let case = FaultCase::new("a KV cache for 4 streams gets 64 streams", load).await;
    let fleet = Fleet::of(vec![small_worker(&SMALL_CACHE)]).await;
    let results = case.start(&fleet.router.address).end().await;
    results.assert_unaffected();
    assert!(
        results.count("preemptions") > 0,
        "the KV cache is too small for all: {:#}",
        results.json
    );
    fleet.wait_idle().await;
    let note = format!("{} preemptions; all are served", results.count("preemptions"));
    case.report(&results, None, &note);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_queue_is_full() {
    let load = "--requests 64 --concurrency 64 --synthetic 16:200";
    let case = FaultCase::new("4 slots and 4 queue positions get 64 requests", load).await;
    let limits = ["--max-num-seqs", "4", "--max-num-queued-reqs", "4"];
    let fleet = Fleet::of(vec![small_worker(&limits)]).await;
    let load = case.start(&fleet.router.address);
    let mut refusal = None;
    let results = load
        .during(async {
            wait_for_load(&mut control(&fleet.workers[0].address).await, |l| l.running == 4).await;
            let mut client = inference(&fleet.router.address).await;
            let mut held = Vec::new();
            // A call may still be accepted when another stream ends.
            while refusal.is_none() {
                match client.generate(request("Once", 1, 200)).await {
                    Ok(stream) => held.push(stream),
                    Err(status) => refusal = Some(status),
                }
            }
        })
        .await;
    let refusal = refusal.unwrap();
    assert_eq!(refusal.code(), Code::ResourceExhausted, "{refusal:?}");
    assert!(refusal.get_details_retry_info().is_some(), "{refusal:?}");
    assert!(pushback(refusal.metadata()).is_some(), "{refusal:?}");
    results.assert_outputs_unchanged();
    results.assert_error_codes(&["RESOURCE_EXHAUSTED"]);
    assert!(results.count("requests.complete") >= 4, "{:#}", results.json);
    assert_eq!(results.count("requests.lost"), 0, "accepted requests complete: {:#}", results.json);
    fleet.wait_idle().await;
    case.report(&results, None, "refused requests get RESOURCE_EXHAUSTED with pushback");
}

#[tokio::test(flavor = "multi_thread")]
async fn retries_make_no_storm() {
    let load = "--requests 400 --concurrency 100 --synthetic 16:40";
    let case = FaultCase::new("both workers are full and refuse", load).await;
    let limits = ["--max-num-seqs", "4", "--max-num-queued-reqs", "1"];
    let fleet = Fleet::of(vec![small_worker(&limits), small_worker(&limits)]).await;
    let results = case.start(&fleet.router.address).end().await;
    results.assert_outputs_unchanged();
    results.assert_error_codes(&["RESOURCE_EXHAUSTED"]);
    assert_eq!(results.count("requests.lost"), 0, "accepted requests complete: {:#}", results.json);
    let metrics = scrape(&fleet.router).await;
    let retries =
        metrics.iter().filter(|(name, _)| name.starts_with("stoker_router_retries_total"));
    let retries = retries.map(|(_, count)| *count).sum::<f64>();
    // A fifth of the requests, and the reserve of 10.
    let budget = results.sent() as f64 / 5.0 + 10.0;
    assert!(retries > 0.0 && retries <= budget, "{retries} of {budget}: {metrics:#?}");
    fleet.wait_idle().await;
    let note = format!("RESOURCE_EXHAUSTED with pushback; {retries} retries, budget {budget}");
    case.report(&results, None, &note);
}

/// The retry delay in milliseconds that gRPC clients read.
fn pushback(metadata: &MetadataMap) -> Option<NonZeroU64> {
    metadata.get("grpc-retry-pushback-ms")?.to_str().ok()?.parse().ok()
}

/// Four workers that hold thousands of sequences each.
fn large_workers() -> Vec<Process> {
    let profile = r#"step = "500ms""#;
    let flags = ["--max-num-seqs", "4096", "--max-num-batched-tokens", "65536"];
    let own = ["--simulate", profile, "--max-num-queued-reqs", "16384"];
    (0..4).map(|_| Process::start("stoker-worker", &[&own[..], &flags].concat())).collect()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: run by .ci/full"]
async fn ten_thousand_streams_run_at_once() {
    let load = "--requests 10000 --concurrency 10000 --connections 64 --synthetic 16:30";
    let case = FaultCase::new("10,000 streams at once", load).await;
    let fleet = Fleet::of(large_workers()).await;
    let results = case
        .start(&fleet.router.address)
        .during(async {
            // Nearly all streams run: 2,300 of the 2,500 of each worker.
            for worker in &fleet.workers {
                wait_mid_stream(worker, 2_300, 1).await;
            }
        })
        .await;
    results.assert_unaffected();
    let memory = peak_memory(&fleet.router);
    assert!(memory < MAX_MEMORY, "{memory} MiB");
    fleet.wait_idle().await;
    case.report(&results, None, &format!("all are served; the router needs at most {memory} MiB"));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: run by .ci/full"]
async fn ten_thousand_streams_are_too_many() {
    let load = "--requests 10000 --concurrency 10000 --connections 64 --synthetic 16:30";
    let case = FaultCase::new("10,000 streams where 2,000 may run and 1,000 wait", load).await;
    let workers = large_workers();
    let limits = ["--max-concurrent-streams", "2000", "--queue-size", "1000"];
    let router = router(&addresses(&workers), &limits);
    let fleet = Fleet { workers, router };
    fleet.wait_for_workers().await;
    let results = case.start(&fleet.router.address).end().await;
    results.assert_outputs_unchanged();
    results.assert_error_codes(&["RESOURCE_EXHAUSTED"]);
    assert_eq!(results.count("requests.lost"), 0, "accepted requests complete: {:#}", results.json);
    assert!(results.count("requests.complete") >= 2_000, "{:#}", results.json);
    assert!(
        results.failed() > 0 && results.json["interrupted"] == Value::Bool(false),
        "{:#}",
        results.json
    );
    let memory = peak_memory(&fleet.router);
    assert!(memory < MAX_MEMORY, "{memory} MiB");
    fleet.wait_idle().await;
    case.report(
        &results,
        None,
        &format!("the rest is refused at once; the router needs at most {memory} MiB"),
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cache_is_exhausted_when_another_worker_is_killed() {
    let load = "--requests 48 --concurrency 48 --synthetic 16:200";
    let case = FaultCase::new("of two workers with small KV caches one is killed", load).await;
    let mut fleet = Fleet::of(vec![small_worker(&SMALL_CACHE), small_worker(&SMALL_CACHE)]).await;
    let results = case
        .start(&fleet.router.address)
        .during(async {
            wait_mid_stream(&fleet.workers[0], 3, 20).await;
            drop(fleet.workers.remove(0));
        })
        .await;
    results.assert_unaffected();
    fleet.wait_idle().await;
    case.report(&results, None, "the other one queues and preempts");
}

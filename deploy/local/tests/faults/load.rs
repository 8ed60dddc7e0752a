//! More than there is room for.

use std::num::NonZeroU64;

use serde_json::Value;
use tonic::{Code, metadata::MetadataMap};
use tonic_types::StatusExt;

use crate::{
    fleet::{Fleet, addresses, in_the_middle, peak_memory, router},
    row::Row,
    support::{Process, control, inference, load_becomes, request, scrape},
};

/// A cache for four contexts of 256 tokens.
const SMALL_CACHE: [&str; 4] = ["--kv-cache-memory", "1MiB", "--max-num-seqs", "64"];
/// What the router may need for ten thousand streams, in MiB.
const BOUND: u64 = 2_048;

/// A worker whose context is short, so that a small cache holds one.
fn small(flags: &[&str]) -> Process {
    let profile = r#"step = "5ms", context_length = 256"#;
    let own = ["--simulate", profile, "--max-num-batched-tokens", "2048"];
    Process::start("stoker-worker", &[&own[..], flags].concat())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cache_is_exhausted() {
    let load = "--requests 64 --concurrency 64 --synthetic 16:200";
    let row = Row::new("a KV cache for 4 streams gets 64", load).await;
    let fleet = Fleet::of(vec![small(&SMALL_CACHE)]).await;
    let seen = row.start(&fleet.router.address).end().await;
    seen.nobody_noticed();
    assert!(seen.count("preemptions") > 0, "there was not room for all: {:#}", seen.json);
    fleet.at_rest().await;
    let note = format!("{} preemptions; all are served", seen.count("preemptions"));
    row.tell(&seen, None, &note);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_queue_is_full() {
    let load = "--requests 64 --concurrency 64 --synthetic 16:200";
    let row = Row::new("a queue for 4 behind 4 gets 64", load).await;
    let limits = ["--max-num-seqs", "4", "--max-num-queued-reqs", "4"];
    let fleet = Fleet::of(vec![small(&limits)]).await;
    let load = row.start(&fleet.router.address);
    let mut refusal = None;
    let seen = load
        .during(async {
            load_becomes(&mut control(&fleet.workers[0].address).await, |l| l.running == 4).await;
            let mut client = inference(&fleet.router.address).await;
            let mut held = Vec::new();
            // Some may still get a place when another one's answer ends.
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
    seen.nobody_got_other_text();
    seen.failures_are(&["RESOURCE_EXHAUSTED"]);
    assert!(seen.count("requests.complete") >= 4, "{:#}", seen.json);
    assert_eq!(seen.count("requests.lost"), 0, "what was accepted is answered: {:#}", seen.json);
    fleet.at_rest().await;
    row.tell(&seen, None, "those refused get RESOURCE_EXHAUSTED with pushback");
}

#[tokio::test(flavor = "multi_thread")]
async fn retries_make_no_storm() {
    let load = "--requests 400 --concurrency 100 --synthetic 16:40";
    let row = Row::new("both workers are full and refuse", load).await;
    let limits = ["--max-num-seqs", "4", "--max-num-queued-reqs", "1"];
    let fleet = Fleet::of(vec![small(&limits), small(&limits)]).await;
    let seen = row.start(&fleet.router.address).end().await;
    seen.nobody_got_other_text();
    seen.failures_are(&["RESOURCE_EXHAUSTED"]);
    assert_eq!(seen.count("requests.lost"), 0, "what was accepted is answered: {:#}", seen.json);
    let metrics = scrape(&fleet.router).await;
    let retries =
        metrics.iter().filter(|(name, _)| name.starts_with("stoker_router_retries_total"));
    let retries = retries.map(|(_, count)| *count).sum::<f64>();
    // A fifth of the requests, and what a quiet hour saves up.
    let budget = seen.sent() as f64 / 5.0 + 10.0;
    assert!(retries > 0.0 && retries <= budget, "{retries} of {budget}: {metrics:#?}");
    fleet.at_rest().await;
    let note = format!("RESOURCE_EXHAUSTED with pushback; {retries} retries, budget {budget}");
    row.tell(&seen, None, &note);
}

/// When to come back, as gRPC clients read it.
fn pushback(metadata: &MetadataMap) -> Option<NonZeroU64> {
    metadata.get("grpc-retry-pushback-ms")?.to_str().ok()?.parse().ok()
}

/// Workers that hold thousands of sequences.
fn wide() -> Vec<Process> {
    let profile = r#"step = "500ms""#;
    let flags = ["--max-num-seqs", "4096", "--max-num-batched-tokens", "65536"];
    let own = ["--simulate", profile, "--max-num-queued-reqs", "16384"];
    (0..4).map(|_| Process::start("stoker-worker", &[&own[..], &flags].concat())).collect()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: run by .ci/full"]
async fn ten_thousand_streams_run_at_once() {
    let load = "--requests 10000 --concurrency 10000 --connections 16 --synthetic 16:30";
    let row = Row::new("10,000 streams at once", load).await;
    let fleet = Fleet::of(wide()).await;
    let seen = row
        .start(&fleet.router.address)
        .during(async {
            // All of them, nearly: a quarter each.
            for worker in &fleet.workers {
                in_the_middle(worker, 2_300, 1).await;
            }
        })
        .await;
    seen.nobody_noticed();
    let memory = peak_memory(&fleet.router);
    assert!(memory < BOUND, "{memory} MiB");
    fleet.at_rest().await;
    row.tell(&seen, None, &format!("all are served; the router needs at most {memory} MiB"));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: run by .ci/full"]
async fn ten_thousand_streams_are_too_many() {
    let load = "--requests 10000 --concurrency 10000 --connections 16 --synthetic 16:30";
    let row = Row::new("10,000 streams where 2,000 may run and 1,000 wait", load).await;
    let workers = wide();
    let limits = ["--max-concurrent-streams", "2000", "--queue-size", "1000"];
    let router = router(&addresses(&workers), &limits);
    let fleet = Fleet { workers, router };
    fleet.complete().await;
    let seen = row.start(&fleet.router.address).end().await;
    seen.nobody_got_other_text();
    seen.failures_are(&["RESOURCE_EXHAUSTED"]);
    assert_eq!(seen.count("requests.lost"), 0, "what was accepted is answered: {:#}", seen.json);
    assert!(seen.count("requests.complete") >= 2_000, "{:#}", seen.json);
    assert!(seen.failed() > 0 && seen.json["interrupted"] == Value::Bool(false), "{:#}", seen.json);
    let memory = peak_memory(&fleet.router);
    assert!(memory < BOUND, "{memory} MiB");
    fleet.at_rest().await;
    row.tell(
        &seen,
        None,
        &format!("the rest is refused at once; the router needs at most {memory} MiB"),
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cache_is_exhausted_when_another_worker_is_killed() {
    let load = "--requests 48 --concurrency 48 --synthetic 16:200";
    let row = Row::new("of two workers with small KV caches one is killed", load).await;
    let mut fleet = Fleet::of(vec![small(&SMALL_CACHE), small(&SMALL_CACHE)]).await;
    let seen = row
        .start(&fleet.router.address)
        .during(async {
            in_the_middle(&fleet.workers[0], 3, 20).await;
            drop(fleet.workers.remove(0));
        })
        .await;
    seen.nobody_noticed();
    fleet.at_rest().await;
    row.tell(&seen, None, "the other one queues and preempts");
}

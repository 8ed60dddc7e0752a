//! Healthy workers under too much load.

use std::time::Duration;

use prost::Message;
use tokio::time::timeout;

use crate::{
    fault_case::FaultCase,
    fleet::{Fleet, STEADY, addresses, router, simulated},
    proxy::{Fault, Plan, Proxy},
    support::{Metrics, Process, TEST_TIMEOUT, complete, inference, request, scrape},
    wire::{END_HEADERS, END_STREAM, FrameKind, Wire, call_headers, frame, message},
};

/// A worker whose KV cache holds four of the streams below.
fn small_cache_worker() -> Process {
    let profile = r#"step = "10ms", context_length = 256"#;
    let limits = ["--kv-cache-memory", "1MiB", "--max-num-seqs", "64"];
    Process::start("stoker-worker", &[&["--simulate", profile][..], &limits].concat())
}

fn sum(metrics: &Metrics, of: &[&str]) -> f64 {
    let counted = metrics.iter().filter(|(name, _)| of.iter().all(|part| name.contains(part)));
    counted.map(|(_, count)| count).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn responses_are_preempted_for_longer_than_the_token_timeout() {
    let load = "--requests 64 --concurrency 64 --synthetic 16:200";
    let case = FaultCase::new("two workers preempt for longer than --token-timeout", load).await;
    let workers = vec![small_cache_worker(), small_cache_worker()];
    let flags = ["--token-timeout", "1500ms", "--eject-failures", "1"];
    let router = router(&addresses(&workers), &flags);
    let fleet = Fleet { workers, router };
    fleet.wait_for_workers().await;
    let results = case.start(&fleet.router.address).end().await;
    results.assert_unaffected();
    assert!(results.count("preemptions") > 0, "{:#}", results.json);
    let waited = results.json["longest_pause_seconds"]["max"].as_f64().unwrap();
    assert!(waited > 1.5, "none waited for long enough: {:#}", results.json);
    let metrics = scrape(&fleet.router).await;
    assert_eq!(sum(&metrics, &["stoker_router_ejections_total"]), 0.0, "{metrics:#?}");
    assert_eq!(sum(&metrics, &["stoker_router_resumes_total", "STALLED"]), 0.0, "{metrics:#?}");
    fleet.wait_idle().await;
    let note = format!("{} preemptions; no worker is ejected", results.count("preemptions"));
    case.report(&results, None, &note);
}

/// Identifier of SETTINGS_INITIAL_WINDOW_SIZE.
const INITIAL_WINDOW_SIZE: u16 = 4;

#[tokio::test(flavor = "multi_thread")]
async fn half_open_probes_of_clients_that_do_not_read_do_not_block_readmission() {
    let workers = vec![simulated(STEADY, &[]), simulated(STEADY, &[])];
    let flaky = workers[0].address.clone();
    let proxy = Proxy::to(&flaky).await;
    let names = format!("{},{}", proxy.address, workers[1].address);
    // Clients that do not read stay connected for the whole test.
    let stay_connected = ["--write-stall-timeout", "10m"];
    let flags =
        [&["--eject-failures", "1", "--base-ejection-time", "1s"][..], &stay_connected].concat();
    let router = router(&names, &flags);
    let fleet = Fleet { workers, router };
    fleet.wait_for_workers().await;
    let ejected = r#"stoker_router_workers{state="ejected"}"#;
    proxy.set_open(Plan::both(Fault::Reset(0)));
    let wait_for_sample = async |count: f64| {
        let poll = async {
            while scrape(&fleet.router).await[ejected] != count {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(TEST_TIMEOUT, poll).await.unwrap();
    };
    // The reset hits the next bytes, which are load reports. The worker is then ejected, and is
    // half-open a second later.
    wait_for_sample(1.0).await;
    let long = request("Once upon a time", 1, 4_000).encode_to_vec();
    let body = message(0, long.len(), &long);
    let settings = [(INITIAL_WINDOW_SIZE, 0)];
    let mut unread = Wire::with_settings(&fleet.router.address, &settings).await;
    let mut stream = 1;
    let mut control = crate::support::control(&flaky).await;
    let watch = control.watch_load(stoker_proto::v1::WatchLoadRequest::default()).await.unwrap();
    let mut loads = watch.into_inner();
    // All three probes are streams of clients whose window is 0.
    while loads.message().await.unwrap().unwrap().running < 3 {
        unread.send(&frame(FrameKind::Headers, END_HEADERS, stream, &call_headers())).await;
        unread.send(&frame(FrameKind::Data, END_STREAM, stream, &body)).await;
        stream += 2;
        assert!(stream < 400, "the worker was never probed");
    }
    // Requests of other clients re-admit the worker all the same.
    let mut client = inference(&fleet.router.address).await;
    let readmits = async {
        let mut seed = 0;
        while scrape(&fleet.router).await[ejected] > 0.0 {
            seed += 1;
            complete(&mut client, request("Once", seed, 40)).await.unwrap();
        }
    };
    timeout(TEST_TIMEOUT, readmits).await.unwrap();
    let held = scrape(&fleet.router).await["stoker_router_requests_in_flight"];
    assert!(held >= 3.0, "the clients that do not read have left: {held}");
    drop(unread);
    fleet.wait_idle().await;
}

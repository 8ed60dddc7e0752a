//! Workers that are well and have too much to do.

use std::time::Duration;

use prost::Message;
use tokio::time::timeout;

use crate::{
    fleet::{Fleet, STEADY, addresses, router, simulated},
    proxy::{Fault, Plan, Proxy},
    row::Row,
    support::{Metrics, PATIENCE, Process, answer, inference, request, scrape},
    wire::{END_HEADERS, END_STREAM, Kind, Wire, call_headers, frame, message},
};

/// A KV cache for four of the streams below.
fn crowded() -> Process {
    let profile = r#"step = "10ms", context_length = 256"#;
    let limits = ["--kv-cache-memory", "1MiB", "--max-num-seqs", "64"];
    Process::start("stoker-worker", &[&["--simulate", profile][..], &limits].concat())
}

fn sum(metrics: &Metrics, of: &[&str]) -> f64 {
    let counted = metrics.iter().filter(|(name, _)| of.iter().all(|part| name.contains(part)));
    counted.map(|(_, count)| count).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn responses_are_preempted_for_longer_than_a_token_may_take() {
    let load = "--requests 64 --concurrency 64 --synthetic 16:200";
    let row = Row::new("two workers preempt for longer than --token-timeout", load).await;
    let workers = vec![crowded(), crowded()];
    let flags = ["--token-timeout", "1500ms", "--eject-failures", "1"];
    let router = router(&addresses(&workers), &flags);
    let fleet = Fleet { workers, router };
    fleet.complete().await;
    let seen = row.start(&fleet.router.address).end().await;
    seen.nobody_noticed();
    assert!(seen.count("preemptions") > 0, "{:#}", seen.json);
    let waited = seen.json["latency_seconds"]["longest_pause"]["max"].as_f64().unwrap();
    assert!(waited > 1.5, "none waited for long enough: {:#}", seen.json);
    let metrics = scrape(&fleet.router).await;
    assert_eq!(sum(&metrics, &["stoker_router_ejections_total"]), 0.0, "{metrics:#?}");
    assert_eq!(sum(&metrics, &["stoker_router_resumes_total", "STALLED"]), 0.0, "{metrics:#?}");
    fleet.at_rest().await;
    let note = format!("{} preemptions; no worker is blamed", seen.count("preemptions"));
    row.tell(&seen, None, &note);
}

/// The setting of a stream's first window, in bytes.
const INITIAL_WINDOW_SIZE: u16 = 4;

#[tokio::test(flavor = "multi_thread")]
async fn the_probes_of_a_trial_hang_in_clients_that_do_not_read() {
    let workers = vec![simulated(STEADY, &[]), simulated(STEADY, &[])];
    let recovered = workers[0].address.clone();
    let proxy = Proxy::to(&recovered).await;
    let names = format!("{},{}", proxy.address, workers[1].address);
    // Clients that do not read stay for as long as the row takes.
    let stays = ["--write-stall-timeout", "10m"];
    let flags = [&["--eject-failures", "1", "--base-ejection-time", "1s"][..], &stays].concat();
    let router = router(&names, &flags);
    let fleet = Fleet { workers, router };
    fleet.complete().await;
    let suspected = r#"stoker_router_workers{state="ejected"}"#;
    proxy.strike(Plan::both(Fault::Reset(0)));
    let becomes = async |count: f64| {
        let poll = async {
            while scrape(&fleet.router).await[suspected] != count {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(PATIENCE, poll).await.unwrap();
    };
    // The strike meets the next bytes, the reports of its load; then it is ejected, and tried a second later.
    becomes(1.0).await;
    let long = request("Once upon a time", 1, 4_000).encode_to_vec();
    let body = message(0, long.len(), &long);
    let settings = [(INITIAL_WINDOW_SIZE, 0)];
    let mut unread = Wire::with_settings(&fleet.router.address, &settings).await;
    let mut stream = 1;
    let mut control = crate::support::control(&recovered).await;
    let watch = control.watch_load(stoker_proto::v1::WatchLoadRequest::default()).await.unwrap();
    let mut loads = watch.into_inner();
    // All three probes go to clients whose window is nothing.
    while loads.message().await.unwrap().unwrap().running < 3 {
        unread.say(&frame(Kind::Headers, END_HEADERS, stream, &call_headers())).await;
        unread.say(&frame(Kind::Data, END_STREAM, stream, &body)).await;
        stream += 2;
        assert!(stream < 400, "it was never tried");
    }
    // Others prove it well all the same.
    let mut client = inference(&fleet.router.address).await;
    let proves = async {
        let mut seed = 0;
        while scrape(&fleet.router).await[suspected] > 0.0 {
            seed += 1;
            answer(&mut client, request("Once", seed, 40)).await.unwrap();
        }
    };
    timeout(PATIENCE, proves).await.unwrap();
    let held = scrape(&fleet.router).await["stoker_router_requests_in_flight"];
    assert!(held >= 3.0, "the clients that do not read have left: {held}");
    drop(unread);
    fleet.at_rest().await;
}

//! Addresses that lead to another process than before, or several to the same process.

use std::{net::TcpListener, time::Duration};

use stoker_proto::v1::GetModelInfoRequest;
use tokio::time::timeout;

use crate::{
    fault_case::FaultCase,
    fleet::{
        Fleet, INSTANT, LARGE_LIMITS, STEADY, addresses, router, simulated, wait_for_workers,
        wait_idle, wait_mid_stream,
    },
    proxy::Proxy,
    support::{Process, TEST_TIMEOUT, complete, control, inference, request, scrape},
};

/// Profile of another model with the same name: other completions, another digest.
const OTHER_MODEL: &str = r#"step = "50ms", response_tokens = 77"#;
const STREAMS: &str = "--requests 100 --concurrency 100 --synthetic 16:120";

#[tokio::test(flavor = "multi_thread")]
async fn an_address_leads_to_another_model() {
    let case =
        FaultCase::new("the address of a killed worker leads to another model", STREAMS).await;
    let mut workers = vec![simulated(STEADY, &[]), simulated(STEADY, &[])];
    let other_model = simulated(OTHER_MODEL, &[]);
    let proxy = Proxy::to(&workers[0].address).await;
    let router = router(&format!("{},{}", proxy.address, workers[1].address), &[]);
    wait_for_workers(&router, &workers).await;
    let load = case.start(&router.address);
    let results = load
        .during(async {
            wait_mid_stream(&workers[0], 20, 20).await;
            proxy.redirect_to(&other_model.address);
            drop(workers.remove(0));
        })
        .await;
    results.assert_unaffected();
    assert!(results.resumed() >= 20, "{:#}", results.json);
    let fleet = Fleet { workers, router };
    fleet.wait_idle().await;
    case.report(&results, None, "kill -9; all resume on the worker with their digest");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_is_killed_and_another_process_takes_its_address() {
    let case =
        FaultCase::new("another process takes the address of a killed worker at once", STREAMS)
            .await;
    let mut fleet = Fleet::simulated(2, STEADY).await;
    let load = case.start(&fleet.router.address);
    let mut replacement = None;
    let results = load
        .during(async {
            wait_mid_stream(&fleet.workers[0], 20, 20).await;
            let killed = fleet.workers.remove(0);
            let address = killed.address.clone();
            drop(killed);
            let own = ["--simulate", OTHER_MODEL, "--listen", &address];
            replacement =
                Some(Process::start("stoker-worker", &[&own[..], &LARGE_LIMITS].concat()));
        })
        .await;
    results.assert_unaffected();
    assert!(results.resumed() >= 20, "{:#}", results.json);
    wait_idle(&replacement.unwrap()).await;
    fleet.wait_idle().await;
    case.report(&results, None, "kill -9; the other process has another digest");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_addresses_of_one_worker_count_once() {
    let workers = vec![simulated(INSTANT, &[]), simulated(INSTANT, &[])];
    let proxy = Proxy::to(&workers[0].address).await;
    let port = workers[0].address.rsplit_once(':').unwrap().1;
    let names = format!("{},localhost:{port},{}", addresses(&workers), proxy.address);
    let router = router(&names, &[]);
    let live = r#"stoker_router_workers{state="live"}"#;
    // All addresses are resolved once the proxy is connected and the worker behind it is known.
    proxy.wait_connected(1).await;
    let poll = async {
        loop {
            let metrics = scrape(&router).await;
            let gone = metrics[r#"stoker_router_workers{state="gone"}"#];
            if gone == 0.0 && metrics[live] == 2.0 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(TEST_TIMEOUT, poll).await.unwrap();
    let mut client = inference(&router.address).await;
    for seed in 0..10 {
        complete(&mut client, request("Once", seed, 5)).await.unwrap();
    }
    // The router's KV blocks are the sum of those of two workers.
    wait_for_workers(&router, &workers).await;
}

/// Waits until `router` reports that a worker is a router, and returns its message.
async fn unready_message(router: &Process) -> String {
    let mut control = control(&router.address).await;
    let poll = async {
        loop {
            let status = control.get_model_info(GetModelInfoRequest::default()).await.unwrap_err();
            if status.message().contains("it is a router, not a worker") {
                return status.message().to_owned();
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(TEST_TIMEOUT, poll).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_router_is_no_worker() {
    let fleet = Fleet::simulated(1, INSTANT).await;
    // A router with workers, a router without, and the router itself.
    let above = router(&fleet.router.address, &[]);
    unready_message(&above).await;
    let nowhere = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let idle = router(&nowhere, &[]);
    let above_idle = router(&idle.address, &[]);
    unready_message(&above_idle).await;
    let own = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let itself = router(&own, &["--listen", &own]);
    let message = unready_message(&itself).await;
    assert!(message.len() < 300, "{message}");
    // Beside a worker it is ignored.
    let workers = format!("{},{}", fleet.router.address, fleet.workers[0].address);
    let both = router(&workers, &[]);
    wait_for_workers(&both, &fleet.workers).await;
    let mut client = inference(&both.address).await;
    for seed in 0..10 {
        complete(&mut client, request("Once", seed, 5)).await.unwrap();
    }
}

//! Network faults on the connection between the router and a worker.

use std::time::Duration;

use crate::{
    fault_case::{ClientResults, FaultCase},
    fleet::{Fleet, STEADY, router, simulated, wait_mid_stream, wait_router_idle},
    kills::RESUME_LIMIT,
    proxy::{Fault, Plan, Proxy},
    support::Process,
};

const STREAMS: &str = "--requests 100 --concurrency 100 --synthetic 16:120";
/// Limit of the pause after a stall: the default of `--stall-timeout`, and the time to resume.
const STALL_RECOVERY_LIMIT: Duration = Duration::from_millis(3_100);
/// Latency each way, as in a cluster over two sites.
const LATENCY: Duration = Duration::from_millis(100);

/// A router and two workers, the first of them behind a proxy.
struct ProxiedFleet {
    fleet: Fleet,
    proxy: Proxy,
}

impl ProxiedFleet {
    async fn new() -> Self {
        let workers = vec![simulated(STEADY, &[]), simulated(STEADY, &[])];
        let proxy = Proxy::to(&workers[0].address).await;
        let router = router(&format!("{},{}", proxy.address, workers[1].address), &[]);
        let fleet = Fleet { workers, router };
        fleet.wait_for_workers().await;
        Self { fleet, proxy }
    }

    /// Applies `plan` to the connection while streams run on it, and to new connections if
    /// `new_connections`. Afterwards the connection heals and the fleet must recover.
    async fn run_fault(
        &self,
        case: &FaultCase,
        plan: Plan,
        new_connections: bool,
    ) -> ClientResults {
        let load = case.start(&self.fleet.router.address);
        let results = load
            .during(async {
                wait_mid_stream(&self.fleet.workers[0], 20, 20).await;
                if new_connections { self.proxy.set(plan) } else { self.proxy.set_open(plan) }
            })
            .await;
        self.proxy.set(Plan::CLEAR);
        self.fleet.wait_for_workers().await;
        self.fleet.wait_idle().await;
        results
    }
}

/// Runs a case whose fault breaks the streams of the connection, so that they are resumed.
async fn expect_resumed(
    name: &'static str,
    plan: Plan,
    new_connections: bool,
    promise: Duration,
    note: &str,
) {
    let case = FaultCase::new(name, STREAMS).await;
    let results = ProxiedFleet::new().await.run_fault(&case, plan, new_connections).await;
    results.assert_unaffected();
    assert!(results.resumed() >= 20, "{:#}", results.json);
    case.report(&results, Some(promise), note);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_connection_is_reset() {
    let name = "the connection to a worker is reset";
    expect_resumed(name, Plan::both(Fault::Reset(0)), false, RESUME_LIMIT, "RST both ways").await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: run by .ci/full"]
async fn the_connection_is_closed_within_a_frame() {
    let plan = Plan { up: Fault::None, down: Fault::Cut(1_001) };
    let name = "the connection to a worker is closed within a frame";
    expect_resumed(name, plan, false, RESUME_LIMIT, "FIN after 1,001 more bytes").await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: run by .ci/full"]
async fn the_network_is_cut_both_ways() {
    let name = "the network to a worker is cut both ways";
    expect_resumed(
        name,
        Plan::both(Fault::Swallow),
        true,
        STALL_RECOVERY_LIMIT,
        "bytes are lost; then it heals",
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: run by .ci/full"]
async fn the_network_from_the_worker_is_cut() {
    let plan = Plan { up: Fault::None, down: Fault::Swallow };
    let name = "the network from a worker is cut";
    expect_resumed(name, plan, true, STALL_RECOVERY_LIMIT, "one way only; then it heals").await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: run by .ci/full"]
async fn the_worker_cannot_write() {
    let plan = Plan { up: Fault::None, down: Fault::Stall };
    let name = "a worker's bytes are not read";
    expect_resumed(name, plan, true, STALL_RECOVERY_LIMIT, "its buffers fill up; then it heals")
        .await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: run by .ci/full"]
async fn the_network_to_the_worker_is_cut() {
    // Running streams continue; new requests sent there get no first token.
    let load = "--requests 200 --concurrency 50 --synthetic 16:60";
    let case = FaultCase::new("the network to a worker is cut", load).await;
    let plan = Plan { up: Fault::Swallow, down: Fault::None };
    let results = ProxiedFleet::new().await.run_fault(&case, plan, true).await;
    results.assert_unaffected();
    case.report(&results, None, "one way only; then it heals");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_connection_has_a_high_latency() {
    let case =
        FaultCase::new("the connection to a worker has 100 ms of latency each way", STREAMS).await;
    let results =
        ProxiedFleet::new().await.run_fault(&case, Plan::both(Fault::Delay(LATENCY)), true).await;
    results.assert_unaffected();
    assert_eq!(results.resumed(), 0, "latency is no failure: {:#}", results.json);
    case.report(&results, None, "nothing is resumed");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: run by .ci/full"]
async fn the_connection_is_reset_again_and_again() {
    let load = "--requests 500 --concurrency 50 --synthetic 16:40";
    let case = FaultCase::new("the connection to a worker is reset five times", load).await;
    let proxied = ProxiedFleet::new().await;
    let worker: &Process = &proxied.fleet.workers[0];
    let load = case.start(&proxied.fleet.router.address);
    let results = load
        .during(async {
            for connections in 1..=5 {
                proxied.proxy.wait_connected(connections).await;
                wait_mid_stream(worker, 5, 5).await;
                proxied.proxy.set_open(Plan::both(Fault::Reset(0)));
            }
        })
        .await;
    results.assert_unaffected();
    proxied.fleet.wait_idle().await;
    wait_router_idle(&proxied.fleet.router).await;
    case.report(&results, None, "RST both ways each time");
}

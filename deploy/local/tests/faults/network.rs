//! What networks do to the connection between the router and a worker.

use std::time::Duration;

use crate::{
    fault_case::{ClientResults, FaultCase},
    fleet::{Fleet, STEADY, router, simulated, wait_mid_stream, wait_router_idle},
    kills::RESUME_LIMIT,
    proxy::{Fault, Plan, Proxy},
    support::Process,
};

const STREAMS: &str = "--requests 100 --concurrency 100 --synthetic 16:120";
/// The stall budget's default, and what resuming may take.
const STALL_RECOVERY_LIMIT: Duration = Duration::from_millis(3_100);
/// Far from both ends, as a cluster over two sites is.
const FAR: Duration = Duration::from_millis(100);

/// Two workers, one of them behind a proxy.
struct Behind {
    fleet: Fleet,
    proxy: Proxy,
}

impl Behind {
    async fn new() -> Self {
        let workers = vec![simulated(STEADY, &[]), simulated(STEADY, &[])];
        let proxy = Proxy::to(&workers[0].address).await;
        let router = router(&format!("{},{}", proxy.address, workers[1].address), &[]);
        let fleet = Fleet { workers, router };
        fleet.wait_for_workers().await;
        Self { fleet, proxy }
    }

    /// What clients see when this happens to the connection while streams run on it. After it the connection
    /// heals, and everything has to be as it was.
    async fn suffers(&self, case: &FaultCase, plan: Plan, newcomers: bool) -> ClientResults {
        let load = case.start(&self.fleet.router.address);
        let results = load
            .during(async {
                wait_mid_stream(&self.fleet.workers[0], 20, 20).await;
                if newcomers { self.proxy.set(plan) } else { self.proxy.strike(plan) }
            })
            .await;
        self.proxy.set(Plan::CLEAR);
        self.fleet.wait_for_workers().await;
        self.fleet.wait_idle().await;
        results
    }
}

/// A row of a fault that streams on the connection do not survive.
async fn resumed(name: &'static str, plan: Plan, newcomers: bool, promise: Duration, note: &str) {
    let case = FaultCase::new(name, STREAMS).await;
    let results = Behind::new().await.suffers(&case, plan, newcomers).await;
    results.assert_unaffected();
    assert!(results.resumed() >= 20, "{:#}", results.json);
    case.report(&results, Some(promise), note);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_connection_is_reset() {
    let name = "the connection to a worker is reset";
    resumed(name, Plan::both(Fault::Reset(0)), false, RESUME_LIMIT, "RST both ways").await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: run by .ci/full"]
async fn the_connection_is_closed_within_a_frame() {
    let plan = Plan { up: Fault::None, down: Fault::Cut(1_001) };
    let name = "the connection to a worker is closed within a frame";
    resumed(name, plan, false, RESUME_LIMIT, "FIN after 1,001 more bytes").await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: run by .ci/full"]
async fn nothing_passes_either_way() {
    let name = "the network to a worker is cut both ways";
    resumed(
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
async fn nothing_comes_back() {
    let plan = Plan { up: Fault::None, down: Fault::Swallow };
    let name = "the network is cut from a worker";
    resumed(name, plan, true, STALL_RECOVERY_LIMIT, "only that way; then it heals").await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: run by .ci/full"]
async fn the_worker_cannot_write() {
    let plan = Plan { up: Fault::None, down: Fault::Stall };
    let name = "a worker's bytes are not taken";
    resumed(name, plan, true, STALL_RECOVERY_LIMIT, "its buffers fill up; then it heals").await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: run by .ci/full"]
async fn what_is_asked_does_not_arrive() {
    // Streams that run go on; those that are sent there get no first token.
    let load = "--requests 200 --concurrency 50 --synthetic 16:60";
    let case = FaultCase::new("the network is cut to a worker", load).await;
    let plan = Plan { up: Fault::Swallow, down: Fault::None };
    let results = Behind::new().await.suffers(&case, plan, true).await;
    results.assert_unaffected();
    case.report(&results, None, "only that way; then it heals");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_is_far_away() {
    let case = FaultCase::new("the way to a worker takes 100 ms", STREAMS).await;
    let results = Behind::new().await.suffers(&case, Plan::both(Fault::Delay(FAR)), true).await;
    results.assert_unaffected();
    assert_eq!(results.resumed(), 0, "far is not dead: {:#}", results.json);
    case.report(&results, None, "nothing is resumed");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: run by .ci/full"]
async fn the_connection_is_reset_again_and_again() {
    let load = "--requests 500 --concurrency 50 --synthetic 16:40";
    let case = FaultCase::new("the connection to a worker is reset five times", load).await;
    let behind = Behind::new().await;
    let worker: &Process = &behind.fleet.workers[0];
    let load = case.start(&behind.fleet.router.address);
    let results = load
        .during(async {
            for connections in 1..=5 {
                behind.proxy.connected(connections).await;
                wait_mid_stream(worker, 5, 5).await;
                behind.proxy.strike(Plan::both(Fault::Reset(0)));
            }
        })
        .await;
    results.assert_unaffected();
    behind.fleet.wait_idle().await;
    wait_router_idle(&behind.fleet.router).await;
    case.report(&results, None, "RST both ways each time");
}

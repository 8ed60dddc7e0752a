//! What networks do to the connection between the router and a worker.

use std::time::Duration;

use crate::{
    fleet::{Fleet, STEADY, in_the_middle, nothing_in_flight, router, simulated},
    kills::AT_ONCE,
    proxy::{Fault, Plan, Proxy},
    row::{Row, Seen},
    support::Process,
};

const STREAMS: &str = "--requests 100 --concurrency 100 --synthetic 16:120";
/// The stall budget's default, and what resuming may take.
const STALL: Duration = Duration::from_millis(3_100);
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
        fleet.complete().await;
        Self { fleet, proxy }
    }

    /// What clients see when this happens to the connection while streams run on it. After it the connection
    /// heals, and everything has to be as it was.
    async fn suffers(&self, row: &Row, plan: Plan, newcomers: bool) -> Seen {
        let load = row.start(&self.fleet.router.address);
        let seen = load
            .during(async {
                in_the_middle(&self.fleet.workers[0], 20, 20).await;
                if newcomers { self.proxy.set(plan) } else { self.proxy.strike(plan) }
            })
            .await;
        self.proxy.set(Plan::CLEAR);
        self.fleet.complete().await;
        self.fleet.at_rest().await;
        seen
    }
}

/// A row of a fault that streams on the connection do not survive.
async fn resumed(name: &'static str, plan: Plan, newcomers: bool, promise: Duration, note: &str) {
    let row = Row::new(name, STREAMS).await;
    let seen = Behind::new().await.suffers(&row, plan, newcomers).await;
    seen.nobody_noticed();
    assert!(seen.resumed() >= 20, "{:#}", seen.json);
    row.tell(&seen, Some(promise), note);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_connection_is_reset() {
    let name = "the connection to a worker is reset";
    resumed(name, Plan::both(Fault::Reset(0)), false, AT_ONCE, "RST both ways").await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: run by .ci/full"]
async fn the_connection_is_closed_within_a_frame() {
    let plan = Plan { up: Fault::None, down: Fault::Cut(1_001) };
    let name = "the connection to a worker is closed within a frame";
    resumed(name, plan, false, AT_ONCE, "FIN after 1,001 more bytes").await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: run by .ci/full"]
async fn nothing_passes_either_way() {
    let name = "the network to a worker is cut both ways";
    resumed(name, Plan::both(Fault::Swallow), true, STALL, "bytes are lost; then it heals").await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: run by .ci/full"]
async fn nothing_comes_back() {
    let plan = Plan { up: Fault::None, down: Fault::Swallow };
    let name = "the network is cut from a worker";
    resumed(name, plan, true, STALL, "only that way; then it heals").await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: run by .ci/full"]
async fn the_worker_cannot_write() {
    let plan = Plan { up: Fault::None, down: Fault::Stall };
    let name = "a worker's bytes are not taken";
    resumed(name, plan, true, STALL, "its buffers fill up; then it heals").await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: run by .ci/full"]
async fn what_is_asked_does_not_arrive() {
    // Streams that run go on; those that are sent there get no first token.
    let load = "--requests 200 --concurrency 50 --synthetic 16:60";
    let row = Row::new("the network is cut to a worker", load).await;
    let plan = Plan { up: Fault::Swallow, down: Fault::None };
    let seen = Behind::new().await.suffers(&row, plan, true).await;
    seen.nobody_noticed();
    row.tell(&seen, None, "only that way; then it heals");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_is_far_away() {
    let row = Row::new("the way to a worker takes 100 ms", STREAMS).await;
    let seen = Behind::new().await.suffers(&row, Plan::both(Fault::Delay(FAR)), true).await;
    seen.nobody_noticed();
    assert_eq!(seen.resumed(), 0, "far is not dead: {:#}", seen.json);
    row.tell(&seen, None, "nothing is resumed");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: run by .ci/full"]
async fn the_connection_is_reset_again_and_again() {
    let load = "--requests 500 --concurrency 50 --synthetic 16:40";
    let row = Row::new("the connection to a worker is reset five times", load).await;
    let behind = Behind::new().await;
    let worker: &Process = &behind.fleet.workers[0];
    let load = row.start(&behind.fleet.router.address);
    let seen = load
        .during(async {
            for connections in 1..=5 {
                behind.proxy.connected(connections).await;
                in_the_middle(worker, 5, 5).await;
                behind.proxy.strike(Plan::both(Fault::Reset(0)));
            }
        })
        .await;
    seen.nobody_noticed();
    behind.fleet.at_rest().await;
    nothing_in_flight(&behind.fleet.router).await;
    row.tell(&seen, None, "RST both ways each time");
}

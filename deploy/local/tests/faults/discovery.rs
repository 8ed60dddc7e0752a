//! Faults of etcd, from which the router learns its workers. Clients must not be affected.

use std::time::Duration;

use futures::StreamExt;
use stoker_shared::discovery::{
    Change, Changes,
    etcd::{self, EtcdConfig},
};
use tokio::time::timeout;

use crate::{
    etcd_server::Etcd,
    fault_case::FaultCase,
    fleet::{Fleet, STEADY, simulated, wait_mid_stream, wait_router_idle},
    support::{Process, TEST_TIMEOUT},
};

/// Several requests of each client, so that some start while etcd is down.
const LOAD: &str = "--requests 200 --concurrency 40 --synthetic 16:60";
const PREFIX: &str = "/stoker/faults/";
/// TTL of every worker's lease.
const TTL: Duration = Duration::from_secs(2);

/// Two workers and a router that finds them through `etcd` alone.
struct DiscoveredFleet {
    etcd: Etcd,
    fleet: Fleet,
}

fn worker(etcd: &Etcd, id: &str) -> Process {
    let lease = format!("{}s", TTL.as_secs());
    let own = ["--etcd", etcd.url(), "--etcd-prefix", PREFIX, "--etcd-lease-ttl", &lease];
    simulated(STEADY, &[&own[..], &["--worker-id", id]].concat())
}

fn router(etcd: &Etcd) -> Process {
    let own = ["--etcd", etcd.url(), "--etcd-prefix", PREFIX, "--metrics-listen", "127.0.0.1:0"];
    Process::start("stoker-router", &own)
}

impl DiscoveredFleet {
    async fn new(etcd: Etcd) -> Self {
        let workers = vec![worker(&etcd, "a"), worker(&etcd, "b")];
        let fleet = Fleet { workers, router: router(&etcd) };
        fleet.wait_for_workers().await;
        Self { etcd, fleet }
    }

    /// Waits until both workers are registered in etcd.
    async fn wait_registered(&self) {
        let etcd = vec![self.etcd.url().parse().unwrap()];
        let mut changes: Changes = etcd::watch(EtcdConfig::new(etcd, PREFIX));
        let mut names = std::collections::BTreeSet::new();
        let wait = async {
            while names.len() < 2 {
                match changes.next().await.unwrap() {
                    Change::Insert(added) => drop(names.insert(added.id.to_string())),
                    Change::Remove(gone) => drop(names.remove(gone.as_str())),
                    Change::SourceError(_) => {}
                }
            }
        };
        timeout(TEST_TIMEOUT, wait).await.unwrap();
    }
}

/// Runs a case whose fault must not affect clients, once for each version of etcd.
async fn expect_unaffected(name: &'static str, note: &str, fault: impl AsyncFn(&mut Etcd)) {
    let case = FaultCase::new(name, LOAD).await;
    for etcd in Etcd::each() {
        let mut discovered = DiscoveredFleet::new(etcd).await;
        let load = case.start(&discovered.fleet.router.address);
        let results = load
            .during(async {
                wait_mid_stream(&discovered.fleet.workers[0], 10, 10).await;
                fault(&mut discovered.etcd).await;
                // The router keeps serving with what it has learned from etcd since.
                wait_mid_stream(&discovered.fleet.workers[0], 5, 10).await;
            })
            .await;
        results.assert_unaffected();
        assert_eq!(results.resumed(), 0, "{:#}", results.json);
        assert_eq!(results.json["workers"].as_object().unwrap().len(), 2, "{:#}", results.json);
        discovered.fleet.wait_idle().await;
        // A new watcher finds both.
        discovered.wait_registered().await;
        discovered.fleet.wait_for_workers().await;
        case.report(&results, None, note);
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: run by .ci/full"]
async fn etcd_is_killed_and_started_again() {
    expect_unaffected("etcd is killed and started again", "kill -9", async |etcd| {
        etcd.kill();
        // The duration is the fault, not a synchronisation: longer than a lease.
        tokio::time::sleep(TTL * 2).await;
        etcd.start();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: run by .ci/full"]
async fn etcd_is_wiped() {
    expect_unaffected(
        "etcd is killed and loses everything",
        "kill -9, data deleted",
        async |etcd| {
            etcd.kill();
            etcd.wipe();
            etcd.start();
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: run by .ci/full"]
async fn etcd_is_paused_past_the_lease() {
    expect_unaffected(
        "etcd is paused for longer than leases last",
        "SIGSTOP, SIGCONT",
        async |etcd| {
            etcd.pause();
            // The duration is the fault, as above.
            tokio::time::sleep(TTL * 2).await;
            etcd.resume();
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: run by .ci/full"]
async fn etcd_starts_last() {
    let case = FaultCase::new("etcd starts after all other processes", LOAD).await;
    for mut etcd in Etcd::each_stopped() {
        let workers = vec![worker(&etcd, "a"), worker(&etcd, "b")];
        let fleet = Fleet { workers, router: router(&etcd) };
        etcd.start();
        let discovered = DiscoveredFleet { etcd, fleet };
        discovered.fleet.wait_for_workers().await;
        let results = case.start(&discovered.fleet.router.address).end().await;
        results.assert_unaffected();
        discovered.fleet.wait_idle().await;
        case.report(&results, None, "served as soon as etcd is up");
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: run by .ci/full"]
async fn two_routers_lose_etcd() {
    let case = FaultCase::new("two routers lose etcd for good", LOAD).await;
    for etcd in Etcd::each() {
        let mut discovered = DiscoveredFleet::new(etcd).await;
        let other = router(&discovered.etcd);
        let other = Fleet { workers: std::mem::take(&mut discovered.fleet.workers), router: other };
        other.wait_for_workers().await;
        let first = case.start(&discovered.fleet.router.address);
        let second = case.start(&other.router.address);
        let results = second
            .during(async {
                wait_mid_stream(&other.workers[0], 20, 10).await;
                discovered.etcd.kill();
            })
            .await;
        first.end().await.assert_unaffected();
        results.assert_unaffected();
        other.wait_idle().await;
        wait_router_idle(&discovered.fleet.router).await;
        case.report(&results, None, "kill -9; clients of either router");
    }
}

//! What happens to etcd. The router learns from it who is there; whoever asks it for answers notices nothing.

use std::time::Duration;

use futures::StreamExt;
use stoker_shared::discovery::{
    Change, Changes,
    etcd::{self, EtcdConfig},
};
use tokio::time::timeout;

use crate::{
    etcd_server::Etcd,
    fleet::{Fleet, STEADY, in_the_middle, nothing_in_flight, simulated},
    row::Row,
    support::{PATIENCE, Process},
};

/// Several answers of each client, so that some begin while etcd is away.
const LOAD: &str = "--requests 200 --concurrency 40 --synthetic 16:60";
const PREFIX: &str = "/stoker/faults/";
/// The lease of every worker.
const TTL: Duration = Duration::from_secs(2);

/// Two workers and a router that know each other through `etcd` alone.
struct Found {
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

impl Found {
    async fn new(etcd: Etcd) -> Self {
        let workers = vec![worker(&etcd, "a"), worker(&etcd, "b")];
        let fleet = Fleet { workers, router: router(&etcd) };
        fleet.complete().await;
        Self { etcd, fleet }
    }

    /// Waits until etcd names both workers.
    async fn named(&self) {
        let etcd = vec![self.etcd.url().parse().unwrap()];
        let mut changes: Changes = etcd::watch(EtcdConfig::new(etcd, PREFIX));
        let mut names = std::collections::BTreeSet::new();
        let wait = async {
            while names.len() < 2 {
                match changes.next().await.unwrap() {
                    Change::Insert(found) => drop(names.insert(found.id.to_string())),
                    Change::Remove(gone) => drop(names.remove(gone.as_str())),
                    Change::Trouble(_) => {}
                }
            }
        };
        timeout(PATIENCE, wait).await.unwrap();
    }
}

/// A row of a fault that nobody may notice.
async fn unnoticed(name: &'static str, note: &str, fault: impl AsyncFn(&mut Etcd)) {
    let row = Row::new(name, LOAD).await;
    for etcd in Etcd::each() {
        let mut found = Found::new(etcd).await;
        let load = row.start(&found.fleet.router.address);
        let seen = load
            .during(async {
                in_the_middle(&found.fleet.workers[0], 10, 10).await;
                fault(&mut found.etcd).await;
                // And once more, with whatever the router has learnt of it.
                in_the_middle(&found.fleet.workers[0], 5, 10).await;
            })
            .await;
        seen.nobody_noticed();
        assert_eq!(seen.resumed(), 0, "{:#}", seen.json);
        assert_eq!(seen.json["workers"].as_object().unwrap().len(), 2, "{:#}", seen.json);
        found.fleet.at_rest().await;
        // Whoever comes now finds both.
        found.named().await;
        found.fleet.complete().await;
        row.tell(&seen, None, note);
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: run by .ci/full"]
async fn etcd_is_killed_and_started_again() {
    unnoticed("etcd is killed and started again", "kill -9", async |etcd| {
        etcd.kill();
        // Not to wait for anything, but since that is what this is about: longer than a lease.
        tokio::time::sleep(TTL * 2).await;
        etcd.start();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: run by .ci/full"]
async fn etcd_is_wiped() {
    unnoticed("etcd is killed and loses everything", "kill -9, data deleted", async |etcd| {
        etcd.kill();
        etcd.wipe();
        etcd.start();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: run by .ci/full"]
async fn etcd_is_paused_past_the_lease() {
    unnoticed("etcd is paused for longer than leases last", "SIGSTOP, SIGCONT", async |etcd| {
        etcd.pause();
        // As above.
        tokio::time::sleep(TTL * 2).await;
        etcd.go_on();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: run by .ci/full"]
async fn etcd_is_not_there_at_first() {
    let row = Row::new("etcd comes after everybody else", LOAD).await;
    for mut etcd in Etcd::each_stopped() {
        let workers = vec![worker(&etcd, "a"), worker(&etcd, "b")];
        let fleet = Fleet { workers, router: router(&etcd) };
        etcd.start();
        let found = Found { etcd, fleet };
        found.fleet.complete().await;
        let seen = row.start(&found.fleet.router.address).end().await;
        seen.nobody_noticed();
        found.fleet.at_rest().await;
        row.tell(&seen, None, "served as soon as it is there");
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: run by .ci/full"]
async fn two_routers_lose_etcd() {
    let row = Row::new("two routers lose etcd for good", LOAD).await;
    for etcd in Etcd::each() {
        let mut found = Found::new(etcd).await;
        let other = router(&found.etcd);
        let other = Fleet { workers: std::mem::take(&mut found.fleet.workers), router: other };
        other.complete().await;
        let first = row.start(&found.fleet.router.address);
        let second = row.start(&other.router.address);
        let seen = second
            .during(async {
                in_the_middle(&other.workers[0], 20, 10).await;
                found.etcd.kill();
            })
            .await;
        first.end().await.nobody_noticed();
        seen.nobody_noticed();
        other.at_rest().await;
        nothing_in_flight(&found.fleet.router).await;
        row.tell(&seen, None, "kill -9; clients of either router");
    }
}

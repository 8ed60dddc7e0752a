//! Fleets without a free slot that lose workers, while new calls take whatever comes free.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::task::JoinSet;

use crate::{
    fleet::{Fleet, addresses, in_the_middle, peak_memory, router},
    row::Row,
    support::{Process, answer, inference, request},
};

/// What a worker may need for all that it takes over, in MiB.
const BOUND: u64 = 256;

/// A worker of eight slots and eight queue positions.
fn narrow() -> Process {
    let limits = ["--max-num-seqs", "8", "--max-num-queued-reqs", "8"];
    let own = ["--simulate", r#"step = "10ms", prefill_token = "20us""#];
    Process::start("stoker-worker", &[&own[..], &limits].concat())
}

/// New calls, as many at once as there are slots, until this is dropped.
struct Pressure {
    _clients: JoinSet<()>,
    served: Arc<AtomicU64>,
    refused: Arc<AtomicU64>,
}

impl Pressure {
    async fn on(router: &Process) -> Self {
        let (served, refused): (Arc<AtomicU64>, Arc<AtomicU64>) = Default::default();
        let mut clients = JoinSet::new();
        for seed in 0..32 {
            let mut client = inference(&router.address).await;
            let (served, refused) = (Arc::clone(&served), Arc::clone(&refused));
            clients.spawn(async move {
                loop {
                    match answer(&mut client, request("Once", seed, 20)).await {
                        Ok(_) => served.fetch_add(1, Ordering::Relaxed),
                        Err(_) => refused.fetch_add(1, Ordering::Relaxed),
                    };
                    // Sooner than a client may come back that heeds RetryInfo.
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
            });
        }
        Self { _clients: clients, served, refused }
    }

    /// New calls that were served, and that were not.
    fn counts(&self) -> (u64, u64) {
        (self.served.load(Ordering::Relaxed), self.refused.load(Ordering::Relaxed))
    }
}

/// `wait` is what the streams may wait for a slot: long enough only if they go before new calls.
async fn lose(name: &'static str, load: &str, workers: usize, lost: usize, wait: &str) {
    let row = Row::new(name, load).await;
    let workers: Vec<_> = (0..workers).map(|_| narrow()).collect();
    let router = router(&addresses(&workers), &["--resume-timeout", wait]);
    let mut fleet = Fleet { workers, router };
    fleet.complete().await;
    let load = row.start(&fleet.router.address);
    let mut pressure = None;
    let seen = load
        .during(async {
            for worker in &fleet.workers {
                in_the_middle(worker, 8, 10).await;
            }
            pressure = Some(Pressure::on(&fleet.router).await);
            drop(fleet.workers.drain(..lost));
        })
        .await;
    seen.nobody_noticed();
    assert!(seen.resumed() as usize >= 8 * lost, "those that ran there: {:#}", seen.json);
    let (served, refused) = pressure.take().unwrap().counts();
    assert!(refused > 0, "there was no pressure: {served} were served");
    let memory = fleet.workers.iter().map(peak_memory).max().unwrap();
    assert!(memory < BOUND, "{memory} MiB");
    fleet.at_rest().await;
    let note = format!(
        "kill -9; {refused} new calls were refused meanwhile, {served} served; a worker needs at most {memory} MiB"
    );
    row.tell(&seen, None, &note);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_of_two_is_killed() {
    let load = "--requests 24 --concurrency 24 --synthetic 16:200";
    lose("a worker of two is killed, both without a free slot", load, 2, 1, "5s").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_of_four_are_killed() {
    let load = "--requests 56 --concurrency 56 --synthetic 16:150";
    lose("two workers of four are killed, all without a free slot", load, 4, 2, "10s").await;
}

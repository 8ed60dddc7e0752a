//! Fleets without a free slot that lose workers while new calls compete for freed slots.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::task::JoinSet;

use crate::{
    fault_case::FaultCase,
    fleet::{Fleet, addresses, peak_memory, router, wait_mid_stream},
    support::{Process, complete, inference, request},
};

/// Limit of a worker's peak memory when it takes over streams, in MiB.
const MAX_MEMORY: u64 = 256;

/// A worker with eight slots and eight queue positions.
fn small_worker() -> Process {
    let limits = ["--max-num-seqs", "8", "--max-num-queued-reqs", "8"];
    let own = ["--simulate", r#"step = "10ms", prefill_token = "20us""#];
    Process::start("stoker-worker", &[&own[..], &limits].concat())
}

/// Clients that send new calls until this is dropped, up to 32 at once.
struct CompetingCalls {
    _clients: JoinSet<()>,
    served: Arc<AtomicU64>,
    refused: Arc<AtomicU64>,
}

impl CompetingCalls {
    async fn start(router: &Process) -> Self {
        let (served, refused): (Arc<AtomicU64>, Arc<AtomicU64>) = Default::default();
        let mut clients = JoinSet::new();
        for seed in 0..32 {
            let mut client = inference(&router.address).await;
            let (served, refused) = (Arc::clone(&served), Arc::clone(&refused));
            clients.spawn(async move {
                loop {
                    match complete(&mut client, request("Once", seed, 20)).await {
                        Ok(_) => served.fetch_add(1, Ordering::Relaxed),
                        Err(_) => refused.fetch_add(1, Ordering::Relaxed),
                    };
                    // Sooner than a client that honours RetryInfo may retry.
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
            });
        }
        Self { _clients: clients, served, refused }
    }

    /// Numbers of new calls that were served and that were refused.
    fn counts(&self) -> (u64, u64) {
        (self.served.load(Ordering::Relaxed), self.refused.load(Ordering::Relaxed))
    }
}

/// Kills `lost` of `workers` full workers. `wait` is the router's `--resume-timeout`, which is long
/// enough only if resumed streams go before new calls.
async fn kill_full_workers(
    name: &'static str,
    load: &str,
    workers: usize,
    lost: usize,
    wait: &str,
) {
    let case = FaultCase::new(name, load).await;
    let workers: Vec<_> = (0..workers).map(|_| small_worker()).collect();
    let router = router(&addresses(&workers), &["--resume-timeout", wait]);
    let mut fleet = Fleet { workers, router };
    fleet.wait_for_workers().await;
    let load = case.start(&fleet.router.address);
    let mut competing = None;
    let results = load
        .during(async {
            for worker in &fleet.workers {
                wait_mid_stream(worker, 8, 10).await;
            }
            competing = Some(CompetingCalls::start(&fleet.router).await);
            drop(fleet.workers.drain(..lost));
        })
        .await;
    results.assert_unaffected();
    assert!(
        results.resumed() as usize >= 8 * lost,
        "the streams of lost workers are resumed: {:#}",
        results.json
    );
    let (served, refused) = competing.take().unwrap().counts();
    assert!(refused > 0, "no new call was refused: {served} were served");
    let memory = fleet.workers.iter().map(peak_memory).max().unwrap();
    assert!(memory < MAX_MEMORY, "{memory} MiB");
    fleet.wait_idle().await;
    let note = format!(
        "kill -9; {refused} new calls were refused meanwhile, {served} served; a worker needs at most {memory} MiB"
    );
    case.report(&results, None, &note);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_of_two_is_killed() {
    let load = "--requests 24 --concurrency 24 --synthetic 16:200";
    kill_full_workers("a worker of two is killed, both without a free slot", load, 2, 1, "5s")
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_of_four_are_killed() {
    let load = "--requests 56 --concurrency 56 --synthetic 16:150";
    kill_full_workers("two workers of four are killed, all without a free slot", load, 4, 2, "10s")
        .await;
}

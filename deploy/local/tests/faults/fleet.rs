//! A router and its workers, each in a process of its own.

use std::{fs, time::Duration};

use stoker_proto::v1::{GetModelInfoRequest, Load};
use tokio::time::timeout;

use crate::support::{PATIENCE, Process, control, load_becomes, scrape};

/// A device whose step is slow enough for two cores to serve hundreds of streams, four workers and a router.
pub const STEADY: &str = r#"step = "50ms", prefill_token = "20us""#;
/// The same answers in no time.
pub const INSTANT: &str = "instant";

/// Limits with room for whole rows of streams.
pub const ROOM: [&str; 6] =
    ["--max-num-seqs", "512", "--max-num-batched-tokens", "2048", "--max-num-queued-reqs", "16384"];

/// A router and the workers behind it. Killed when it is dropped.
pub struct Fleet {
    pub workers: Vec<Process>,
    pub router: Process,
}

/// A worker on a simulated device, with [`ROOM`].
pub fn simulated(profile: &str, flags: &[&str]) -> Process {
    Process::start("stoker-worker", &[&["--simulate", profile][..], &ROOM, flags].concat())
}

/// A worker with the bundled model.
pub fn storyteller() -> Process {
    Process::start("stoker-worker", &["--model", "storyteller"])
}

/// A router in front of the workers at `addresses`.
pub fn router(addresses: &str, flags: &[&str]) -> Process {
    let own = ["--workers", addresses, "--metrics-listen", "127.0.0.1:0"];
    Process::start("stoker-router", &[&own[..], flags].concat())
}

/// Their addresses as a router takes them.
pub fn addresses(workers: &[Process]) -> String {
    workers.iter().map(|worker| worker.address.as_str()).collect::<Vec<_>>().join(",")
}

impl Fleet {
    /// `workers` with a router of their own, which knows all of them already.
    pub async fn of(workers: Vec<Process>) -> Self {
        let router = router(&addresses(&workers), &[]);
        let fleet = Self { workers, router };
        fleet.complete().await;
        fleet
    }

    /// `count` workers on a simulated device.
    pub async fn simulated(count: usize, profile: &str) -> Self {
        Self::of((0..count).map(|_| simulated(profile, &[])).collect()).await
    }

    /// Waits until the router can use every worker.
    pub async fn complete(&self) {
        knows(&self.router, &self.workers).await;
    }

    /// Waits until everything that was held for requests is free: at every worker and at the router.
    pub async fn at_rest(&self) {
        for worker in &self.workers {
            at_rest(worker).await;
        }
        nothing_in_flight(&self.router).await;
    }
}

/// Waits until `router` can use every one of `workers`.
pub async fn knows(router: &Process, workers: &[Process]) {
    let mut all = 0;
    for worker in workers {
        all += blocks(worker).await;
    }
    load_becomes(&mut control(&router.address).await, |load| load.total_kv_blocks == all).await;
}

/// The blocks of a worker's cache.
async fn blocks(worker: &Process) -> u32 {
    let info = control(&worker.address).await.get_model_info(GetModelInfoRequest::default()).await;
    info.unwrap().into_inner().capacity.unwrap().kv_blocks
}

/// Whether a worker has nothing to do and every block is free.
pub fn is_at_rest(load: &Load) -> bool {
    (load.running, load.waiting) == (0, 0) && load.free_kv_blocks == load.total_kv_blocks
}

/// Waits until the worker has nothing to do and every block of its cache is free.
pub async fn at_rest(worker: &Process) {
    load_becomes(&mut control(&worker.address).await, is_at_rest).await;
}

/// Waits until at least `streams` sequences run at `worker` and have had `tokens` tokens or more, by the
/// steps that it has taken: it must have been idle before.
pub async fn in_the_middle(worker: &Process, streams: u32, tokens: u64) {
    let mut watched = control(&worker.address).await;
    let begun = std::cell::Cell::new(None);
    load_becomes(&mut watched, |load| {
        if load.running >= streams && begun.get().is_none() {
            begun.set(Some(load.step));
        }
        load.running >= streams && begun.get().is_some_and(|step| load.step >= step + tokens)
    })
    .await;
}

/// Waits until the router holds nothing for any request.
pub async fn nothing_in_flight(router: &Process) {
    in_flight(router, 0).await;
}

/// Waits until that many requests have arrived at the router and are not over.
pub async fn in_flight(router: &Process, requests: u32) {
    let poll = async {
        while scrape(router).await["stoker_router_requests_in_flight"] != f64::from(requests) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let in_time = timeout(PATIENCE, poll).await.is_ok();
    assert!(in_time, "the router does not come to hold {requests} requests");
}

/// The most memory that a process has had, in MiB.
pub fn peak_memory(process: &Process) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", process.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() / 1024
}

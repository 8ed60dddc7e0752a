//! A router and its workers, each in its own process.

use std::{fs, time::Duration};

use stoker_proto::v1::{GetModelInfoRequest, Load};
use tokio::time::timeout;

use crate::support::{Process, TEST_TIMEOUT, control, scrape, wait_for_load};

/// Profile of a device whose step is slow enough for two cores to serve hundreds of streams with
/// four workers and a router.
pub const STEADY: &str = r#"step = "50ms", prefill_token = "20us""#;
/// Profile of a device that generates the same completions without delay.
pub const INSTANT: &str = "instant";

/// Worker limits that admit all streams of a case at once.
pub const LARGE_LIMITS: [&str; 6] =
    ["--max-num-seqs", "512", "--max-num-batched-tokens", "2048", "--max-num-queued-reqs", "16384"];

/// A router and the workers behind it. Its processes are killed when it is dropped.
pub struct Fleet {
    pub workers: Vec<Process>,
    pub router: Process,
}

/// A worker on a simulated device, with [`LARGE_LIMITS`].
pub fn simulated(profile: &str, flags: &[&str]) -> Process {
    Process::start("stoker-worker", &[&["--simulate", profile][..], &LARGE_LIMITS, flags].concat())
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

/// Addresses of `workers` in the format of the router's `--workers`.
pub fn addresses(workers: &[Process]) -> String {
    workers.iter().map(|worker| worker.address.as_str()).collect::<Vec<_>>().join(",")
}

impl Fleet {
    /// Starts a router for `workers` and waits until it can use all of them.
    pub async fn of(workers: Vec<Process>) -> Self {
        let router = router(&addresses(&workers), &[]);
        let fleet = Self { workers, router };
        fleet.wait_for_workers().await;
        fleet
    }

    /// Starts `count` workers on simulated devices and a router for them.
    pub async fn simulated(count: usize, profile: &str) -> Self {
        Self::of((0..count).map(|_| simulated(profile, &[])).collect()).await
    }

    /// Waits until the router can use every worker.
    pub async fn wait_for_workers(&self) {
        wait_for_workers(&self.router, &self.workers).await;
    }

    /// Waits until every worker is idle and the router holds no request.
    pub async fn wait_idle(&self) {
        for worker in &self.workers {
            wait_idle(worker).await;
        }
        wait_router_idle(&self.router).await;
    }
}

/// Waits until `router` can use every one of `workers`.
pub async fn wait_for_workers(router: &Process, workers: &[Process]) {
    let mut all = 0;
    for worker in workers {
        all += blocks(worker).await;
    }
    wait_for_load(&mut control(&router.address).await, |load| load.total_kv_blocks == all).await;
}

/// Number of KV blocks of a worker.
async fn blocks(worker: &Process) -> u32 {
    let info = control(&worker.address).await.get_model_info(GetModelInfoRequest::default()).await;
    info.unwrap().into_inner().capacity.unwrap().kv_blocks
}

/// Whether a worker has no sequence and every KV block is free.
pub fn is_idle(load: &Load) -> bool {
    (load.running, load.waiting) == (0, 0) && load.free_kv_blocks == load.total_kv_blocks
}

/// Waits until the worker has no sequence and every KV block is free.
pub async fn wait_idle(worker: &Process) {
    wait_for_load(&mut control(&worker.address).await, is_idle).await;
}

/// Waits until at least `streams` sequences run at `worker` and have `tokens` tokens or more,
/// counted by its steps: the worker must have been idle before.
pub async fn wait_mid_stream(worker: &Process, streams: u32, tokens: u64) {
    let mut watched = control(&worker.address).await;
    let begun = std::cell::Cell::new(None);
    wait_for_load(&mut watched, |load| {
        if load.running >= streams && begun.get().is_none() {
            begun.set(Some(load.step));
        }
        load.running >= streams && begun.get().is_some_and(|step| load.step >= step + tokens)
    })
    .await;
}

/// Waits until the router holds no request.
pub async fn wait_router_idle(router: &Process) {
    wait_in_flight(router, 0).await;
}

/// Waits until exactly `requests` requests are in flight at the router.
pub async fn wait_in_flight(router: &Process, requests: u32) {
    let poll = async {
        while scrape(router).await["stoker_router_requests_in_flight"] != f64::from(requests) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let in_time = timeout(TEST_TIMEOUT, poll).await.is_ok();
    assert!(in_time, "the router does not reach {requests} requests in flight");
}

/// Peak resident memory of a process, in MiB.
pub fn peak_memory(process: &Process) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", process.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() / 1024
}

//! Discovery of workers through a real etcd, whose faults must not affect clients.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures::{StreamExt, future::join_all};
use stoker_proto::v1::{GetModelInfoRequest, control_client::ControlClient};
use stoker_shared::discovery::{
    Change, Changes,
    etcd::{self, EtcdConfig},
};
use tokio::{task::JoinHandle, time::timeout};
use tonic::{Code, transport::Channel};

use crate::{
    etcd_server::Etcd,
    support::{Process, complete, control, inference, request},
};

/// Limit of every wait, far longer than any of them takes: a test that reaches it fails.
const TEST_TIMEOUT: Duration = Duration::from_secs(120);
const PREFIX: &str = "/stoker/test/";
/// TTL of every worker's lease, in seconds.
const TTL: u64 = 2;
/// Number of clients that send requests without a pause.
const CLIENTS: usize = 8;

pub fn worker(etcd: &Etcd, id: &str) -> Process {
    let ttl = format!("{TTL}s");
    let flags = ["--etcd", etcd.url(), "--etcd-prefix", PREFIX, "--etcd-lease-ttl", &ttl];
    let own = ["--model", "storyteller", "--worker-id", id, "--drain-timeout", "120s"];
    Process::start("stoker-worker", &[&flags[..], &own].concat())
}

pub fn router(etcd: &Etcd) -> Process {
    Process::start("stoker-router", &["--etcd", etcd.url(), "--etcd-prefix", PREFIX])
}

/// The workers that are registered in etcd.
pub struct RegisteredWorkers {
    changes: Changes,
    known: BTreeSet<String>,
}

impl RegisteredWorkers {
    pub fn of(etcd: &Etcd) -> Self {
        let etcd = vec![etcd.url().parse().unwrap()];
        let changes = etcd::watch(EtcdConfig::new(etcd, PREFIX));
        Self { changes, known: BTreeSet::new() }
    }

    async fn wait_until(&mut self, holds: impl Fn(&BTreeSet<String>) -> bool) {
        while !holds(&self.known) {
            match timeout(TEST_TIMEOUT, self.changes.next()).await.unwrap().unwrap() {
                Change::Insert(added) => {
                    self.known.insert(added.id.to_string());
                }
                Change::Remove(removed) => {
                    self.known.remove(removed.as_str());
                }
                Change::SourceError(_) => {}
            }
        }
    }

    pub async fn wait_for(&mut self, workers: &[&str]) {
        self.wait_until(|known| workers.iter().all(|worker| known.contains(*worker))).await;
    }

    pub async fn wait_until_gone(&mut self, worker: &str) {
        self.wait_until(|known| !known.contains(worker)).await;
    }
}

/// Waits until the router has exactly `workers` live workers with `blocks` KV blocks each.
pub async fn wait_for_live(router: &mut ControlClient<Channel>, workers: u32, blocks: u32) {
    let poll = async {
        loop {
            let info = router.get_model_info(GetModelInfoRequest::default()).await;
            let all = match info {
                Ok(info) => info.into_inner().capacity.unwrap().kv_blocks,
                Err(status) if status.code() == Code::Unavailable => 0,
                Err(status) => panic!("{status:?}"),
            };
            if all == workers * blocks {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(TEST_TIMEOUT, poll).await.unwrap();
}

/// Clients that send one request after the other until they are stopped. Each response must be
/// complete.
struct BackgroundClients {
    stop: Arc<AtomicBool>,
    completed: Arc<AtomicUsize>,
    tasks: Vec<JoinHandle<()>>,
}

impl BackgroundClients {
    async fn start(router: &Process) -> Self {
        let client = inference(&router.address).await;
        let (stop, completed) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
        let run = |user: usize| {
            let (mut client, stop, completed) = (client.clone(), stop.clone(), completed.clone());
            async move {
                while !stop.load(Ordering::Relaxed) {
                    let tokens = 8 + 40 * u32::try_from(user % 3).unwrap();
                    let story = request(&format!("Story {user}"), user as u64, tokens);
                    let completion = complete(&mut client, story).await.unwrap();
                    assert_eq!(completion.ids.len(), tokens as usize);
                    completed.fetch_add(1, Ordering::Relaxed);
                }
            }
        };
        let tasks = (0..CLIENTS).map(|i| tokio::spawn(run(i))).collect();
        Self { stop, completed, tasks }
    }

    /// Waits for several more responses per client on average, including ones requested after now.
    async fn wait_for_progress(&self) {
        let enough = self.completed.load(Ordering::Relaxed) + 4 * CLIENTS;
        let poll = async {
            while self.completed.load(Ordering::Relaxed) < enough {
                let failed = self.tasks.iter().find(|task| task.is_finished());
                assert!(failed.is_none(), "a request failed");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(TEST_TIMEOUT, poll).await.unwrap();
    }

    /// Stops all clients. Fails if any request failed.
    async fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        for task in join_all(self.tasks).await {
            task.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn faults_of_etcd_do_not_affect_clients() {
    for mut etcd in Etcd::each() {
        let (a, b) = (worker(&etcd, "a"), worker(&etcd, "b"));
        let router = router(&etcd);
        let mut info = control(&a.address).await;
        let info = info.get_model_info(GetModelInfoRequest::default()).await.unwrap();
        let blocks = info.into_inner().capacity.unwrap().kv_blocks;
        let mut view = control(&router.address).await;
        wait_for_live(&mut view, 2, blocks).await;
        let clients = BackgroundClients::start(&router).await;
        clients.wait_for_progress().await;

        // etcd is killed and wiped.
        etcd.kill();
        clients.wait_for_progress().await;
        etcd.wipe();
        etcd.start();
        let mut registered = RegisteredWorkers::of(&etcd);
        registered.wait_for(&["a", "b"]).await;
        clients.wait_for_progress().await;
        wait_for_live(&mut view, 2, blocks).await;

        // etcd is paused past the lease. The duration is the fault, not a synchronisation.
        etcd.pause();
        tokio::time::sleep(Duration::from_secs(2 * TTL)).await;
        clients.wait_for_progress().await;
        etcd.resume();
        registered.wait_until_gone("b").await;
        registered.wait_for(&["a", "b"]).await;
        clients.wait_for_progress().await;
        wait_for_live(&mut view, 2, blocks).await;

        // etcd restarts with its data.
        etcd.kill();
        clients.wait_for_progress().await;
        etcd.start();
        let c = worker(&etcd, "c");
        registered.wait_for(&["a", "b", "c"]).await;
        wait_for_live(&mut view, 3, blocks).await;
        clients.wait_for_progress().await;

        // A worker leaves: no request fails, and the router removes it.
        a.terminate();
        registered.wait_until_gone("a").await;
        let status = tokio::task::spawn_blocking(|| a.wait()).await.unwrap();
        assert_eq!(status.code(), Some(0));
        wait_for_live(&mut view, 2, blocks).await;
        clients.wait_for_progress().await;
        clients.stop().await;

        // Workers are killed: their keys expire with their leases, and no worker remains.
        drop((b, c));
        registered.wait_until_gone("b").await;
        let poll = async {
            loop {
                let status =
                    complete(&mut inference(&router.address).await, request("Once", 1, 4)).await;
                let status = status.unwrap_err();
                assert_eq!(status.code(), Code::Unavailable, "{status:?}");
                if status.message().contains("none is known; etcd") {
                    break;
                }
            }
        };
        timeout(TEST_TIMEOUT, poll).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn etcd_may_start_last_and_the_router_reports_what_it_waits_for() {
    for mut etcd in Etcd::each_stopped() {
        let router = router(&etcd);
        let worker = worker(&etcd, "a");
        // The worker serves direct calls meanwhile.
        let direct = complete(&mut inference(&worker.address).await, request("Once", 1, 4)).await;
        assert_eq!(direct.unwrap().ids.len(), 4);
        let mut client = inference(&router.address).await;
        let poll = async {
            loop {
                let status = complete(&mut client, request("Once", 1, 4)).await.unwrap_err();
                assert_eq!(status.code(), Code::Unavailable, "{status:?}");
                let reason = format!("none is known; etcd {} cannot be reached", etcd.url());
                if status.message().contains(&reason) {
                    break;
                }
            }
        };
        timeout(TEST_TIMEOUT, poll).await.unwrap();
        assert!(!is_serving(&router).await);

        etcd.start();
        let mut registered = RegisteredWorkers::of(&etcd);
        registered.wait_for(&["a"]).await;
        let poll = async { while !is_serving(&router).await {} };
        timeout(TEST_TIMEOUT, poll).await.unwrap();
        let routed = complete(&mut client, request("Once", 1, 4)).await.unwrap();
        assert_eq!(routed.accepted.worker, "a");

        // A worker drained by a call is deregistered too.
        let drain = stoker_proto::v1::DrainRequest::default();
        worker.admin_client().await.drain(drain).await.unwrap();
        registered.wait_until_gone("a").await;
    }
}

async fn is_serving(router: &Process) -> bool {
    use tonic_health::pb::{
        HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
    };
    let mut health = HealthClient::new(crate::support::channel(&router.address).await);
    let check = health.check(HealthCheckRequest::default()).await.unwrap();
    check.into_inner().status() == ServingStatus::Serving
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_on_every_interface_registers_the_address_of_its_pod() {
    for etcd in Etcd::each() {
        let mut worker = crate::support::program("stoker-worker");
        worker.args(["--simulate", "instant", "--listen", "0.0.0.0:0", "--etcd", etcd.url()]);
        worker.args(["--allow-plaintext", "--etcd-prefix", PREFIX]).env("POD_IP", "127.0.0.1");
        let worker = Process::spawn(worker);
        let port = worker.address.rsplit(':').next().unwrap();
        assert_eq!(worker.started["advertise"], format!("127.0.0.1:{port}"));
        let router = router(&etcd);
        let poll = async { while !is_serving(&router).await {} };
        timeout(TEST_TIMEOUT, poll).await.unwrap();
        let mut client = inference(&router.address).await;
        let routed = complete(&mut client, request("Once", 1, 4)).await.unwrap();
        assert_eq!(routed.accepted.worker, worker.id);
    }
}

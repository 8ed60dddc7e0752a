//! Workers that the router finds through a real etcd, and what users notice of that etcd's troubles: nothing.

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

/// Far longer than anything here takes: a test that waits so long has failed.
const TEST_TIMEOUT: Duration = Duration::from_secs(120);
const PREFIX: &str = "/stoker/test/";
/// The lease of every worker here, in seconds.
const TTL: u64 = 2;
/// Clients that ask without a pause.
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

/// The workers that etcd names.
pub struct Keys {
    changes: Changes,
    known: BTreeSet<String>,
}

impl Keys {
    pub fn of(etcd: &Etcd) -> Self {
        let etcd = vec![etcd.url().parse().unwrap()];
        let changes = etcd::watch(EtcdConfig::new(etcd, PREFIX));
        Self { changes, known: BTreeSet::new() }
    }

    async fn until(&mut self, holds: impl Fn(&BTreeSet<String>) -> bool) {
        while !holds(&self.known) {
            match timeout(TEST_TIMEOUT, self.changes.next()).await.unwrap().unwrap() {
                Change::Insert(found) => {
                    self.known.insert(found.id.to_string());
                }
                Change::Remove(gone) => {
                    self.known.remove(gone.as_str());
                }
                Change::Trouble(_) => {}
            }
        }
    }

    pub async fn have(&mut self, workers: &[&str]) {
        self.until(|known| workers.iter().all(|worker| known.contains(*worker))).await;
    }

    pub async fn have_no_more(&mut self, worker: &str) {
        self.until(|known| !known.contains(worker)).await;
    }
}

/// Waits until the router has exactly `workers` live workers; one has `blocks` blocks.
pub async fn live(router: &mut ControlClient<Channel>, workers: u32, blocks: u32) {
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

/// Clients that ask one question after the other, until they are told to stop. Each answer must be whole.
struct Users {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicUsize>,
    tasks: Vec<JoinHandle<()>>,
}

impl Users {
    async fn of(router: &Process) -> Self {
        let client = inference(&router.address).await;
        let (stop, answered) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
        let user = |user: usize| {
            let (mut client, stop, answered) = (client.clone(), stop.clone(), answered.clone());
            async move {
                while !stop.load(Ordering::Relaxed) {
                    let tokens = 8 + 40 * u32::try_from(user % 3).unwrap();
                    let story = request(&format!("Story {user}"), user as u64, tokens);
                    let completion = complete(&mut client, story).await.unwrap();
                    assert_eq!(completion.ids.len(), tokens as usize);
                    answered.fetch_add(1, Ordering::Relaxed);
                }
            }
        };
        let tasks = (0..CLIENTS).map(|i| tokio::spawn(user(i))).collect();
        Self { stop, answered, tasks }
    }

    /// Waits until every user has had several more answers, all of them asked for after now.
    async fn go_on(&self) {
        let enough = self.answered.load(Ordering::Relaxed) + 4 * CLIENTS;
        let poll = async {
            while self.answered.load(Ordering::Relaxed) < enough {
                let failed = self.tasks.iter().find(|task| task.is_finished());
                assert!(failed.is_none(), "a request failed");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(TEST_TIMEOUT, poll).await.unwrap();
    }

    /// Waits for all of them. Fails if any request failed.
    async fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        for task in join_all(self.tasks).await {
            task.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn users_notice_nothing_of_what_happens_to_etcd() {
    for mut etcd in Etcd::each() {
        let (a, b) = (worker(&etcd, "a"), worker(&etcd, "b"));
        let router = router(&etcd);
        let mut info = control(&a.address).await;
        let info = info.get_model_info(GetModelInfoRequest::default()).await.unwrap();
        let blocks = info.into_inner().capacity.unwrap().kv_blocks;
        let mut view = control(&router.address).await;
        live(&mut view, 2, blocks).await;
        let users = Users::of(&router).await;
        users.go_on().await;

        // Wiped.
        etcd.kill();
        users.go_on().await;
        etcd.wipe();
        etcd.start();
        let mut keys = Keys::of(&etcd);
        keys.have(&["a", "b"]).await;
        users.go_on().await;
        live(&mut view, 2, blocks).await;

        // Paused past the lease: not to wait for anything, but since that is what this is about.
        etcd.pause();
        tokio::time::sleep(Duration::from_secs(2 * TTL)).await;
        users.go_on().await;
        etcd.go_on();
        keys.have_no_more("b").await;
        keys.have(&["a", "b"]).await;
        users.go_on().await;
        live(&mut view, 2, blocks).await;

        // Restarted on what it had.
        etcd.kill();
        users.go_on().await;
        etcd.start();
        let c = worker(&etcd, "c");
        keys.have(&["a", "b", "c"]).await;
        live(&mut view, 3, blocks).await;
        users.go_on().await;

        // A worker leaves: nobody fails, and the router forgets it.
        a.terminate();
        keys.have_no_more("a").await;
        let status = tokio::task::spawn_blocking(|| a.wait()).await.unwrap();
        assert_eq!(status.code(), Some(0));
        live(&mut view, 2, blocks).await;
        users.go_on().await;
        users.stop().await;

        // Killed, without a goodbye: the keys go with their leases, and nobody is left.
        drop((b, c));
        keys.have_no_more("b").await;
        let left = async {
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
        timeout(TEST_TIMEOUT, left).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn etcd_may_come_last_and_the_router_says_what_it_waits_for() {
    for mut etcd in Etcd::each_stopped() {
        let router = router(&etcd);
        let worker = worker(&etcd, "a");
        // The worker serves all the same.
        let direct = complete(&mut inference(&worker.address).await, request("Once", 1, 4)).await;
        assert_eq!(direct.unwrap().ids.len(), 4);
        let mut client = inference(&router.address).await;
        let told = async {
            loop {
                let status = complete(&mut client, request("Once", 1, 4)).await.unwrap_err();
                assert_eq!(status.code(), Code::Unavailable, "{status:?}");
                let reason = format!("none is known; etcd {} cannot be reached", etcd.url());
                if status.message().contains(&reason) {
                    break;
                }
            }
        };
        timeout(TEST_TIMEOUT, told).await.unwrap();
        assert!(!is_serving(&router).await);

        etcd.start();
        let mut keys = Keys::of(&etcd);
        keys.have(&["a"]).await;
        let found = async { while !is_serving(&router).await {} };
        timeout(TEST_TIMEOUT, found).await.unwrap();
        let routed = complete(&mut client, request("Once", 1, 4)).await.unwrap();
        assert_eq!(routed.accepted.worker, "a");

        // Drained by a call, it leaves too.
        let drain = stoker_proto::v1::DrainRequest::default();
        worker.admin_client().await.drain(drain).await.unwrap();
        keys.have_no_more("a").await;
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

#[test]
fn a_worker_that_listens_everywhere_must_be_told_its_address() {
    let output = crate::support::program("stoker-worker")
        .args(["--model", "storyteller", "--listen", "0.0.0.0:0", "--etcd", "http://127.0.0.1:1"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains("--listen 0.0.0.0") && error.contains("--advertise"), "{error}");
}

//! `stoker.v1.Admin` of the router: the list of workers, and the drain of one of them.

use std::time::Duration;

use stoker_proto::v1::{
    DrainWorkerRequest, ListWorkersRequest, Load, WorkerState, WorkerStatus,
    admin_client::AdminClient,
};
use stoker_router::{HealthConfig, RouterConfig};
use stoker_shared::{ServiceError, VERSION, discovery::dns, serve::admin::AdminListener};
use tokio::net::TcpListener;
use tonic::{Code, Status, transport::Channel};

use crate::support::{
    Cluster, accepted, collect, request, soon,
    worker::{FakeWorker, Script},
};

/// A client of the admin service of a router.
struct Operator {
    client: AdminClient<Channel>,
    _listener: AdminListener,
}

impl Operator {
    async fn of(cluster: &Cluster) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let listener = cluster.router.serve_admin(listener).await.unwrap();
        let client = AdminClient::connect(format!("http://{}", listener.address())).await.unwrap();
        Self { client, _listener: listener }
    }

    async fn workers(&mut self) -> Vec<WorkerStatus> {
        let listed = soon(self.client.list_workers(ListWorkersRequest {})).await.unwrap();
        listed.into_inner().workers
    }

    /// Waits until the worker at the address of `worker` meets `holds`, and returns its status.
    async fn until(
        &mut self,
        worker: &FakeWorker,
        holds: impl Fn(&WorkerStatus) -> bool,
    ) -> WorkerStatus {
        let address = worker.address.to_string();
        soon(async {
            loop {
                let listed = self.workers().await;
                let found = listed.into_iter().find(|listed| listed.address == address);
                if let Some(found) = found.filter(|found| holds(found)) {
                    return found;
                }
            }
        })
        .await
    }

    /// Drains a worker. Returns the number of unfinished requests.
    async fn drain(&mut self, worker: &str, timeout: Option<Duration>) -> Result<u32, Status> {
        let timeout = timeout.and_then(|timeout| timeout.try_into().ok());
        let request = DrainWorkerRequest { worker: worker.into(), timeout };
        Ok(soon(self.client.drain_worker(request)).await?.into_inner().unfinished)
    }
}

const BRIEF: Option<Duration> = Some(Duration::from_millis(50));

#[tokio::test]
async fn every_worker_is_listed_as_this_router_sees_it() {
    let busy = FakeWorker::new("a").always(Script::Stall(1));
    let failing = FakeWorker::new("b").always(Script::Refuse(ServiceError::unavailable("down")));
    // A port that was free a moment ago.
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let health = HealthConfig {
        eject_failures: 1,
        base_ejection_time: Duration::from_secs(300),
        ..HealthConfig::default()
    };
    let listed = [busy.address, failing.address, closed].map(Into::into);
    let config = RouterConfig { health, ..RouterConfig::default() };
    let cluster = Cluster::following(config, dns::lookup(listed)).await;
    soon(cluster.router.wait_ready(2)).await;
    let mut operator = Operator::of(&cluster).await;
    let mut streams = Vec::new();
    // One call is enough, and calls beyond the retry budget would fail.
    while failing.requests().is_empty() {
        streams.push(cluster.generate(request(9)).await.unwrap());
    }
    operator.until(&failing, |listed| listed.state() == WorkerState::Ejected).await;

    let load = Load { queued_tokens: 3, free_kv_blocks: 4, total_kv_blocks: 5, ..Load::default() };
    busy.set_load(load);
    let listed = operator.until(&busy, |listed| listed.load == Some(load)).await;
    let expected = WorkerStatus {
        worker: "a".into(),
        address: busy.address.to_string(),
        model: "story".into(),
        digest: "d1".into(),
        state: WorkerState::Live.into(),
        load: Some(load),
        outstanding_requests: u32::try_from(streams.len()).unwrap(),
        ..WorkerStatus::default()
    };
    assert_eq!(listed, expected);

    let listed = operator.workers().await;
    let names: Vec<_> = listed.iter().map(|listed| listed.worker.as_str()).collect();
    assert_eq!(names, [&closed.to_string(), "a", "b"]);
    assert_eq!((listed[0].state(), listed[0].load), (WorkerState::Gone, None));
    assert!(!listed[0].reason.is_empty(), "{listed:?}");
    let response = operator.client.list_workers(ListWorkersRequest {}).await.unwrap().into_inner();
    assert_eq!((response.version.as_str(), response.not_serving.as_str()), (VERSION, ""));

    drop((busy, failing));
    let poll = async {
        loop {
            let response = operator.client.list_workers(ListWorkersRequest {}).await.unwrap();
            if response.into_inner().not_serving.starts_with("no worker is ready; ") {
                break;
            }
        }
    };
    soon(poll).await;
}

#[tokio::test]
async fn a_drained_worker_finishes_its_requests_and_gets_no_new_ones() {
    let workers = [FakeWorker::new("a"), FakeWorker::new("b")];
    workers.iter().for_each(|worker| worker.script(|_| Script::Stall(1)));
    let cluster = Cluster::of(&[&workers[0], &workers[1]]).await;
    let mut operator = Operator::of(&cluster).await;
    let mut stream = cluster.generate(request(9)).await.unwrap();
    let first = soon(stream.message()).await.unwrap().unwrap();
    let leaving_id = accepted(&[first]).worker.clone();
    workers.iter().for_each(|worker| worker.script(|_| Script::Complete));
    let [a, b] = workers;
    let (leaving, staying) = if leaving_id == "a" { (a, b) } else { (b, a) };

    assert_eq!(operator.drain(&leaving_id, BRIEF).await.unwrap(), 1);
    for _ in 0..20 {
        let (events, _) = collect(cluster.generate(request(1)).await.unwrap()).await;
        assert_ne!(accepted(&events).worker, leaving_id);
    }
    let drained = operator.until(&leaving, |_| true).await;
    assert_eq!((drained.state(), drained.outstanding_requests), (WorkerState::Draining, 1));

    // A report that the worker takes requests does not end it.
    for (free_kv_blocks, draining) in [(7, true), (8, false)] {
        let load = Load { free_kv_blocks, draining, ..Load::default() };
        leaving.set_load(load);
        let reported = |listed: &WorkerStatus| listed.load == Some(load);
        let listed = operator.until(&leaving, reported).await;
        assert_eq!(listed.state(), WorkerState::Draining);
    }

    let mut waiting = AdminClient::clone(&operator.client);
    let again = DrainWorkerRequest { worker: leaving.address.to_string(), timeout: None };
    let waiting = tokio::spawn(async move { waiting.drain_worker(again).await });
    drop(stream);
    assert_eq!(soon(waiting).await.unwrap().unwrap().into_inner().unfinished, 0);

    assert_eq!(operator.drain(&staying.address.to_string(), None).await.unwrap(), 0);
    let error = cluster.generate(request(1)).await.unwrap_err();
    assert_eq!(error.code(), Code::Unavailable);
    assert!(error.message().contains(": draining"), "{error:?}");
}

#[tokio::test]
async fn a_drain_of_an_unknown_or_ambiguous_worker_is_refused() {
    let workers = ["a", "a", "b"].map(FakeWorker::new);
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let addresses: Vec<_> = workers.iter().map(|worker| worker.address).chain([closed]).collect();
    let source = dns::lookup(addresses.iter().copied().map(Into::into));
    let addresses: Vec<_> = addresses.iter().map(ToString::to_string).collect();
    let cluster = Cluster::following(RouterConfig::default(), source).await;
    soon(cluster.router.wait_ready(3)).await;
    let mut operator = Operator::of(&cluster).await;
    for (name, parts) in [
        ("c", &["worker: `c` is no worker of this router; choose one of: ", ", a, a, b"][..]),
        ("", &["worker: `` is no worker"]),
        ("a", &["`a` are several workers", &addresses[0], &addresses[1]]),
        (&addresses[3], &[&addresses[3], "was never reached ("]),
    ] {
        let error = operator.drain(name, BRIEF).await.unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument, "{error:?}");
        for part in parts {
            assert!(error.message().contains(part), "{part} is not in {error:?}");
        }
    }
    assert_eq!(cluster.router.workers().iter().filter(|worker| worker.live).count(), 3);
    assert_eq!(operator.drain(&addresses[0], BRIEF).await.unwrap(), 0);
    assert_eq!(cluster.router.workers().iter().filter(|worker| worker.live).count(), 2);
}

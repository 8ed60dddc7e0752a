//! Outlier detection: workers that fail or are slow are ejected for a while, but at least half
//! stay.

use std::time::Duration;

use futures::future::join_all;
use stoker_router::{HealthConfig, RouterConfig, WorkerView};
use stoker_shared::ServiceError;

use crate::support::{
    Cluster, collect, request, soon, tokens,
    worker::{FakeWorker, Script},
};

/// A configuration with this base ejection time.
fn ejection_time(base_ejection_time: Duration) -> RouterConfig {
    RouterConfig {
        health: HealthConfig { base_ejection_time, ..Default::default() },
        ..Default::default()
    }
}

/// An ejection time that ends during a test.
const SHORT: Duration = Duration::from_millis(1);
/// An ejection time longer than any test.
const LONG: Duration = Duration::from_secs(300);

fn unavailable() -> Script {
    Script::Refuse(ServiceError::unavailable("down"))
}

fn ejected(workers: &[WorkerView]) -> Vec<&str> {
    workers.iter().filter(|worker| worker.ejected).map(|worker| worker.id.as_str()).collect()
}

/// Sends requests until the router's view of its workers meets `holds`.
async fn request_until(cluster: &Cluster, holds: impl Fn(&[WorkerView]) -> bool) {
    soon(async {
        while !holds(&cluster.router.workers()) {
            let calls = (0..8).map(|_| async {
                if let Ok(stream) = cluster.generate(request(10)).await {
                    collect(stream).await;
                }
            });
            join_all(calls).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_failing_worker_is_ejected_and_readmitted_once_it_recovers() {
    let (good, bad) = (FakeWorker::new("good"), FakeWorker::new("bad").always(unavailable()));
    let cluster = Cluster::with(ejection_time(LONG), &[&good, &bad]).await;
    request_until(&cluster, |workers| ejected(workers).len() == 1).await;
    let sent = bad.requests().len();
    for _ in 0..50 {
        let (events, error) = collect(cluster.generate(request(3)).await.unwrap()).await;
        assert_eq!((tokens(&events), error.is_none()), (3, true));
    }
    assert_eq!(cluster.metric("stoker_router_ejections_total{reason=\"failures\"}"), 1);
    assert_eq!(cluster.metric("stoker_router_workers{state=\"ejected\"}"), 1);
    assert_eq!(cluster.metric("stoker_router_workers{state=\"live\"}"), 1);
    assert_eq!(bad.requests().len(), sent);

    let cluster = Cluster::with(ejection_time(SHORT), &[&good, &bad]).await;
    request_until(&cluster, |workers| ejected(workers).len() == 1).await;
    bad.script(|_| Script::Complete);
    request_until(&cluster, |workers| ejected(workers).is_empty()).await;
    let before = bad.requests().len();
    request_until(&cluster, |_| bad.requests().len() > before + 20).await;
}

#[tokio::test]
async fn the_only_worker_is_never_ejected() {
    let worker = FakeWorker::new("a").always(unavailable());
    let cluster = Cluster::with(ejection_time(SHORT), &[&worker]).await;
    for _ in 0..50 {
        cluster.generate(request(1)).await.unwrap_err();
    }
    assert!(worker.requests().len() >= 50, "each request was sent");
    worker.script(|_| Script::Complete);
    cluster.generate(request(1)).await.unwrap();
}

#[tokio::test]
async fn of_four_failing_workers_two_stay_in_use() {
    let workers = ["a", "b", "c", "d"].map(|name| FakeWorker::new(name).always(unavailable()));
    let cluster = Cluster::of(&workers.each_ref()).await;
    request_until(&cluster, |workers| ejected(workers).len() == 2).await;
    let sent: usize = workers.iter().map(|worker| worker.requests().len()).sum();
    for _ in 0..50 {
        cluster.generate(request(1)).await.unwrap_err();
    }
    assert!(ejected(&cluster.router.workers()).len() <= 2);
    assert!(workers.iter().map(|worker| worker.requests().len()).sum::<usize>() >= sent + 50);
}

#[tokio::test]
async fn interrupted_streams_count_as_failures() {
    let (good, bad) = (FakeWorker::new("good"), FakeWorker::new("bad").always(Script::Truncate(2)));
    let cluster = Cluster::of(&[&good, &bad]).await;
    request_until(&cluster, |workers| ejected(workers) == ["bad"]).await;
    drop(good);
    // The ejected worker is now the only one.
    cluster.until(|workers| workers.iter().all(|worker| !worker.ejected)).await;
    let (events, _) = collect(cluster.generate(request(5)).await.unwrap()).await;
    assert_eq!(tokens(&events), 2);
}

#[tokio::test]
async fn a_worker_far_slower_than_its_peers_is_ejected() {
    let fast = || Script::Paced(Duration::from_millis(1));
    let workers = ["a", "b", "c"].map(|name| FakeWorker::new(name).always(fast()));
    workers[1].script(|_| Script::Paced(Duration::from_millis(40)));
    let config = RouterConfig {
        // Excludes failures as the cause.
        health: HealthConfig { eject_failures: 0, ..ejection_time(SHORT).health },
        ..Default::default()
    };
    let cluster = Cluster::with(config, &workers.each_ref()).await;
    request_until(&cluster, |workers| ejected(workers) == ["b"]).await;
    workers[1].script(move |_| fast());
    request_until(&cluster, |workers| ejected(workers).is_empty()).await;
}

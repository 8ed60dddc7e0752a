//! Workers that fail or are slow are left alone for a while, and half of them never.

use std::time::Duration;

use futures::future::join_all;
use stoker_router::{HealthConfig, RouterConfig, WorkerView};
use stoker_shared::ServiceError;

use crate::support::{
    Cluster, ask, collect, soon, tokens,
    worker::{FakeWorker, Script},
};

/// Whoever is out is out for so long.
fn out_for(base_ejection_time: Duration) -> RouterConfig {
    RouterConfig {
        health: HealthConfig { base_ejection_time, ..Default::default() },
        ..Default::default()
    }
}

/// Soon over, so that what comes after it can be seen.
const BRIEF: Duration = Duration::from_millis(1);
/// Longer than any test takes.
const LONG: Duration = Duration::from_secs(300);

fn down() -> Script {
    Script::Refuse(ServiceError::unavailable("down"))
}

fn ejected(workers: &[WorkerView]) -> Vec<&str> {
    workers.iter().filter(|worker| worker.ejected).map(|worker| worker.id.as_str()).collect()
}

/// Asks until the router thinks of its workers as it should.
async fn ask_until(cluster: &Cluster, holds: impl Fn(&[WorkerView]) -> bool) {
    soon(async {
        while !holds(&cluster.router.workers()) {
            let calls = (0..8).map(|_| async {
                if let Ok(stream) = cluster.generate(ask(10)).await {
                    collect(stream).await;
                }
            });
            join_all(calls).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_worker_that_fails_gets_nothing_and_comes_back_when_it_is_well() {
    let (good, bad) = (FakeWorker::new("good"), FakeWorker::new("bad").always(down()));
    let cluster = Cluster::with(out_for(LONG), &[&good, &bad]).await;
    ask_until(&cluster, |workers| ejected(workers).len() == 1).await;
    let asked = bad.requests().len();
    for _ in 0..50 {
        let (events, error) = collect(cluster.generate(ask(3)).await.unwrap()).await;
        assert_eq!((tokens(&events), error.is_none()), (3, true));
    }
    assert_eq!(cluster.metric("stoker_router_ejections_total{reason=\"failures\"}"), 1);
    assert_eq!(cluster.metric("stoker_router_workers{state=\"ejected\"}"), 1);
    assert_eq!(cluster.metric("stoker_router_workers{state=\"live\"}"), 1);
    assert_eq!(bad.requests().len(), asked);

    let cluster = Cluster::with(out_for(BRIEF), &[&good, &bad]).await;
    ask_until(&cluster, |workers| ejected(workers).len() == 1).await;
    bad.script(|_| Script::Answer);
    ask_until(&cluster, |workers| ejected(workers).is_empty()).await;
    let before = bad.requests().len();
    ask_until(&cluster, |_| bad.requests().len() > before + 20).await;
}

#[tokio::test]
async fn the_only_worker_is_never_left_alone() {
    let worker = FakeWorker::new("a").always(down());
    let cluster = Cluster::with(out_for(BRIEF), &[&worker]).await;
    for _ in 0..50 {
        cluster.generate(ask(1)).await.unwrap_err();
    }
    assert!(worker.requests().len() >= 50, "each was tried");
    worker.script(|_| Script::Answer);
    cluster.generate(ask(1)).await.unwrap();
}

#[tokio::test]
async fn of_four_that_fail_two_go_on_being_asked() {
    let workers = ["a", "b", "c", "d"].map(|name| FakeWorker::new(name).always(down()));
    let cluster = Cluster::of(&workers.each_ref()).await;
    ask_until(&cluster, |workers| ejected(workers).len() == 2).await;
    let asked: usize = workers.iter().map(|worker| worker.requests().len()).sum();
    for _ in 0..50 {
        cluster.generate(ask(1)).await.unwrap_err();
    }
    assert!(ejected(&cluster.router.workers()).len() <= 2);
    assert!(workers.iter().map(|worker| worker.requests().len()).sum::<usize>() >= asked + 50);
}

#[tokio::test]
async fn streams_that_break_count_too() {
    let (good, bad) = (FakeWorker::new("good"), FakeWorker::new("bad").always(Script::Truncate(2)));
    let cluster = Cluster::of(&[&good, &bad]).await;
    let is_bad = |workers: &[WorkerView]| {
        let ids: Vec<_> = workers.iter().filter(|w| w.ejected).map(|w| &w.id).collect();
        ids.len() == 1 && ids[0].as_str().ends_with(&bad.address.port().to_string())
    };
    ask_until(&cluster, is_bad).await;
    drop(good);
    // Now the one that is out is all there is.
    cluster.until(|workers| workers.iter().all(|worker| !worker.ejected)).await;
    let (events, _) = collect(cluster.generate(ask(5)).await.unwrap()).await;
    assert_eq!(tokens(&events), 2);
}

#[tokio::test]
async fn a_worker_that_is_far_slower_than_the_others_is_left_alone() {
    let fast = || Script::Paced(Duration::from_millis(1));
    let workers = ["a", "b", "c"].map(|name| FakeWorker::new(name).always(fast()));
    workers[1].script(|_| Script::Paced(Duration::from_millis(40)));
    let config = RouterConfig {
        // So that others' failures cannot be the reason.
        health: HealthConfig { eject_failures: 0, ..out_for(BRIEF).health },
        ..Default::default()
    };
    let cluster = Cluster::with(config, &workers.each_ref()).await;
    let slow = workers[1].address.to_string();
    ask_until(&cluster, |workers| ejected(workers) == [slow.as_str()]).await;
    workers[1].script(move |_| fast());
    ask_until(&cluster, |workers| ejected(workers).is_empty()).await;
}

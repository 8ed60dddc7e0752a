//! Routers that are killed. Their clients must retry, and workers must abort orphaned sequences.

use std::time::Duration;

use tokio::time::{Instant, timeout};

use crate::{
    fault_case::FaultCase,
    fleet::{
        Fleet, STEADY, addresses, is_idle, router, wait_for_workers, wait_idle, wait_mid_stream,
        wait_router_idle,
    },
    proxy::Proxy,
    support::{control, wait_for_load},
};

const STREAMS: &str = "--requests 100 --concurrency 100 --synthetic 16:120";
/// Limit of the time until workers have aborted orphaned sequences.
const ORPHAN_ABORT_LIMIT: Duration = Duration::from_secs(2);

#[tokio::test(flavor = "multi_thread")]
async fn the_router_is_killed() {
    let case = FaultCase::new("the router is killed", STREAMS).await;
    let Fleet { workers, router } = Fleet::simulated(2, STEADY).await;
    let load = case.start(&router.address);
    wait_mid_stream(&workers[0], 20, 20).await;
    // Connects before the router is killed, so that no load report is missed.
    let mut watched = [control(&workers[0].address).await, control(&workers[1].address).await];
    drop(router);
    let killed = Instant::now();
    for worker in &mut watched {
        timeout(ORPHAN_ABORT_LIMIT, wait_for_load(worker, is_idle)).await.unwrap();
    }
    let took = killed.elapsed();
    let results = load.end().await;
    results.assert_outputs_unchanged();
    results.assert_error_codes(&["UNAVAILABLE"]);
    assert_eq!(results.failed(), 100, "{:#}", results.json);
    let note = format!("UNAVAILABLE; workers were free after {} ms", took.as_millis());
    case.report(&results, None, &note);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_router_of_two_is_killed() {
    let case = FaultCase::new("one router of two is killed", STREAMS).await;
    let Fleet { workers, router: victim } = Fleet::simulated(2, STEADY).await;
    let other = router(&addresses(&workers), &[]);
    wait_for_workers(&other, &workers).await;
    let (lost, load) = (case.start(&victim.address), case.start(&other.address));
    let results = load
        .during(async {
            // More streams than one router has there.
            wait_mid_stream(&workers[0], 70, 20).await;
            drop(victim);
        })
        .await;
    let lost = lost.end().await;
    lost.assert_outputs_unchanged();
    lost.assert_error_codes(&["UNAVAILABLE"]);
    assert_eq!(lost.failed(), 100, "{:#}", lost.json);
    results.assert_unaffected();
    for worker in &workers {
        wait_idle(worker).await;
    }
    wait_router_idle(&other).await;
    case.report(
        &results,
        None,
        "clients of the other one; those of the killed one get UNAVAILABLE",
    );
}

/// As behind a Service of Kubernetes: connections stay where they are, new ones go to the other
/// router.
#[tokio::test(flavor = "multi_thread")]
async fn one_router_of_two_is_drained() {
    // Clients send requests at their own pace, also while the router drains.
    let load = "--requests 600 --rate 100 --connections 4 --synthetic 16:60";
    let case = FaultCase::new("one router of two is drained", load).await;
    let Fleet { workers, router: drained } = Fleet::simulated(2, STEADY).await;
    let other = router(&addresses(&workers), &[]);
    wait_for_workers(&other, &workers).await;
    let balancer = Proxy::to(&drained.address).await;
    let load = case.start(&balancer.address);
    let results = load
        .during(async {
            wait_mid_stream(&workers[0], 20, 5).await;
            balancer.redirect_to(&other.address);
            drained.terminate();
            let status = tokio::task::spawn_blocking(|| drained.wait()).await.unwrap();
            assert_eq!(status.code(), Some(0), "its streams ended in time");
        })
        .await;
    results.assert_unaffected();
    for worker in &workers {
        wait_idle(worker).await;
    }
    wait_router_idle(&other).await;
    case.report(&results, None, "SIGTERM; connections get GOAWAY, their streams end there");
}

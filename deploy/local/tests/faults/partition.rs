//! A worker behind a network that silently loses every packet, without a reset or an error. Needs
//! network namespaces, which only root may create.

use std::time::Duration;

use crate::{
    fault_case::{ClientResults, FaultCase},
    fleet::{Fleet, LARGE_LIMITS, STEADY, addresses, router, simulated, wait_mid_stream},
    namespace::{Cut, Namespace},
};

const STREAMS: &str = "--requests 100 --concurrency 100 --synthetic 16:120";
/// Limit of the pause after a stall: the default of `--stall-timeout`, and the time to resume.
const STALL_RECOVERY_LIMIT: Duration = Duration::from_millis(3_100);

/// Cuts off the first worker of two while streams run there, and returns the clients' results. The
/// network heals afterwards; no process is restarted, and the fleet must recover.
async fn run_partition(case: &FaultCase, cut: Cut) -> Option<ClientResults> {
    let namespace = Namespace::new()?;
    let far = namespace.worker(&[&["--simulate", STEADY][..], &LARGE_LIMITS].concat());
    let workers = vec![far, simulated(STEADY, &[])];
    let router = router(&addresses(&workers), &[]);
    let fleet = Fleet { workers, router };
    fleet.wait_for_workers().await;
    let load = case.start(&fleet.router.address);
    let results = load
        .during(async {
            wait_mid_stream(&fleet.workers[0], 20, 20).await;
            namespace.cut(cut);
        })
        .await;
    namespace.heal();
    fleet.wait_for_workers().await;
    fleet.wait_idle().await;
    // The healed worker is used again.
    let healed = case.start(&fleet.router.address).end().await;
    healed.assert_unaffected();
    assert_eq!(healed.json["workers"].as_object().unwrap().len(), 2, "{:#}", healed.json);
    fleet.wait_idle().await;
    Some(results)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: run by .ci/full"]
async fn packets_are_lost_both_ways() {
    let case = FaultCase::new("a partition, both ways", STREAMS).await;
    let Some(results) = run_partition(&case, Cut::Both).await else { return };
    results.assert_unaffected();
    assert!(results.resumed() >= 20, "{:#}", results.json);
    case.report(&results, Some(STALL_RECOVERY_LIMIT), "packets are lost; heals without a restart");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: run by .ci/full"]
async fn packets_from_the_worker_are_lost() {
    let case = FaultCase::new("a partition, from the worker", STREAMS).await;
    let Some(results) = run_partition(&case, Cut::From).await else { return };
    results.assert_unaffected();
    assert!(results.resumed() >= 20, "{:#}", results.json);
    case.report(
        &results,
        Some(STALL_RECOVERY_LIMIT),
        "packets are lost one way; heals without a restart",
    );
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: run by .ci/full"]
async fn packets_to_the_worker_are_lost() {
    let case = FaultCase::new("a partition, to the worker", STREAMS).await;
    let Some(results) = run_partition(&case, Cut::To).await else { return };
    results.assert_unaffected();
    // Acknowledgements are lost too: the worker's send buffers fill up and its stream of tokens
    // stops.
    case.report(&results, None, "packets are lost one way; heals without a restart");
}

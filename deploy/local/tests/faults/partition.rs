//! A worker on the other side of a network that loses every packet: no reset, no error, no word. Where network
//! namespaces may be made, which takes root.

use std::time::Duration;

use crate::{
    fault_case::{ClientResults, FaultCase},
    fleet::{Fleet, LARGE_LIMITS, STEADY, addresses, router, simulated, wait_mid_stream},
    namespace::{Cut, Namespace},
};

const STREAMS: &str = "--requests 100 --concurrency 100 --synthetic 16:120";
/// The stall budget's default, and what resuming may take.
const STALL_RECOVERY_LIMIT: Duration = Duration::from_millis(3_100);

/// What clients see when the first worker of two is cut off while streams run there. After it the network
/// heals; nobody is started again, and everything has to be as it was.
async fn partitioned(case: &FaultCase, cut: Cut) -> Option<ClientResults> {
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
    // As good as new: it is used again.
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
    let Some(results) = partitioned(&case, Cut::Both).await else { return };
    results.assert_unaffected();
    assert!(results.resumed() >= 20, "{:#}", results.json);
    case.report(&results, Some(STALL_RECOVERY_LIMIT), "packets are lost; heals without a restart");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: run by .ci/full"]
async fn packets_from_the_worker_are_lost() {
    let case = FaultCase::new("a partition, from the worker", STREAMS).await;
    let Some(results) = partitioned(&case, Cut::From).await else { return };
    results.assert_unaffected();
    assert!(results.resumed() >= 20, "{:#}", results.json);
    case.report(
        &results,
        Some(STALL_RECOVERY_LIMIT),
        "packets are lost that way; heals without a restart",
    );
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: run by .ci/full"]
async fn packets_to_the_worker_are_lost() {
    let case = FaultCase::new("a partition, to the worker", STREAMS).await;
    let Some(results) = partitioned(&case, Cut::To).await else { return };
    results.assert_unaffected();
    // Acknowledgements are lost too: its buffers fill up, and then nothing comes any more.
    case.report(&results, None, "packets are lost that way; heals without a restart");
}

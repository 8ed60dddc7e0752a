//! Workers that hang with open sockets, and workers that are merely slow.

use std::time::Duration;

use nix::sys::signal::Signal;

use crate::{
    fault_case::FaultCase,
    fleet::{Fleet, STEADY, addresses, is_idle, router, simulated, storyteller, wait_mid_stream},
    kills::{STORIES, STREAMS},
    support::{control, scrape, wait_for_load},
};

/// Limit of the pause after a stall: the default of `--stall-timeout`, and the time to resume.
const STALL_RECOVERY_LIMIT: Duration = Duration::from_millis(3_100);

#[tokio::test(flavor = "multi_thread")]
async fn one_of_four_is_stopped() {
    let case = FaultCase::new("a worker of four is stopped", STREAMS).await;
    let fleet = Fleet::simulated(4, STEADY).await;
    let load = case.start(&fleet.router.address);
    let results = load
        .during(async {
            wait_mid_stream(&fleet.workers[0], 50, 20).await;
            fleet.workers[0].signal(Signal::SIGSTOP);
        })
        .await;
    results.assert_unaffected();
    assert!(
        results.resumed() >= 50,
        "streams of the stopped worker are resumed: {:#}",
        results.json
    );
    wait_for_recovery(&fleet).await;
    case.report(
        &results,
        Some(STALL_RECOVERY_LIMIT),
        "SIGSTOP; continued later, it recovers and aborts orphaned sequences",
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn one_of_two_with_the_bundled_model_is_stopped() {
    let case =
        FaultCase::with_storyteller("a worker of two is stopped, bundled model", STORIES).await;
    let fleet = Fleet::of(vec![storyteller(), storyteller()]).await;
    let load = case.start(&fleet.router.address);
    let results = load
        .during(async {
            wait_mid_stream(&fleet.workers[0], 3, 20).await;
            fleet.workers[0].signal(Signal::SIGSTOP);
        })
        .await;
    results.assert_unaffected();
    assert!(results.resumed() >= 3, "{:#}", results.json);
    wait_for_recovery(&fleet).await;
    case.report(&results, None, "SIGSTOP; all streams on the worker that is left");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_of_four_is_killed_and_another_one_stopped() {
    let case = FaultCase::new("of four workers one is killed, one stopped", STREAMS).await;
    let mut fleet = Fleet::simulated(4, STEADY).await;
    let load = case.start(&fleet.router.address);
    let results = load
        .during(async {
            wait_mid_stream(&fleet.workers[0], 50, 20).await;
            drop(fleet.workers.remove(0));
            fleet.workers[0].signal(Signal::SIGSTOP);
        })
        .await;
    results.assert_unaffected();
    assert!(results.resumed() >= 100, "{:#}", results.json);
    wait_for_recovery(&fleet).await;
    case.report(&results, Some(STALL_RECOVERY_LIMIT), "kill -9 and SIGSTOP at once");
}

/// Continues the first worker and waits until it is usable and holds nothing of the streams that
/// ran when it was stopped.
async fn wait_for_recovery(fleet: &Fleet) {
    fleet.workers[0].signal(Signal::SIGCONT);
    fleet.wait_idle().await;
    fleet.wait_for_workers().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: run by .ci/full"]
async fn a_worker_is_stopped_for_less_than_the_stall_timeout() {
    let load = "--requests 100 --concurrency 100 --synthetic 16:120";
    let case = FaultCase::new("a worker is stopped for half a second", load).await;
    let fleet = Fleet::simulated(2, STEADY).await;
    let load = case.start(&fleet.router.address);
    let results = load
        .during(async {
            wait_mid_stream(&fleet.workers[0], 20, 20).await;
            fleet.workers[0].signal(Signal::SIGSTOP);
            // The duration is the fault, not a synchronisation.
            tokio::time::sleep(Duration::from_millis(500)).await;
            fleet.workers[0].signal(Signal::SIGCONT);
        })
        .await;
    results.assert_unaffected();
    assert_eq!(results.resumed(), 0, "a short stall is waited out: {:#}", results.json);
    fleet.wait_idle().await;
    case.report(&results, None, "SIGSTOP, SIGCONT; nothing is resumed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_worker_gets_less_and_loses_nothing() {
    let load = "--requests 300 --concurrency 60 --synthetic 16:20";
    let case = FaultCase::new("a worker is ten times as slow as another", load).await;
    let workers = vec![simulated(r#"step = "500ms""#, &[]), simulated(STEADY, &[])];
    let slow = workers[0].id.clone();
    let fleet = Fleet::of(workers).await;
    let results = case.start(&fleet.router.address).end().await;
    results.assert_unaffected();
    assert_eq!(results.resumed(), 0, "slowness is no failure: {:#}", results.json);
    let served = results.json["workers"][&slow].as_u64().unwrap_or_default();
    assert!(
        served < results.sent() / 3,
        "load moves to the other worker: {served} on the slow one: {:#}",
        results.json
    );
    fleet.wait_idle().await;
    case.report(&results, None, "load moves to the other one");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: run by .ci/full"]
async fn an_idle_worker_that_is_stopped_gets_nothing_after_a_while() {
    let load = "--requests 200 --concurrency 20 --synthetic 16:40";
    let case = FaultCase::new("an idle worker is stopped", load).await;
    let fleet = Fleet::simulated(2, STEADY).await;
    fleet.workers[0].signal(Signal::SIGSTOP);
    let results = case.start(&fleet.router.address).end().await;
    results.assert_unaffected();
    fleet.workers[0].signal(Signal::SIGCONT);
    wait_for_load(&mut control(&fleet.workers[0].address).await, is_idle).await;
    fleet.wait_for_workers().await;
    case.report(&results, None, "SIGSTOP before the first request; no first token is lost");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_worker_is_hedged_when_the_first_is_slow() {
    let load = "--requests 10 --concurrency 2 --synthetic 200:20";
    let case =
        FaultCase::new("a worker takes four seconds to the first token, --hedge-after 200ms", load)
            .await;
    let workers =
        vec![simulated(r#"step = "50ms", prefill_token = "20ms""#, &[]), simulated(STEADY, &[])];
    // Round robin, so that the slow worker is not avoided from the second request on.
    let flags = ["--policy", "round-robin", "--hedge-after", "200ms"];
    let router = router(&addresses(&workers), &flags);
    let fleet = Fleet { workers, router };
    fleet.wait_for_workers().await;
    let results = case.start(&fleet.router.address).end().await;
    results.assert_unaffected();
    let metrics = scrape(&fleet.router).await;
    let won = metrics.get(r#"stoker_router_hedges_total{outcome="second"}"#);
    let won = won.copied().unwrap_or_default();
    assert!(won >= 1.0, "no hedge won: {metrics:#?}");
    // Losing attempts are cancelled and hold no KV block.
    fleet.wait_idle().await;
    let first = &results.json["ttft_seconds"];
    let note = format!(
        "{won} first tokens came from the second worker; the slowest took {:.1} s",
        first["max"].as_f64().unwrap()
    );
    case.report(&results, None, &note);
}

//! Workers that are killed, as by `kill -9` or the kernel's OOM killer.

use std::time::Duration;

use tonic::Code;
use tonic_types::StatusExt;

use crate::{
    fault_case::FaultCase,
    fleet::{
        Fleet, STEADY, router, simulated, storyteller, wait_for_workers, wait_idle, wait_in_flight,
        wait_mid_stream, wait_router_idle,
    },
    proxy::Proxy,
    support::{inference, read, request, scrape},
};

/// The load for which pauses are promised, 120 tokens a stream.
pub const STREAMS: &str = "--requests 400 --concurrency 400 --synthetic 16:120";
/// The load that two workers with the bundled model can serve in time.
pub const STORIES: &str = "--requests 24 --concurrency 24 --synthetic 16:200";
/// Limit of the pause of a resumed stream: a second, and a prefill step.
pub const RESUME_LIMIT: Duration = Duration::from_millis(1_100);

#[tokio::test(flavor = "multi_thread")]
async fn one_of_four_is_killed() {
    let case = FaultCase::new("a worker of four is killed", STREAMS).await;
    let mut fleet = Fleet::simulated(4, STEADY).await;
    let load = case.start(&fleet.router.address);
    let results = load
        .during(async {
            wait_mid_stream(&fleet.workers[0], 50, 20).await;
            drop(fleet.workers.remove(0));
        })
        .await;
    results.assert_unaffected();
    assert!(results.resumed() >= 50, "streams of the lost worker are resumed: {:#}", results.json);
    fleet.wait_idle().await;
    case.report(&results, Some(RESUME_LIMIT), "kill -9");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_of_two_with_the_bundled_model_is_killed() {
    let case =
        FaultCase::with_storyteller("a worker of two is killed, bundled model", STORIES).await;
    let mut fleet = Fleet::of(vec![storyteller(), storyteller()]).await;
    let load = case.start(&fleet.router.address);
    let results = load
        .during(async {
            wait_mid_stream(&fleet.workers[0], 3, 20).await;
            drop(fleet.workers.remove(0));
        })
        .await;
    results.assert_unaffected();
    assert!(results.resumed() >= 3, "{:#}", results.json);
    fleet.wait_idle().await;
    case.report(&results, None, "kill -9; all streams on the worker that is left");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_is_killed_before_the_first_token() {
    // The prefill of each request takes most of a second.
    let slow = r#"step = "50ms", prefill_token = "4ms""#;
    let load = "--requests 12 --concurrency 12 --synthetic 200:8";
    let case = FaultCase::new("a worker is killed before the first token", load).await;
    let mut fleet = Fleet::simulated(2, slow).await;
    let load = case.start(&fleet.router.address);
    let results = load
        .during(async {
            // A worker reports its load only after its first step.
            wait_in_flight(&fleet.router, 12).await;
            drop(fleet.workers.remove(0));
        })
        .await;
    results.assert_unaffected();
    let metrics = scrape(&fleet.router).await;
    let again = ["stoker_router_retries_total", "stoker_router_resumes_total"];
    let again = |name: &str| again.iter().any(|counter| name.starts_with(counter));
    let count: f64 = metrics.iter().filter(|(name, _)| again(name)).map(|(_, count)| count).sum();
    assert!(count > 0.0, "some requests had been sent to it: {metrics:#?}");
    assert_eq!(results.json["workers"].as_object().unwrap().len(), 1, "{:#}", results.json);
    fleet.wait_idle().await;
    case.report(&results, None, "retried on the other worker");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_only_worker_is_killed_and_comes_back() {
    let load = "--requests 40 --concurrency 40 --synthetic 16:100";
    let case = FaultCase::new("the only worker is killed and started again", load).await;
    let victim = simulated(STEADY, &[]);
    // The proxy keeps the address for the replacement.
    let proxy = Proxy::to(&victim.address).await;
    let router = router(&proxy.address, &[]);
    wait_for_workers(&router, std::slice::from_ref(&victim)).await;
    let load = case.start(&router.address);
    let mut replacement = None;
    let results = load
        .during(async {
            wait_mid_stream(&victim, 40, 20).await;
            drop(victim);
            let worker = simulated(STEADY, &[]);
            proxy.redirect_to(&worker.address);
            replacement = Some(worker);
        })
        .await;
    results.assert_unaffected();
    assert_eq!(results.resumed(), 40, "{:#}", results.json);
    wait_idle(&replacement.unwrap()).await;
    wait_router_idle(&router).await;
    case.report(&results, None, "kill -9; the pause is the time until it is back");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_only_worker_is_killed_for_good() {
    let case =
        FaultCase::new("the only worker is killed for good", "--requests 8 --concurrency 8").await;
    let mut fleet = Fleet::simulated(1, STEADY).await;
    let load = case.start(&fleet.router.address);
    // A stream whose status and tokens are inspected.
    let mut client = inference(&fleet.router.address).await;
    let stream = client.generate(request("Once", 1, 1_000)).await.unwrap().into_inner();
    let mut tokens = 0;
    let results = load
        .during(async {
            wait_mid_stream(&fleet.workers[0], 9, 20).await;
            drop(fleet.workers.remove(0));
        })
        .await;
    let status = read(stream, || tokens += 1).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    let retry = status.get_details_retry_info();
    assert!(retry.is_some_and(|retry| retry.retry_delay.is_some()), "{status:?}");
    assert!(tokens >= 20, "tokens generated so far are delivered: {tokens}");
    results.assert_error_codes(&["UNAVAILABLE"]);
    assert_eq!((results.failed(), results.changed()), (8, 0), "{:#}", results.json);
    fleet.wait_idle().await;
    case.report(&results, None, "UNAVAILABLE with RetryInfo; tokens so far are delivered");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_drains_for_less_than_its_streams_take() {
    let load = "--requests 100 --concurrency 100 --synthetic 16:120";
    let case = FaultCase::new("a worker is terminated and drains for a second", load).await;
    let leaving = simulated(STEADY, &["--drain-timeout", "1s"]);
    let mut fleet = Fleet::of(vec![leaving, simulated(STEADY, &[])]).await;
    let load = case.start(&fleet.router.address);
    let results = load
        .during(async {
            wait_mid_stream(&fleet.workers[0], 20, 20).await;
            let leaving = fleet.workers.remove(0);
            leaving.terminate();
            let status = tokio::task::spawn_blocking(|| leaving.wait()).await.unwrap();
            assert_eq!(status.code(), Some(0), "a drained worker exits with 0");
        })
        .await;
    results.assert_unaffected();
    assert!(results.resumed() >= 20, "{:#}", results.json);
    fleet.wait_idle().await;
    case.report(
        &results,
        Some(RESUME_LIMIT),
        "SIGTERM with --drain-timeout 1s; its unfinished streams are resumed",
    );
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: run by .ci/full"]
async fn three_of_four_are_killed_one_after_the_other() {
    let load = "--requests 200 --concurrency 200 --synthetic 16:400";
    let case = FaultCase::new("three workers of four are killed, one after the other", load).await;
    let mut fleet = Fleet::simulated(4, STEADY).await;
    let load = case.start(&fleet.router.address);
    let results = load
        .during(async {
            for left in (1..4).rev() {
                // Resumed streams join the others: the last worker serves all of them.
                wait_mid_stream(&fleet.workers[0], 200 / (left + 1) * 3 / 4, 20).await;
                drop(fleet.workers.remove(0));
            }
        })
        .await;
    results.assert_unaffected();
    assert!(
        results.count("resumes") > results.resumed(),
        "some streams are resumed more than once: {:#}",
        results.json
    );
    fleet.wait_idle().await;
    case.report(&results, Some(RESUME_LIMIT), "kill -9 each; some are resumed three times");
}

//! Clients of OpenAI's HTTP API, whose worker is lost.

use crate::{
    fault_case::FaultCase,
    fleet::{Fleet, addresses, router, storyteller, wait_for_workers, wait_mid_stream},
    kills::STORIES,
    support::scrape,
};

/// Resumes and retries of a router.
async fn moved(fleet: &Fleet) -> f64 {
    let metrics = scrape(&fleet.router).await;
    let moved = |name: &str| {
        name.starts_with("stoker_router_resumes_total")
            || name.starts_with("stoker_router_retries_total")
    };
    metrics.iter().filter(|(name, _)| moved(name)).map(|(_, count)| count).sum()
}

async fn fleet() -> (Fleet, String) {
    let workers = vec![storyteller(), storyteller()];
    let router = router(&addresses(&workers), &["--http-listen", "127.0.0.1:0"]);
    wait_for_workers(&router, &workers).await;
    let http = router.started["http"].as_str().unwrap().to_owned();
    (Fleet { workers, router }, http)
}

async fn a_worker_is_killed(name: &'static str, api: &str) {
    let (mut fleet, http) = fleet().await;
    let load = format!("{STORIES} --target {api} --model storyteller");
    let case = FaultCase::at(name, &load, &http).await;
    assert_eq!(moved(&fleet).await, 0.0);
    let load = case.start(&http);
    let results = load
        .during(async {
            wait_mid_stream(&fleet.workers[0], 3, 20).await;
            drop(fleet.workers.remove(0));
        })
        .await;
    results.assert_unaffected();
    assert!(moved(&fleet).await >= 3.0, "responses move to the other worker: {:#}", results.json);
    fleet.wait_idle().await;
    case.report(&results, None, "kill -9; over HTTP");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_is_killed_under_chats() {
    a_worker_is_killed("a worker of two is killed under chats over HTTP", "openai-chat").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_is_killed_under_completions() {
    a_worker_is_killed("a worker of two is killed under completions over HTTP", "openai").await;
}

//! Clients of OpenAI's HTTP API, whose worker is lost.

use std::{
    env,
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
};

use crate::{
    etcd_server::skip,
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

/// Starts `deploy/openai/streams.py`, or reports that its client is absent.
fn streams(http: &str) -> Option<Child> {
    let python = env::var_os("STOKER_TEST_PYTHON").unwrap_or_else(|| "python3".into());
    let import = Command::new(&python).args(["-c", "import openai"]).status();
    if !import.is_ok_and(|status| status.success()) {
        skip::absent("the openai package", "set STOKER_TEST_PYTHON to a Python that has it");
        return None;
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../openai/streams.py");
    let mut command = Command::new(python);
    command.arg(script).arg(format!("http://{http}/v1")).stdout(Stdio::piped());
    Some(command.spawn().unwrap())
}

/// Returns the texts of its streams. Calls `fault` when all of them have begun.
fn texts(mut client: Child, fault: impl FnOnce()) -> Vec<String> {
    let mut out = BufReader::new(client.stdout.take().unwrap());
    let mut line = || {
        let mut line = String::new();
        out.read_line(&mut line).unwrap();
        line
    };
    assert_eq!(line(), "streaming\n");
    fault();
    let texts = line();
    assert!(client.wait().unwrap().success());
    serde_json::from_str(&texts).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_is_killed_under_streams_of_the_official_client() {
    let (mut fleet, http) = fleet().await;
    let Some(client) = streams(&http) else { return };
    let undisturbed = tokio::task::block_in_place(|| texts(client, || ()));
    assert_eq!(moved(&fleet).await, 0.0);
    let client = streams(&http).unwrap();
    let disturbed = tokio::task::block_in_place(|| texts(client, || drop(fleet.workers.remove(0))));
    assert_eq!(undisturbed, disturbed);
    assert!(moved(&fleet).await > 0.0, "a response moves to the other worker");
}

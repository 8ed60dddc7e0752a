//! The example against a cluster.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::{process::Output, time::Duration};

use stoker::cluster::Cluster;
use stoker_router::RouterConfig;
use stoker_worker::{ModelSource, WorkerConfig};
use tokio::process::Command;

async fn run(arguments: &[&str]) -> Output {
    let mut program = Command::new(env!("CARGO_BIN_EXE_stoker-example"));
    program.args(arguments).output().await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn it_streams_a_response_and_explains_an_error() {
    let (listen, source) = ("127.0.0.1:0".parse().unwrap(), ModelSource::Bundled);
    let (worker, router) = (WorkerConfig::default(), RouterConfig::default());
    let cluster = Cluster::start(listen, source, 1, worker, router).await.unwrap();
    let endpoint = cluster.address().to_string();

    let story = ["Once upon a time", "--seed", "1", "--max-tokens", "30", "--endpoint", &endpoint];
    let first = run(&story).await;
    let text = String::from_utf8(first.stdout).unwrap();
    assert!(first.status.success() && text.split_whitespace().count() > 10, "{text}");
    assert_eq!(run(&story).await.stdout, text.as_bytes(), "a seed fixes the response");

    let hot = run(&["Once", "--temperature", "101", "--endpoint", &endpoint]).await;
    let error = String::from_utf8(hot.stderr).unwrap();
    assert!(!hot.status.success() && error.contains("sampling.temperature: "), "{error}");

    cluster.shutdown(Duration::from_secs(5)).await;
    let gone = run(&["Once", "--endpoint", &endpoint]).await;
    let error = String::from_utf8(gone.stderr).unwrap();
    assert!(!gone.status.success() && error.contains(&endpoint), "{error}");
}

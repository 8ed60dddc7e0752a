//! A client against a cluster that is full.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::time::Duration;

use futures::future::join_all;
use stoker::cluster::Cluster;
use stoker_client::{Client, Deadline, EventKind, GenerateRequest, RetryPolicy, chat, proto};
use stoker_router::RouterConfig;
use stoker_worker::{ModelSource, WorkerConfig};
use tonic::Code;

const MINUTE: Duration = Duration::from_secs(60);

/// A worker that runs one request and queues none, behind a router that does not try again.
async fn full_cluster() -> Cluster {
    let worker =
        WorkerConfig { max_num_seqs: 1, max_num_queued_reqs: 0, ..WorkerConfig::default() };
    let mut router = RouterConfig::default();
    router.resume.retry_attempts = 1;
    let listen = "127.0.0.1:0".parse().unwrap();
    Cluster::start(listen, ModelSource::Bundled, 1, worker, router).await.unwrap()
}

async fn respond(client: &Client) -> Result<String, Code> {
    let stopping =
        proto::Stopping { max_tokens: Some(100), ignore_eos: true, ..proto::Stopping::default() };
    let request = GenerateRequest { stopping: Some(stopping), ..chat([("user", "Once")]) };
    let deadline = Deadline::after(MINUTE);
    let mut response = client.generate(request, deadline).await.map_err(|error| error.code())?;
    let mut text = String::new();
    while let Some(event) = response.next().await.map_err(|error| error.code())? {
        if let EventKind::Token(token) = event.kind {
            text.push_str(&token.text);
        }
    }
    Ok(text)
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_requests_are_sent_again_when_the_cluster_says_so() {
    let cluster = full_cluster().await;
    let client = Client::connect(&cluster.address().into()).await.unwrap();
    assert_eq!(client.models().await.unwrap()[0].model, "storyteller");

    let impatient = client.clone().with_retries(RetryPolicy::NEVER);
    let refused = join_all((0..4).map(|_| respond(&impatient))).await;
    assert!(refused.contains(&Err(Code::ResourceExhausted)), "{refused:?}");

    let patient = RetryPolicy { max_attempts: 1_000, ..RetryPolicy::default() };
    let client = client.with_retries(patient);
    let responses = join_all((0..4).map(|_| respond(&client))).await;
    assert!(responses.iter().all(Result::is_ok), "{responses:?}");
}

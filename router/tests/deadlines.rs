//! Deadlines and cancellations, on real connections.

use std::time::Duration;

use futures::StreamExt;
use stoker_router::RouterConfig;
use tonic::{Code, Request};

use crate::support::{
    Cluster, collect, request, soon, tokens,
    worker::{FakeWorker, Script},
};

fn with_timeout(timeout: &str) -> Request<stoker_proto::v1::GenerateRequest> {
    let mut request = Request::new(request(10));
    request.metadata_mut().insert("grpc-timeout", timeout.parse().unwrap());
    request
}

#[tokio::test]
async fn a_deadline_applies_in_the_middle_of_a_stream() {
    let worker = FakeWorker::new("a").always(Script::Stall(2));
    let cluster = Cluster::of(&[&worker]).await;
    let stream = cluster.without_client_deadline().generate(with_timeout("300m")).await.unwrap();
    let (events, error) = collect(stream.into_inner()).await;
    assert_eq!(tokens(&events), 2, "tokens before the deadline are delivered");
    assert_eq!(error.unwrap().code(), Code::DeadlineExceeded);
    worker.open(0).await;

    let sent = worker.timeouts()[0].clone().unwrap();
    let micros: u64 = sent.trim_end_matches('u').parse().unwrap();
    assert!(micros <= 300_000, "the remaining time is forwarded: {sent}");
}

#[tokio::test]
async fn a_deadline_applies_before_the_worker_accepts() {
    let worker = FakeWorker::new("a").always(Script::Hang);
    let cluster = Cluster::of(&[&worker]).await;
    let status =
        cluster.without_client_deadline().generate(with_timeout("200m")).await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded, "{}", status.message());
    assert_eq!(worker.requests().len(), 1, "it is not retried");
    worker.open(0).await;
}

#[tokio::test]
async fn a_malformed_deadline_is_refused() {
    let worker = FakeWorker::new("a");
    let cluster = Cluster::of(&[&worker]).await;
    let status = cluster.generate(with_timeout("soon")).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(status.message().contains("grpc-timeout"));
}

#[tokio::test]
async fn a_cancellation_stops_the_worker() {
    let worker = FakeWorker::new("a").always(Script::Stall(1));
    let cluster = Cluster::of(&[&worker]).await;
    let mut stream = cluster.generate(request(10)).await.unwrap();
    soon(stream.next()).await.unwrap().unwrap();
    worker.open(1).await;
    drop(stream);
    worker.open(0).await;
    cluster.until(|workers| workers[0].outstanding_tokens == 0 && workers[0].streams == 0).await;
}

#[tokio::test]
async fn a_cancellation_before_the_worker_accepts_stops_it_too() {
    let worker = FakeWorker::new("a").always(Script::Hang);
    let cluster = Cluster::of(&[&worker]).await;
    let mut client = cluster.client();
    let call = tokio::spawn(async move { client.generate(request(10)).await });
    worker.open(1).await;
    call.abort();
    worker.open(0).await;
    cluster.until(|workers| workers[0].streams == 0).await;
}

#[tokio::test]
async fn a_full_queue_returns_a_retry_delay() {
    let worker = FakeWorker::new("a").always(Script::Stall(1));
    let config = RouterConfig { max_concurrent_streams: 1, queue_size: 0, ..Default::default() };
    let cluster = Cluster::with(config, &[&worker]).await;
    let running = cluster.generate(request(10)).await.unwrap();
    let status = cluster.generate(request(10)).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    let info = tonic_types::StatusExt::get_details_retry_info(&status).unwrap();
    assert!(info.retry_delay.unwrap() >= Duration::from_millis(500));
    assert!(status.metadata().contains_key("grpc-retry-pushback-ms"));

    // The slot becomes free with the end of the stream, not of the connection.
    drop(running);
    worker.script(|_| Script::Complete);
    cluster.until(|workers| workers[0].streams == 0).await;
    let next = soon(async {
        loop {
            // The permit is released a moment after the reservation.
            if let Ok(stream) = cluster.generate(request(2)).await {
                break stream;
            }
        }
    });
    assert_eq!(tokens(&collect(next.await).await.0), 2);
}

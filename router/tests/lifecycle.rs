//! Health service, draining and shutdown.

use std::time::Duration;

use futures::StreamExt;
use stoker_proto::v1::{DrainRequest, WatchLoadRequest, admin_client::AdminClient};
use tokio::net::TcpListener;
use tonic::Code;
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use crate::support::{
    Cluster, collect, request, soon, tokens,
    worker::{FakeWorker, Script},
};

#[tokio::test]
async fn serving_only_while_a_worker_lives() {
    let worker = FakeWorker::new("a");
    let cluster = Cluster::of(&[&worker]).await;
    let mut health = HealthClient::new(cluster.channel());
    let request = HealthCheckRequest { service: "stoker.v1.Inference".into() };
    let watch = health.watch(request).await.unwrap();
    let mut states = watch.into_inner().map(|state| state.unwrap().status());
    let mut until = async |wanted| {
        soon(async { while states.next().await != Some(wanted) {} }).await;
    };
    until(ServingStatus::Serving).await;
    drop(worker);
    until(ServingStatus::NotServing).await;
}

#[tokio::test]
async fn shutdown_lets_streams_finish() {
    let worker = FakeWorker::new("a").always(Script::Stall(1));
    let cluster = Cluster::of(&[&worker]).await;
    let mut health = HealthClient::new(cluster.channel());
    let watch = health.watch(HealthCheckRequest::default()).await.unwrap();
    let mut states = watch.into_inner();
    let mut loads = cluster.control().watch_load(WatchLoadRequest::default()).await.unwrap();
    let running = cluster.generate(request(9)).await.unwrap();
    let mut client = cluster.client();

    let shutdown = tokio::spawn(cluster.router.shutdown(Duration::from_secs(60)));
    soon(async {
        while states.next().await.unwrap().unwrap().status() != ServingStatus::NotServing {}
    })
    .await;
    // The health service reports it first. The connection takes no more calls, and once GOAWAY must
    // have been read, those of new connections are refused.
    soon(async {
        loop {
            match client.generate(request(1)).await {
                Ok(_) => {}
                // hyper notices GOAWAY with the next call, which it does not send.
                Err(status) if status.code() == Code::Cancelled => {}
                Err(status) => {
                    assert_eq!(status.code(), Code::Unavailable);
                    assert_eq!(status.message(), "the router is draining");
                    break;
                }
            }
        }
    })
    .await;
    assert!(!shutdown.is_finished());
    worker.open(1).await;
    drop(running);
    assert_eq!(soon(shutdown).await.unwrap(), 0);
    // The watches have ended, so nothing holds the connection open.
    soon(async {
        while let Some(Ok(state)) = states.next().await {
            assert_ne!(state.status(), ServingStatus::NotServing, "it was reported already");
        }
    })
    .await;
    soon(async { while loads.get_mut().next().await.is_some_and(|load| load.is_ok()) {} }).await;
}

#[tokio::test]
async fn shutdown_interrupts_streams_that_do_not_finish() {
    let worker = FakeWorker::new("a").always(Script::Stall(1));
    let cluster = Cluster::of(&[&worker]).await;
    let stream = cluster.generate(request(9)).await.unwrap();
    assert_eq!(soon(cluster.router.shutdown(Duration::from_millis(50))).await, 1);
    let (events, error) = collect(stream).await;
    assert_eq!(tokens(&events), 1);
    assert_eq!(error.unwrap().code(), Code::Unavailable);
    worker.open(0).await;
}

#[tokio::test]
async fn drain_returns_once_the_last_stream_has_ended() {
    let worker = FakeWorker::new("a").always(Script::Stall(1));
    let cluster = Cluster::of(&[&worker]).await;
    let stream = cluster.generate(request(9)).await.unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let admin = cluster.router.serve_admin(listener).await.unwrap();
    let address = format!("http://{}", admin.address());
    let mut operator = AdminClient::connect(address).await.unwrap();
    let brief = DrainRequest { timeout: Duration::from_millis(50).try_into().ok() };
    let response = soon(operator.drain(brief)).await.unwrap();
    assert_eq!(response.into_inner().unfinished, 1);
    assert_eq!(cluster.generate(request(1)).await.unwrap_err().code(), Code::Unavailable);
    let waiting = tokio::spawn(async move { operator.drain(DrainRequest::default()).await });
    drop(stream);
    let response = soon(waiting).await.unwrap().unwrap();
    assert_eq!(response.into_inner().unfinished, 0);
}

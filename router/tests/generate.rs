//! Valid and invalid requests.

use std::time::{Duration, Instant};

use stoker_proto::v1::{
    GenerateRequest, Routing, Sampling, Timings, generate_request::Input, generate_response::Event,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tonic::Code;
use tonic_types::StatusExt;

use crate::support::{
    Cluster, accepted, collect, finished, request, soon, tokens,
    worker::{FakeWorker, Script},
};

#[tokio::test]
async fn streams_a_response() {
    let worker = FakeWorker::new("a");
    let cluster = Cluster::of(&[&worker]).await;
    let (events, error) = collect(cluster.generate(request(5)).await.unwrap()).await;
    assert!(error.is_none());
    assert_eq!(tokens(&events), 5);

    let sent = &worker.requests()[0];
    let accepted = accepted(&events);
    assert_eq!(accepted.worker, "a");
    assert_eq!(accepted.request_id, sent.request_id);
    assert_eq!(sent.request_id.len(), 36, "the router generated an id");
    let seed = sent.sampling.as_ref().unwrap().seed;
    assert_eq!(seed, Some(accepted.seed), "and a seed");
    assert_eq!(sent.model, "story", "an empty name means the only model");
    assert_eq!(sent.routing.as_ref().unwrap().attempt, 1);
}

#[tokio::test]
async fn timings_sum_to_the_wall_time() {
    let worker = FakeWorker::new("a");
    let cluster = Cluster::of(&[&worker]).await;
    let start = Instant::now();
    let (events, _) = collect(cluster.generate(request(5)).await.unwrap()).await;
    let wall = start.elapsed();
    let timings: &Timings = finished(&events).timings.as_ref().unwrap();
    let of = |d: Option<prost_types::Duration>| Duration::try_from(d.unwrap()).unwrap();
    let total = of(timings.total);
    let sum = of(timings.admission) + of(timings.route) + of(timings.attempts);
    assert_eq!(sum, total);
    assert!(!total.is_zero() && total <= wall, "{total:?} of {wall:?}");
}

#[tokio::test]
async fn choices_finish_one_by_one_and_the_last_ends_the_stream() {
    let worker = FakeWorker::new("a");
    let cluster = Cluster::of(&[&worker]).await;
    let sampling = Some(Sampling { num_sequences: Some(3), ..Default::default() });
    let three = GenerateRequest { sampling, ..request(5) };
    let (events, error) = collect(cluster.generate(three.clone()).await.unwrap()).await;
    assert!(error.is_none(), "{error:?}");
    assert_eq!(tokens(&events), 15);
    let ends: Vec<_> = events[16..]
        .iter()
        .map(|end| match &end.event {
            Some(Event::Finished(f)) => (end.choice, f.usage.is_some(), f.timings.is_some()),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(ends, [(2, false, false), (1, false, false), (0, true, true)]);
    // Only the last event has the router's own timings.
    assert!(finished(&events).timings.as_ref().unwrap().total.is_some());

    // A response with two of three choices finished is incomplete: the third one is resumed.
    worker.script(|_| Script::Unfinished);
    let (events, error) = collect(cluster.generate(three).await.unwrap()).await;
    assert!(error.is_none(), "{error:?}");
    assert_eq!(events.len(), 1 + 15 + 3);
    assert_eq!(finished(&events).timings.as_ref().unwrap().resumes, 1);
}

#[tokio::test]
async fn events_of_another_attempt_are_dropped() {
    let worker = FakeWorker::new("a").always(Script::OtherAttempts);
    let cluster = Cluster::of(&[&worker]).await;
    let (events, error) = collect(cluster.generate(request(5)).await.unwrap()).await;
    assert!(error.is_none());
    assert_eq!(events.len(), 1 + 5 + 1);
    assert!(events.iter().all(|event| event.attempt == 1));
}

#[tokio::test]
async fn invalid_parameters_are_named() {
    let worker = FakeWorker::new("a");
    let cluster = Cluster::of(&[&worker]).await;
    let request = GenerateRequest {
        sampling: Some(Sampling {
            temperature: Some(f32::NAN),
            top_p: Some(2.0),
            ..Default::default()
        }),
        ..request(1)
    };
    let status = cluster.generate(request).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    let bad = status.get_details_bad_request().unwrap();
    let fields: Vec<_> = bad.field_violations.iter().map(|v| &v.field).collect();
    assert_eq!(fields, ["sampling.temperature", "sampling.top_p"]);
    assert!(worker.requests().is_empty());
}

#[tokio::test]
async fn routing_fields_from_clients_are_refused() {
    let worker = FakeWorker::new("a");
    let cluster = Cluster::of(&[&worker]).await;
    let request = GenerateRequest {
        routing: Some(Routing { attempt: 7, ..Default::default() }),
        ..request(1)
    };
    let status = cluster.generate(request).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(status.message().contains("routing"), "{}", status.message());
}

#[tokio::test]
async fn the_error_of_an_unknown_model_names_the_available_ones() {
    let (a, b) = (FakeWorker::of_model("a", "one"), FakeWorker::of_model("b", "two"));
    let cluster = Cluster::of(&[&a, &b]).await;
    let named = |model: &str| GenerateRequest { model: model.into(), ..request(1) };
    let status = cluster.generate(named("three")).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
    assert!(status.message().contains("one, two"), "{}", status.message());

    let status = cluster.generate(named("")).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument, "ambiguous");

    let (events, _) = collect(cluster.generate(named("two")).await.unwrap()).await;
    assert_eq!(accepted(&events).worker, "b");
}

#[tokio::test]
async fn a_message_that_is_too_large_does_not_close_the_connection() {
    let worker = FakeWorker::new("a");
    let cluster = Cluster::of(&[&worker]).await;
    let huge = GenerateRequest { input: Some(Input::Prompt("x".repeat(5 << 20))), ..request(1) };
    let status = cluster.generate(huge).await.unwrap_err();
    assert_eq!(status.code(), Code::OutOfRange, "{}", status.message());
    let (events, _) = collect(cluster.generate(request(2)).await.unwrap()).await;
    assert_eq!(tokens(&events), 2);
}

#[tokio::test]
async fn garbage_on_a_connection_does_not_affect_the_server() {
    let worker = FakeWorker::new("a");
    let cluster = Cluster::of(&[&worker]).await;
    let mut socket = tokio::net::TcpStream::connect(cluster.router.address()).await.unwrap();
    socket.write_all(&[0xff; 4096]).await.unwrap();
    // The router closes the connection, with or without a GOAWAY frame.
    let mut received = Vec::new();
    let _ = soon(socket.read_to_end(&mut received)).await;
    let (events, _) = collect(cluster.generate(request(2)).await.unwrap()).await;
    assert_eq!(tokens(&events), 2);
}

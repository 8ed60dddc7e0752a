//! Workers that fail, and what another one can do about it.

use stoker_proto::v1::generate_response::Event;
use stoker_shared::ServiceError;
use tonic::Code;

use crate::support::{
    Cluster, accepted, ask, collect, tokens,
    worker::{FakeWorker, Script},
};

fn unavailable() -> ServiceError {
    ServiceError::unavailable("gone")
}

#[tokio::test]
async fn before_the_first_token_another_worker_answers() {
    let good = FakeWorker::new("good");
    // A worker says itself that it drains, between two reports of its load.
    let leaves = || ServiceError::Draining("the worker".into());
    for script in [
        Script::Refuse(leaves()),
        Script::Refuse(unavailable()),
        Script::Fail(0, leaves()),
        Script::Fail(0, unavailable()),
        Script::Truncate(0),
    ] {
        let bad = FakeWorker::new("bad").always(script);
        let cluster = Cluster::of(&[&good, &bad]).await;
        // The retry budget begins with ten.
        while bad.requests().len() < 5 {
            let (events, error) = collect(cluster.generate(ask(3)).await.unwrap()).await;
            assert!(error.is_none(), "{error:?}");
            assert_eq!(tokens(&events), 3);
            let mut told = events.iter().filter_map(|e| match &e.event {
                Some(Event::Accepted(accepted)) => Some(accepted.worker.as_str()),
                _ => None,
            });
            assert_eq!(told.next_back(), Some("good"), "the client knows who answered");
        }
    }
}

#[tokio::test]
async fn the_same_worker_is_not_asked_twice_in_a_row() {
    let workers = ["a", "b"].map(|n| FakeWorker::new(n).always(Script::Refuse(unavailable())));
    let cluster = Cluster::of(&[&workers[0], &workers[1]]).await;
    // As many requests as the retry budget allows at the start.
    for _ in 0..5 {
        cluster.generate(ask(3)).await.unwrap_err();
    }
    let mut asked: Vec<_> = workers
        .iter()
        .enumerate()
        .flat_map(|(i, worker)| worker.requests().into_iter().map(move |r| (r, i)))
        .map(|(request, i)| (request.request_id, request.routing.unwrap().attempt, i))
        .collect();
    asked.sort();
    assert_eq!(asked.len(), 15);
    for attempts in asked.chunks(3) {
        let [first, second, third] = [0, 1, 2].map(|i| attempts[i].2);
        assert!(first != second && second != third, "{attempts:?}");
    }
}

#[tokio::test]
async fn a_request_that_is_wrong_is_not_tried_again() {
    let wrong = ServiceError::invalid("prompt", "5000 tokens are more than 4096");
    let worker = FakeWorker::new("a").always(Script::Refuse(wrong));
    let cluster = Cluster::of(&[&worker]).await;
    let status = cluster.generate(ask(3)).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert_eq!(status.message(), "prompt: 5000 tokens are more than 4096");
    assert_eq!(worker.requests().len(), 1);
}

#[tokio::test]
async fn a_storm_of_failures_adds_a_fifth_of_load_at_most() {
    let worker = FakeWorker::new("a").always(Script::Refuse(unavailable()));
    let cluster = Cluster::of(&[&worker]).await;
    for _ in 0..200 {
        cluster.generate(ask(3)).await.unwrap_err();
    }
    let extra = worker.requests().len() - 200;
    // A fifth of 200, and the ten that are saved up at the start.
    assert!((40..=50).contains(&extra), "{extra}");
}

#[tokio::test]
async fn a_worker_that_dies_before_its_first_token_costs_nothing() {
    let doomed = FakeWorker::new("doomed").always(Script::Stall(0));
    let other = FakeWorker::new("other").always(Script::Stall(0));
    let cluster = Cluster::of(&[&doomed, &other]).await;
    let stream = cluster.generate(ask(3)).await.unwrap();
    let on_doomed = !doomed.requests().is_empty();
    let (dies, lives) = if on_doomed { (doomed, other) } else { (other, doomed) };
    lives.script(|_| Script::Answer);
    drop(dies);
    let (events, error) = collect(stream).await;
    assert!(error.is_none(), "{error:?}");
    assert_eq!(tokens(&events), 3);
    assert!(!accepted(&events).worker.is_empty());
}

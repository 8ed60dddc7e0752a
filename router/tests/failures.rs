//! Failing workers, and retries on another one.

use stoker_proto::v1::generate_response::Event;
use stoker_shared::ServiceError;
use tonic::Code;

use crate::support::{
    Cluster, accepted, collect, request, tokens,
    worker::{FakeWorker, Script},
};

fn unavailable() -> ServiceError {
    ServiceError::unavailable("gone")
}

#[tokio::test]
async fn a_failure_before_the_first_token_is_retried_on_another_worker() {
    let good = FakeWorker::new("good");
    // A worker returns that it drains, between two load reports.
    let draining = || ServiceError::Draining("the worker".into());
    for script in [
        Script::Refuse(draining()),
        Script::Refuse(unavailable()),
        Script::Fail(0, draining()),
        Script::Fail(0, unavailable()),
        Script::Truncate(0),
    ] {
        let bad = FakeWorker::new("bad").always(script);
        let cluster = Cluster::of(&[&good, &bad]).await;
        // The retry budget starts at ten.
        while bad.requests().len() < 5 {
            let (events, error) = collect(cluster.generate(request(3)).await.unwrap()).await;
            assert!(error.is_none(), "{error:?}");
            assert_eq!(tokens(&events), 3);
            let mut accepted_by = events.iter().filter_map(|e| match &e.event {
                Some(Event::Accepted(accepted)) => Some(accepted.worker.as_str()),
                _ => None,
            });
            assert_eq!(accepted_by.next_back(), Some("good"), "the event names the worker");
        }
    }
}

#[tokio::test]
async fn consecutive_attempts_go_to_different_workers() {
    let workers = ["a", "b"].map(|n| FakeWorker::new(n).always(Script::Refuse(unavailable())));
    let cluster = Cluster::of(&[&workers[0], &workers[1]]).await;
    // As many requests as the retry budget allows at the start.
    for _ in 0..5 {
        cluster.generate(request(3)).await.unwrap_err();
    }
    let mut sent: Vec<_> = workers
        .iter()
        .enumerate()
        .flat_map(|(i, worker)| worker.requests().into_iter().map(move |r| (r, i)))
        .map(|(request, i)| (request.request_id, request.routing.unwrap().attempt, i))
        .collect();
    sent.sort();
    assert_eq!(sent.len(), 15);
    for attempts in sent.chunks(3) {
        let [first, second, third] = [0, 1, 2].map(|i| attempts[i].2);
        assert!(first != second && second != third, "{attempts:?}");
    }
}

#[tokio::test]
async fn an_invalid_request_is_not_retried() {
    let invalid = ServiceError::invalid("prompt", "5000 tokens are more than 4096");
    let worker = FakeWorker::new("a").always(Script::Refuse(invalid));
    let cluster = Cluster::of(&[&worker]).await;
    let status = cluster.generate(request(3)).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert_eq!(status.message(), "prompt: 5000 tokens are more than 4096");
    assert_eq!(worker.requests().len(), 1);
}

#[tokio::test]
async fn retries_add_at_most_a_fifth_of_load() {
    let worker = FakeWorker::new("a").always(Script::Refuse(unavailable()));
    let cluster = Cluster::of(&[&worker]).await;
    for _ in 0..200 {
        cluster.generate(request(3)).await.unwrap_err();
    }
    let extra = worker.requests().len() - 200;
    // A fifth of 200, and the ten of the initial retry budget.
    assert!((40..=50).contains(&extra), "{extra}");
}

#[tokio::test]
async fn a_worker_lost_before_its_first_token_is_replaced() {
    let first = FakeWorker::new("first").always(Script::Stall(0));
    let other = FakeWorker::new("other").always(Script::Stall(0));
    let cluster = Cluster::of(&[&first, &other]).await;
    let stream = cluster.generate(request(3)).await.unwrap();
    let on_first = !first.requests().is_empty();
    let (lost, live) = if on_first { (first, other) } else { (other, first) };
    live.script(|_| Script::Complete);
    drop(lost);
    let (events, error) = collect(stream).await;
    assert!(error.is_none(), "{error:?}");
    assert_eq!(tokens(&events), 3);
    assert!(!accepted(&events).worker.is_empty());
}

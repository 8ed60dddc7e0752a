//! Streams that lose their worker in the middle. They are resumed on another worker of the same
//! digest, which the client does not notice.

use std::time::Duration;

use stoker_proto::v1::{
    GenerateRequest, GenerateResponse, Load, Sampling, generate_response::Event,
};
use stoker_router::{ResumeConfig, RouterConfig};
use stoker_shared::{ServiceError, discovery::Registry};
use tonic::Code;

use crate::support::{
    Cluster, candidate, collect, finished, request, soon,
    worker::{FakeWorker, Script},
};

/// Tokens of a response.
const TOKENS: u32 = 6;
/// Tokens that a worker sends before it stalls or fails.
const TOKENS_BEFORE_FAULT: u32 = 2;

/// A configuration with the shortest allowed timeouts.
fn short_timeouts() -> RouterConfig {
    let resume = ResumeConfig {
        stall_timeout: Duration::from_millis(1_500),
        token_timeout: Duration::from_millis(400),
        resume_timeout: Duration::from_millis(300),
        ..Default::default()
    };
    RouterConfig { resume, ..Default::default() }
}

/// Returns the received token ids of each of `choices` choices.
fn ids(events: &[GenerateResponse], choices: usize) -> Vec<Vec<u32>> {
    let mut ids = vec![Vec::new(); choices];
    for event in events {
        if let Some(Event::Token(delta)) = &event.event {
            ids[event.choice as usize].extend(&delta.ids);
        }
    }
    ids
}

/// Returns the worker that serves the only stream, and the other one.
async fn split_by_stream(a: FakeWorker, b: FakeWorker) -> (FakeWorker, FakeWorker) {
    soon(async {
        while a.requests().is_empty() && b.requests().is_empty() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    if b.requests().is_empty() { (a, b) } else { (b, a) }
}

/// Two workers that stall after a few tokens.
fn stalling_workers() -> (FakeWorker, FakeWorker) {
    let [a, b] =
        ["a", "b"].map(|name| FakeWorker::new(name).always(Script::Stall(TOKENS_BEFORE_FAULT)));
    (a, b)
}

#[tokio::test]
async fn a_response_is_resumed_when_its_worker_is_killed() {
    let (a, b) = stalling_workers();
    let cluster = Cluster::of(&[&a, &b]).await;
    let stream = cluster.generate(request(TOKENS)).await.unwrap();
    let (serving, other) = split_by_stream(a, b).await;
    other.script(|_| Script::Complete);
    cluster.until(|workers| workers.iter().any(|w| w.streams == 1)).await;
    drop(serving);
    let (events, error) = collect(stream).await;
    assert!(error.is_none(), "{error:?}");
    assert_eq!(ids(&events, 1)[0], Vec::from_iter(0..TOKENS));
    assert_eq!(finished(&events).usage.unwrap().completion_tokens, TOKENS);
    assert_eq!(finished(&events).timings.as_ref().unwrap().resumes, 1);
    cluster.until(|workers| workers.iter().all(|w| w.outstanding_tokens == 0)).await;
}

#[tokio::test]
async fn every_kind_of_interruption_is_resumed() {
    for script in [
        Script::Fail(TOKENS_BEFORE_FAULT, ServiceError::unavailable("engine stopped")),
        Script::Fail(TOKENS_BEFORE_FAULT, ServiceError::Draining("the worker".into())),
        Script::Truncate(TOKENS_BEFORE_FAULT),
        Script::Unfinished,
    ] {
        let bad = FakeWorker::new("bad").always(script);
        let good = FakeWorker::new("good");
        let cluster = Cluster::of(&[&bad, &good]).await;
        let mut sent = 0;
        while bad.requests().len() < 3 {
            sent += 1;
            assert!(sent < 100, "the failing worker is selected as well");
            let sampling = Sampling { num_sequences: Some(2), ..Default::default() };
            let request = GenerateRequest { sampling: Some(sampling), ..request(TOKENS) };
            let (events, error) = collect(cluster.generate(request).await.unwrap()).await;
            assert!(error.is_none(), "{error:?}");
            assert_eq!(ids(&events, 2), [0, 1].map(|_| Vec::from_iter(0..TOKENS)));
            let ends = events.iter().filter(|e| matches!(e.event, Some(Event::Finished(_))));
            assert_eq!(ends.count(), 2, "every choice finishes once");
        }
    }
}

#[tokio::test]
async fn a_stalled_worker_is_replaced_and_not_selected_until_it_recovers() {
    let (a, b) = stalling_workers();
    let mut config = short_timeouts();
    config.resume.token_timeout = Duration::from_secs(3_600);
    let cluster = Cluster::with(config, &[&a, &b]).await;
    let stream = cluster.generate(request(TOKENS)).await.unwrap();
    let (serving, other) = split_by_stream(a, b).await;
    // It keeps reporting a running request without progress.
    serving.set_load(Load { running: 1, step: 7, ..Default::default() });
    other.script(|_| Script::Complete);
    let (events, error) = collect(stream).await;
    assert!(error.is_none(), "{error:?}");
    assert_eq!(ids(&events, 1)[0], Vec::from_iter(0..TOKENS));
    // The stream there was reset, so no late events can arrive.
    serving.open(0).await;
    let before = serving.requests().len();
    for _ in 0..10 {
        collect(cluster.generate(request(1)).await.unwrap()).await;
    }
    assert_eq!(serving.requests().len(), before);
    // It makes progress, and is selected again.
    serving.script(|_| Script::Complete);
    serving.set_load(Load { step: 8, ..Default::default() });
    soon(async {
        while serving.requests().len() == before {
            collect(cluster.generate(request(1)).await.unwrap()).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_stream_that_its_worker_has_lost_is_resumed_on_another_one() {
    let (a, b) = stalling_workers();
    let cluster = Cluster::with(short_timeouts(), &[&a, &b]).await;
    let stream = cluster.generate(request(TOKENS)).await.unwrap();
    // The worker reports that it is idle.
    let (serving, other) = split_by_stream(a, b).await;
    other.script(|_| Script::Complete);
    let (events, error) = collect(stream).await;
    assert!(error.is_none(), "{error:?}");
    assert_eq!(ids(&events, 1)[0], Vec::from_iter(0..TOKENS));
    serving.open(0).await;
}

#[tokio::test]
async fn a_worker_of_another_digest_does_not_resume_and_the_error_has_the_progress() {
    let worker = FakeWorker::new("a").always(Script::Stall(TOKENS_BEFORE_FAULT));
    let cluster = Cluster::with(short_timeouts(), &[&worker]).await;
    let stream = cluster.generate(request(TOKENS)).await.unwrap();
    worker.open(1).await;
    let mismatched = FakeWorker::of_digest("b", "d2");
    cluster.until(|workers| workers[0].streams == 1).await;
    drop(worker);
    let (events, error) = collect(stream).await;
    let error = error.unwrap();
    assert_eq!(error.code(), Code::Unavailable);
    let ServiceError::Interrupted { prompt_tokens, completion_tokens, retry_after, .. } =
        ServiceError::from(&error)
    else {
        panic!("{error:?}")
    };
    assert_eq!(completion_tokens, ids(&events, 1)[0].len() as u32);
    assert_eq!((prompt_tokens, retry_after), (4, Duration::from_secs(1)));
    assert!(mismatched.requests().is_empty());
    cluster.until(|workers| workers[0].outstanding_tokens == 0).await;
}

#[tokio::test]
async fn a_response_waits_for_a_new_worker_of_its_digest() {
    let registry = Registry::default();
    let first = FakeWorker::new("first").always(Script::Stall(TOKENS_BEFORE_FAULT));
    let _first = registry.register(candidate("first", &first));
    let cluster = Cluster::following(RouterConfig::default(), registry.watch()).await;
    soon(cluster.router.wait_ready(1)).await;
    let stream = cluster.generate(request(TOKENS)).await.unwrap();
    first.open(1).await;
    drop(first);
    let mismatched = FakeWorker::of_digest("stranger", "d2");
    let _mismatched = registry.register(candidate("stranger", &mismatched));
    soon(cluster.router.wait_ready(1)).await;
    let late = FakeWorker::new("late");
    let _late = registry.register(candidate("late", &late));
    let (events, error) = collect(stream).await;
    assert!(error.is_none(), "{error:?}");
    assert_eq!(ids(&events, 1)[0], Vec::from_iter(0..TOKENS));
    assert!(mismatched.requests().is_empty());
}

//! Streams that lose their worker in the middle, and what their clients see of it: nothing, as long as there
//! is somebody to go on.

use std::time::Duration;

use stoker_proto::v1::{
    GenerateRequest, GenerateResponse, Load, Sampling, generate_response::Event,
};
use stoker_router::{ResumeConfig, RouterConfig};
use stoker_shared::{ServiceError, discovery::Registry};
use tonic::Code;

use crate::support::{
    Cluster, ask, candidate, collect, finished, soon,
    worker::{FakeWorker, Script},
};

/// Tokens of an answer.
const TOKENS: u32 = 6;
/// How many come before something happens.
const SOME: u32 = 2;

/// A router that loses patience as early as it may.
fn hasty() -> RouterConfig {
    let resume = ResumeConfig {
        stall_timeout: Duration::from_millis(1_500),
        token_timeout: Duration::from_millis(400),
        resume_timeout: Duration::from_millis(300),
        ..Default::default()
    };
    RouterConfig { resume, ..Default::default() }
}

/// The ids that came for each of `choices` continuations.
fn ids(events: &[GenerateResponse], choices: usize) -> Vec<Vec<u32>> {
    let mut ids = vec![Vec::new(); choices];
    for event in events {
        if let Some(Event::Token(delta)) = &event.event {
            ids[event.choice as usize].extend(&delta.ids);
        }
    }
    ids
}

/// Which of two workers has the only stream, and which has not.
async fn who_has_it(a: FakeWorker, b: FakeWorker) -> (FakeWorker, FakeWorker) {
    soon(async {
        while a.requests().is_empty() && b.requests().is_empty() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    if b.requests().is_empty() { (a, b) } else { (b, a) }
}

/// Two workers that say a little and then nothing more.
fn silent() -> (FakeWorker, FakeWorker) {
    let [a, b] = ["a", "b"].map(|name| FakeWorker::new(name).always(Script::Stall(SOME)));
    (a, b)
}

#[tokio::test]
async fn an_answer_goes_on_when_its_worker_is_killed() {
    let (a, b) = silent();
    let cluster = Cluster::of(&[&a, &b]).await;
    let stream = cluster.generate(ask(TOKENS)).await.unwrap();
    let (has, other) = who_has_it(a, b).await;
    other.script(|_| Script::Answer);
    cluster.until(|workers| workers.iter().any(|w| w.streams == 1)).await;
    drop(has);
    let (events, error) = collect(stream).await;
    assert!(error.is_none(), "{error:?}");
    assert_eq!(ids(&events, 1)[0], Vec::from_iter(0..TOKENS));
    assert_eq!(finished(&events).usage.unwrap().completion_tokens, TOKENS);
    assert_eq!(finished(&events).timings.as_ref().unwrap().resumes, 1);
    cluster.until(|workers| workers.iter().all(|w| w.outstanding_tokens == 0)).await;
}

#[tokio::test]
async fn every_way_to_break_off_is_mended() {
    for script in [
        Script::Fail(SOME, ServiceError::unavailable("engine stopped")),
        Script::Fail(SOME, ServiceError::Draining("the worker".into())),
        Script::Truncate(SOME),
        Script::Unfinished,
    ] {
        let bad = FakeWorker::new("bad").always(script);
        let good = FakeWorker::new("good");
        let cluster = Cluster::of(&[&bad, &good]).await;
        let mut asked = 0;
        while bad.requests().len() < 3 {
            asked += 1;
            assert!(asked < 100, "the bad one is chosen in its turn");
            let sampling = Sampling { num_sequences: Some(2), ..Default::default() };
            let request = GenerateRequest { sampling: Some(sampling), ..ask(TOKENS) };
            let (events, error) = collect(cluster.generate(request).await.unwrap()).await;
            assert!(error.is_none(), "{error:?}");
            assert_eq!(ids(&events, 2), [0, 1].map(|_| Vec::from_iter(0..TOKENS)));
            let ends = events.iter().filter(|e| matches!(e.event, Some(Event::Finished(_))));
            assert_eq!(ends.count(), 2, "every continuation ends once");
        }
    }
}

#[tokio::test]
async fn a_worker_that_stands_still_is_left_and_not_chosen_again() {
    let (a, b) = silent();
    let mut config = hasty();
    config.resume.token_timeout = Duration::from_secs(3_600);
    let cluster = Cluster::with(config, &[&a, &b]).await;
    let stream = cluster.generate(ask(TOKENS)).await.unwrap();
    let (has, other) = who_has_it(a, b).await;
    // It goes on saying that it has work, and does none.
    has.set_load(Load { running: 1, step: 7, ..Default::default() });
    other.script(|_| Script::Answer);
    let (events, error) = collect(stream).await;
    assert!(error.is_none(), "{error:?}");
    assert_eq!(ids(&events, 1)[0], Vec::from_iter(0..TOKENS));
    // The stream there was reset, so nothing late can come of it.
    has.open(0).await;
    let before = has.requests().len();
    for _ in 0..10 {
        collect(cluster.generate(ask(1)).await.unwrap()).await;
    }
    assert_eq!(has.requests().len(), before);
    // It moves, and is one of them again.
    has.script(|_| Script::Answer);
    has.set_load(Load { step: 8, ..Default::default() });
    soon(async {
        while has.requests().len() == before {
            collect(cluster.generate(ask(1)).await.unwrap()).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_stream_that_its_worker_has_forgotten_goes_on_elsewhere() {
    let (a, b) = silent();
    let cluster = Cluster::with(hasty(), &[&a, &b]).await;
    let stream = cluster.generate(ask(TOKENS)).await.unwrap();
    // It says that it rests.
    let (has, other) = who_has_it(a, b).await;
    other.script(|_| Script::Answer);
    let (events, error) = collect(stream).await;
    assert!(error.is_none(), "{error:?}");
    assert_eq!(ids(&events, 1)[0], Vec::from_iter(0..TOKENS));
    has.open(0).await;
}

#[tokio::test]
async fn other_weights_do_not_go_on_and_the_client_is_told_what_it_has() {
    let worker = FakeWorker::new("a").always(Script::Stall(SOME));
    let cluster = Cluster::with(hasty(), &[&worker]).await;
    let stream = cluster.generate(ask(TOKENS)).await.unwrap();
    worker.open(1).await;
    let stranger = FakeWorker::of_digest("b", "d2");
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
    assert!(stranger.requests().is_empty());
    cluster.until(|workers| workers[0].outstanding_tokens == 0).await;
}

#[tokio::test]
async fn an_answer_waits_for_a_worker_that_comes_and_takes_no_other() {
    let registry = Registry::default();
    let first = FakeWorker::new("first").always(Script::Stall(SOME));
    let _first = registry.register(candidate("first", &first));
    let cluster = Cluster::following(RouterConfig::default(), registry.watch()).await;
    soon(cluster.router.wait_ready(1)).await;
    let stream = cluster.generate(ask(TOKENS)).await.unwrap();
    first.open(1).await;
    drop(first);
    let stranger = FakeWorker::of_digest("stranger", "d2");
    let _stranger = registry.register(candidate("stranger", &stranger));
    soon(cluster.router.wait_ready(1)).await;
    let late = FakeWorker::new("late");
    let _late = registry.register(candidate("late", &late));
    let (events, error) = collect(stream).await;
    assert!(error.is_none(), "{error:?}");
    assert_eq!(ids(&events, 1)[0], Vec::from_iter(0..TOKENS));
    assert!(stranger.requests().is_empty());
}

#![allow(clippy::unwrap_used, reason = "tests")]

use std::{
    sync::{
        Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use futures::{FutureExt, StreamExt, stream};
use stoker_proto::v1::{
    Accepted, GenerateResponse, PromptLogprobs, Resume as ResumeMessage, TokenLogprob,
    generate_response::Event,
};
use tokio::time::Instant;
use tower::service_fn;

use super::{
    retry_budget::{ATTEMPT_COST, MAX_BALANCE},
    *,
};
use crate::{
    config::ResumeConfig,
    metrics::Metrics,
    pool::{Pool, worker::tests::worker},
    tests::support::{accepted, call, event, events, finished, token},
};

mod second_attempt;

type Reply = Result<Vec<Item>, ServiceError>;

/// Result of a call.
struct RunResult {
    items: Vec<Item>,
    /// Resume message of every attempt.
    resumes: Vec<Option<ResumeMessage>>,
}

impl RunResult {
    fn error(&self) -> &ServiceError {
        self.items.last().unwrap().as_ref().unwrap_err()
    }
}

fn context(config: &ResumeConfig) -> Arc<ResumeContext> {
    ResumeContext::new(config, &Pool::fixed(&[]), &Metrics::default())
}

/// Makes a call whose attempts get these replies in turn, each from a worker of digest `d`.
async fn run(config: &ResumeConfig, replies: Vec<Reply>) -> RunResult {
    let replies = Mutex::new(replies.into_iter());
    let resumes = Arc::new(Mutex::new(Vec::new()));
    let recorded = Arc::clone(&resumes);
    let state = Arc::new((replies, recorded));
    let below = service_fn(move |call: Call| {
        let (replies, resumes) = &*state;
        call.selected.set(&worker("w", "m", "d"));
        let mut resumes = resumes.lock().unwrap();
        resumes.push(call.request.routing.and_then(|routing| routing.resume));
        assert_eq!(call.attempt as usize, resumes.len(), "attempts count from 1");
        if let Some(Some(resume)) = resumes.last() {
            assert_eq!(call.only_digest.as_deref().unwrap_or_default(), resume.digest);
        }
        let reply = replies.lock().unwrap().next().unwrap();
        async { reply.map(events) }
    });
    let items = match respond(below, context(config), call()).await {
        Ok(stream) => stream.collect().await,
        Err(error) => vec![Err(error)],
    };
    let resumes = std::mem::take(&mut *resumes.lock().unwrap());
    RunResult { items, resumes }
}

fn lost() -> ServiceError {
    ServiceError::Lost("down".into())
}

fn down() -> ServiceError {
    ServiceError::unavailable("down")
}

#[tokio::test(start_paused = true)]
async fn an_accepted_call_without_tokens_moves_to_any_worker() {
    let replies = vec![
        Err(down()),
        Ok(vec![Ok(accepted("b", 1)), Err(down())]),
        Ok(vec![Ok(accepted("c", 1)), Ok(token()), Ok(finished())]),
    ];
    let result = run(&ResumeConfig::default(), replies).await;
    let digests =
        result.resumes.iter().map(|resume| resume.as_ref().map(|resume| resume.digest.as_str()));
    let digests: Vec<_> = digests.collect();
    assert_eq!(digests, [None, None, Some("")], "once accepted, any worker may start it");
    // The client gets the `Accepted` event of each worker.
    let [b, c, first, Ok(_)] = &result.items[..] else { panic!("{:?}", result.items) };
    assert_eq!([b, c, first], [&Ok(accepted("b", 1)), &Ok(accepted("c", 1)), &Ok(token())]);
}

#[tokio::test(start_paused = true)]
async fn resumes_exactly_where_the_response_was_interrupted() {
    let replies = vec![
        Ok(vec![Ok(accepted("a", 1)), Ok(token()), Ok(token()), Err(lost())]),
        Err(ServiceError::Overloaded { what: "full".into(), retry_after: Duration::ZERO }),
        Ok(vec![Ok(accepted("b", 1)), Ok(token()), Err(ServiceError::Draining("b".into()))]),
        Ok(vec![Ok(accepted("c", 1)), Ok(finished())]),
    ];
    let result = run(&ResumeConfig::default(), replies).await;
    let kinds: Vec<_> = result.items.iter().map(|item| item.as_ref().unwrap()).collect();
    assert_eq!(kinds[..4], [&accepted("a", 1), &token(), &token(), &token()]);
    let Some(Event::Finished(end)) = &kinds[4].event else { panic!("{kinds:?}") };
    assert_eq!(end.timings.as_ref().unwrap().resumes, 2);
    let had =
        |resume: &Option<ResumeMessage>| resume.as_ref().map(|r| r.choices[0].token_ids.len());
    let had: Vec<_> = result.resumes.iter().map(had).collect();
    assert_eq!(had, [None, Some(2), Some(2), Some(3)]);
}

#[tokio::test(start_paused = true)]
async fn prompt_logprobs_are_sent_once() {
    let logprobs = |ids: std::ops::Range<u32>| {
        let tokens = ids.map(|id| TokenLogprob { id, ..Default::default() }).collect();
        Ok(event(Event::Prompt(PromptLogprobs { tokens })))
    };
    let replies = vec![
        Ok(vec![Ok(accepted("a", 9)), logprobs(1..5), Err(lost())]),
        Ok(vec![Ok(accepted("b", 9)), logprobs(1..9), Ok(token()), Ok(finished())]),
    ];
    let result = run(&ResumeConfig::default(), replies).await;
    assert_eq!(
        result.items[..4],
        [Ok(accepted("a", 9)), logprobs(1..5), logprobs(5..9), Ok(token())]
    );
}

#[tokio::test(start_paused = true)]
async fn errors_that_another_worker_would_repeat_are_not_retried() {
    let error = ServiceError::Internal("NaN logits".into());
    for replies in [
        vec![Err(error.clone())],
        vec![Ok(vec![Ok(accepted("a", 1)), Err(error.clone())])],
        vec![Ok(vec![Ok(accepted("a", 1)), Ok(token()), Err(error.clone())])],
    ] {
        let result = run(&ResumeConfig::default(), replies).await;
        assert_eq!((result.error(), result.resumes.len()), (&error, 1));
    }
}

#[tokio::test(start_paused = true)]
async fn attempts_and_resumes_are_limited() {
    let result = run(&ResumeConfig::default(), vec![Err(down()), Err(down()), Err(down())]).await;
    assert_eq!((result.error(), result.resumes.len()), (&down(), 3));

    let config = ResumeConfig { max_resumes: 2, ..Default::default() };
    let killed = || Ok(vec![Ok(accepted("a", 1)), Ok(token()), Err(lost())]);
    let result = run(&config, vec![killed(), killed(), killed()]).await;
    assert_eq!(result.resumes.len(), 3, "a request that crashes its workers crashes three");
    let ServiceError::Interrupted { reason, completion_tokens, prompt_tokens, .. } = result.error()
    else {
        panic!("{:?}", result.items)
    };
    assert_eq!((reason.as_str(), *completion_tokens, *prompt_tokens), ("down", 3, 1));
}

#[tokio::test(start_paused = true)]
async fn draining_workers_do_not_count_as_resumes() {
    let config = ResumeConfig { max_resumes: 0, ..Default::default() };
    let drained =
        || Ok(vec![Ok(accepted("a", 1)), Ok(token()), Err(ServiceError::Draining("a".into()))]);
    let good = Ok(vec![Ok(accepted("a", 1)), Ok(finished())]);
    let result = run(&config, vec![drained(), drained(), drained(), good]).await;
    assert!(result.items.iter().all(Result::is_ok), "{:?}", result.items);
}

#[tokio::test(start_paused = true)]
async fn waits_for_a_worker_until_the_resume_timeout() {
    let config = ResumeConfig::default();
    let began = Instant::now();
    let killed = Ok(vec![Ok(accepted("a", 1)), Ok(token()), Err(lost())]);
    let replies = std::iter::once(killed).chain(std::iter::repeat_n(Err(down()), 100));
    let result = run(&config, replies.collect()).await;
    let wait = config.resume_timeout;
    assert!(began.elapsed() >= wait && began.elapsed() < wait * 2, "{:?}", began.elapsed());
    assert!(matches!(result.error(), ServiceError::Interrupted { .. }), "{:?}", result.items);
    assert!(result.resumes.len() < 60, "attempts are paced: {}", result.resumes.len());
}

#[tokio::test(start_paused = true)]
async fn a_response_beyond_the_resume_memory_ends_with_its_worker() {
    let config = ResumeConfig { resume_memory: bytesize::ByteSize::b(4), ..Default::default() };
    let replies = vec![Ok(vec![Ok(accepted("a", 1)), Ok(token()), Ok(token()), Err(lost())])];
    let result = run(&config, replies).await;
    assert!(matches!(result.error(), ServiceError::Interrupted { completion_tokens: 2, .. }));
}

#[tokio::test]
async fn retries_are_limited_by_the_budget() {
    let calls = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&calls);
    let selected = worker("w", "m", "d");
    let below = service_fn(move |call: Call| {
        call.selected.set(&selected);
        counted.fetch_add(1, Ordering::Relaxed);
        async { Err::<EventStream, _>(down()) }
    });
    let context = context(&ResumeConfig::default());
    for _ in 0..1_000 {
        assert!(respond(below.clone(), Arc::clone(&context), call()).await.is_err());
    }
    let extra = calls.load(Ordering::Relaxed) - 1_000;
    assert_eq!(extra, (1_000 + MAX_BALANCE) / ATTEMPT_COST - 1);
}

#[tokio::test]
async fn a_call_without_a_suitable_worker_is_not_retried() {
    let calls = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&calls);
    let below = service_fn(move |_: Call| {
        counted.fetch_add(1, Ordering::Relaxed);
        async { Err::<EventStream, _>(down()) }
    });
    let context = context(&ResumeConfig::default());
    assert!(respond(below, context, call()).await.is_err());
    assert_eq!(calls.load(Ordering::Relaxed), 1);
}

#[tokio::test(start_paused = true)]
async fn drains_do_not_use_up_resumes() {
    let config = ResumeConfig { max_resumes: 1, ..Default::default() };
    let ends = |error: ServiceError| Ok(vec![Ok(accepted("a", 1)), Ok(token()), Err(error)]);
    let drained = || ends(ServiceError::Draining("a".into()));
    let good = Ok(vec![Ok(accepted("a", 1)), Ok(finished())]);
    let result = run(&config, vec![drained(), drained(), ends(lost()), good]).await;
    assert!(result.items.iter().all(Result::is_ok), "{:?}", result.items);
}

#[tokio::test(start_paused = true)]
async fn errors_after_the_last_event_are_ignored() {
    let whole = vec![Ok(accepted("a", 1)), Ok(token()), Ok(finished()), Err(lost())];
    let result = run(&ResumeConfig::default(), vec![Ok(whole)]).await;
    assert_eq!(result.items.len(), 3);
    assert!(result.items.iter().all(Result::is_ok), "{:?}", result.items);
}

#[tokio::test(start_paused = true)]
async fn a_resume_has_the_limit_that_the_first_worker_set() {
    let limited = |limit| {
        let Some(Event::Accepted(accepted)) = accepted("a", 10).event else { panic!() };
        Ok(event(Event::Accepted(Accepted { max_tokens: limit, ..accepted })))
    };
    let replies = vec![
        Ok(vec![limited(500), Err(lost())]),
        Ok(vec![limited(100), Ok(token()), Err(lost())]),
        Ok(vec![limited(500), Ok(finished())]),
    ];
    let result = run(&ResumeConfig::default(), replies).await;
    let limits: Vec<_> =
        result.resumes[1..].iter().flatten().map(|resume| resume.max_tokens).collect();
    assert_eq!(limits, [500, 500]);
}

#[tokio::test(start_paused = true)]
async fn a_response_too_large_for_all_workers_ends_at_the_resume_timeout_with_its_token_counts() {
    let too_large = || {
        let what = "1510 tokens are needed, and the largest has 1024".into();
        Err(ServiceError::ExceedsWorker { what, needed_tokens: 1_510 })
    };
    let killed = Ok(vec![Ok(accepted("a", 10)), Ok(token()), Err(lost())]);
    let began = Instant::now();
    let replies = std::iter::once(killed).chain(std::iter::repeat_with(too_large).take(100));
    let result = run(&ResumeConfig::default(), replies.collect()).await;
    let ServiceError::ExceedsWorker { what, needed_tokens: 1_510 } = result.error() else {
        panic!("{:?}", result.error())
    };
    assert!(what.contains("largest has 1024") && what.contains("cut off after 1 "), "{what}");
    assert!(began.elapsed() >= ResumeConfig::default().resume_timeout, "a larger worker may join");
}

/// A worker refuses routing fields, both of a first attempt and of a resume.
#[tokio::test(start_paused = true)]
async fn refused_routing_fields_are_not_an_error_of_the_client() {
    let mismatch = || Err(ServiceError::Mismatch("worker w: routing.resume.digest".into()));
    let replies = vec![
        mismatch(),
        Ok(vec![Ok(accepted("a", 1)), Ok(token()), Err(lost())]),
        mismatch(),
        mismatch(),
        Ok(vec![Ok(accepted("b", 1)), Ok(finished())]),
    ];
    let result = run(&ResumeConfig::default(), replies).await;
    assert!(result.items.iter().all(Result::is_ok), "{:?}", result.items);
}

/// Reply of a worker whose engine panics. `sequences` are those of the request in the step.
fn panics(sequences: &[u32]) -> Reply {
    let error =
        ServiceError::EnginePanicked { cause: "index".into(), sequences: sequences.to_vec() };
    Ok(vec![Ok(accepted("a", 1)), Ok(token()), Err(error)])
}

/// Makes a call whose attempts get these replies. Panics are counted like in the endpoint.
async fn run_counting_panics(
    resume: &Arc<ResumeContext>,
    replies: Vec<Reply>,
) -> (Vec<Item>, usize) {
    let replies = Arc::new(Mutex::new(replies.into_iter()));
    let below = {
        let replies = Arc::clone(&replies);
        service_fn(move |call: Call| {
            call.selected.set(&worker("w", "m", "d"));
            let reply = replies.lock().unwrap().next().unwrap();
            let panics = call.panics;
            let counted = move |item: &Item| {
                if let Err(error) = item {
                    panics.record(error);
                }
            };
            async { reply.map(|items| events(items).inspect(counted).boxed()) }
        })
    };
    let items = match respond(below, Arc::clone(resume), call()).await {
        Ok(stream) => stream.collect().await,
        Err(error) => vec![Err(error)],
    };
    let remaining = replies.lock().unwrap().len();
    (items, remaining)
}

#[tokio::test(start_paused = true)]
async fn a_request_in_two_steps_that_panicked_ends_and_its_content_is_refused() {
    let resume = context(&ResumeConfig::default());
    let good = || Ok(vec![Ok(accepted("b", 1)), Ok(token()), Ok(finished())]);
    // An innocent request that was in only one of the panicked steps.
    let innocent = vec![panics(&[0]), panics(&[]), panics(&[]), good()];
    let (items, _) = run_counting_panics(&resume, innocent).await;
    assert!(items.iter().all(Result::is_ok), "{items:?}");

    let (items, remaining) =
        run_counting_panics(&resume, vec![panics(&[0]), panics(&[0]), good()]).await;
    let Some(Err(error @ ServiceError::Quarantined(_))) = items.last() else { panic!("{items:?}") };
    assert_eq!((error.code_name(), remaining), ("INTERNAL", 1), "no third engine");
    let (items, remaining) = run_counting_panics(&resume, vec![good()]).await;
    assert!(matches!(items[..], [Err(ServiceError::Quarantined(_))]), "{items:?}");
    assert_eq!(remaining, 1, "no worker is called");
    tokio::time::advance(Duration::from_secs(601)).await;
    let (items, _) = run_counting_panics(&resume, vec![good()]).await;
    assert!(items.iter().all(Result::is_ok), "{items:?}");
}

//! Selects a worker for each call, tracks the worker's outstanding tokens, and updates the model's
//! statistics.

use std::{
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use clap::ValueEnum;
use futures::{FutureExt, StreamExt, future::BoxFuture};
use stoker_proto::v1::{
    Accepted, FinishReason, Finished, GenerateRequest, GenerateResponse, generate_response::Event,
};
use stoker_shared::{
    ServiceError,
    names::attribute,
    observed::{Observe, Observed},
    telemetry::trace::Attribute,
};
use tokio::time::Instant;
use tower::{Service, ServiceExt};

use crate::{
    call::{Call, EventStream, Stage},
    config::Policy,
    endpoint::Dispatch,
    policy::{Chooser, Criteria, ModelStats, Selection, Source, resume, text_bytes},
    pool::{Fleet, Pool, health::AttemptPermit, model::Model, reservation::Reservation},
};

/// Weight of one response in the average of a worker's cache hits.
const CACHE_HIT_WEIGHT: f32 = 1.0 / 8.0;

/// Retry-after if all workers are full.
const FULL_RETRY_AFTER: Duration = Duration::from_millis(500);

/// Maximum selections per call: another call may take a worker's last probe between selection and
/// permit.
const MAX_SELECTIONS: usize = 3;

/// Sends each call to the worker that the policy selects.
#[derive(Debug, Clone)]
pub(crate) struct Balance<S> {
    endpoint: S,
    pool: Pool,
    chooser: Arc<Chooser>,
}

impl<S> Balance<S> {
    pub(crate) fn new(endpoint: S, pool: Pool, chooser: Arc<Chooser>) -> Self {
        Self { endpoint, pool, chooser }
    }

    /// Selects a worker and reserves its tokens before dispatch, so that concurrent calls do not
    /// all see it idle.
    pub(crate) fn reserve(&self, call: &Call) -> Result<(Dispatched, AttemptPermit), ServiceError> {
        // Looked up at every attempt, since workers may have been added or removed in the meantime.
        let fleet = self.pool.fleet();
        let model = fleet.model(&call.request.model)?;
        call.tried.with(|tried| {
            let capacity = self.chooser.required_capacity(model, call);
            let wanted = Criteria { tried, digest: call.only_digest.as_deref(), capacity };
            let entered = self.enter(model, &call.request, &wanted);
            let (choice, permit) = entered.ok_or_else(|| no_worker(&fleet, model, &wanted))?;
            tried.push(choice.worker.instance.clone());
            call.selected.set(&choice.worker);
            let policy = self.chooser.policy();
            Ok((Dispatched::new(choice, &call.request, policy), permit))
        })
    }

    /// Selects a worker and acquires its permit for an attempt.
    fn enter(
        &self,
        model: &Model,
        request: &GenerateRequest,
        wanted: &Criteria<'_>,
    ) -> Option<(Selection, AttemptPermit)> {
        let mut choice = self.chooser.choose(model, request, wanted)?;
        for _ in 0..MAX_SELECTIONS {
            if let Some(permit) = choice.worker.health.try_acquire() {
                return Some((choice, permit));
            }
            choice = self.chooser.choose(model, request, wanted)?;
        }
        let permit = choice.worker.health.acquire();
        Some((choice, permit))
    }
}

impl<S> Service<Call> for Balance<S>
where
    S: Service<Dispatch, Response = EventStream, Error = ServiceError, Future: Send>,
    S: Clone + Send + 'static,
{
    type Response = EventStream;
    type Error = ServiceError;
    type Future = BoxFuture<'static, Result<EventStream, ServiceError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ServiceError>> {
        // The endpoint that has to be ready depends on the call.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, call: Call) -> Self::Future {
        let (dispatched, permit) = match self.reserve(&call) {
            Ok(reserved) => reserved,
            Err(error) => return futures::future::err(error).boxed(),
        };
        call.timeline.enter_at(Stage::Attempt, Instant::now(), || dispatched.attributes());
        let endpoint = self.endpoint.clone();
        async move {
            let worker = Arc::clone(dispatched.reservation.worker());
            let stream = endpoint.oneshot(Dispatch { call, worker, permit: Some(permit) }).await?;
            Ok(Observed::new(stream, dispatched).boxed())
        }
        .boxed()
    }
}

/// Returns the error if no worker of `model` can take a call now.
fn no_worker(fleet: &Fleet, model: &Model, criteria: &Criteria<'_>) -> ServiceError {
    let fitting = model.live().iter().map(Arc::as_ref).filter(|w| w.fits(criteria.digest));
    if let Some(refusal) = criteria.capacity.refusal(fitting.clone()) {
        return refusal;
    }
    match (fitting.clone().next(), criteria.digest) {
        (Some(_), _) => ServiceError::Overloaded {
            what: format!(
                "{} workers are full, and resumed responses have precedence",
                fitting.count()
            ),
            retry_after: FULL_RETRY_AFTER,
        },
        (None, Some(digest)) => {
            ServiceError::unavailable(format!("no worker of digest {digest} is ready"))
        }
        (None, None) => fleet.no_worker_error(),
    }
}

/// A dispatched call: its reservation, and what it adds to the model's statistics.
#[derive(Debug)]
pub(crate) struct Dispatched {
    reservation: Reservation,
    stats: Arc<ModelStats>,
    /// Length of the prompt's text; `None` for a prompt of token ids.
    text_bytes: Option<u64>,
    /// Estimated tokens of the prompt, and how many of them the worker has cached.
    prompt: u64,
    saved: u64,
    /// Tokens of the prompt that were sent to the worker before, so that it may have them cached.
    expected: u64,
    source: Source,
    /// Tokens that other workers have generated for the unfinished choices.
    generated: u64,
    resumed: bool,
    choices: u32,
    /// Whether only the token limit ends the response.
    ignores_eos: bool,
    /// Why this worker, for traces: the policy, the number of workers compared, and what the
    /// completions are estimated to take.
    policy: Policy,
    candidates: usize,
    completion: u64,
}

impl Dispatched {
    fn new(selection: Selection, request: &GenerateRequest, policy: Policy) -> Self {
        let Selection { worker, cost, expected, saved, source, stats, candidates } = selection;
        let compute = cost.prompt.saturating_sub(saved);
        let choices = cost.completions.len() as u32;
        let open = resume(request).into_iter().flat_map(|resume| &resume.choices);
        let open = open.filter(|choice| choice.finished.is_none());
        let completion = cost.completions.iter().fold(0_u64, |sum, one| sum.saturating_add(*one));
        Self {
            reservation: Reservation::new(&worker, compute, cost.completions),
            stats,
            text_bytes: text_bytes(request),
            prompt: cost.prompt,
            saved,
            expected,
            source,
            generated: open.map(|choice| choice.token_ids.len() as u64).sum(),
            resumed: resume(request).is_some(),
            choices,
            ignores_eos: request.stopping.as_ref().is_some_and(|stopping| stopping.ignore_eos),
            policy,
            candidates,
            completion,
        }
    }

    /// Returns why the worker was selected, for the span of the selection.
    fn attributes(&self) -> Vec<Attribute> {
        let count = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
        // As in `--policy`.
        let policy = self.policy.to_possible_value().map(|value| value.get_name().to_owned());
        vec![
            Attribute::new(attribute::WORKER, self.reservation.worker().id.as_str().to_owned()),
            Attribute::new(attribute::POLICY, policy.unwrap_or_default()),
            Attribute::new(attribute::CANDIDATES, count(self.candidates as u64)),
            Attribute::new(attribute::ESTIMATED_PROMPT_TOKENS, count(self.prompt)),
            Attribute::new(attribute::ESTIMATED_CACHED_TOKENS, count(self.saved)),
            Attribute::new(attribute::ESTIMATED_COMPLETION_TOKENS, count(self.completion)),
        ]
    }

    /// Corrects the estimates in proportion to the prompt tokens that the worker counted.
    fn accepted(&mut self, accepted: &Accepted) {
        let tokens = u64::from(accepted.prompt_tokens);
        if let (Some(bytes), false) = (self.text_bytes, self.resumed) {
            self.stats.observe_prompt(bytes, tokens);
        }
        let all = tokens + self.generated;
        let scale = all as f64 / self.prompt.max(1) as f64;
        let saved = (self.saved as f64 * scale) as u64;
        self.reservation.set_prompt_tokens(all.saturating_sub(saved));
    }

    fn finished(&mut self, finished: &Finished) {
        let (Some(usage), false) = (&finished.usage, self.resumed) else { return };
        if self.expected > 0 {
            let hit_rate = f64::from(usage.cached_prompt_tokens) / self.expected as f64;
            let average = match self.source {
                Source::Local => &self.reservation.worker().prefix_hit_rate,
                Source::Remote => &self.stats.remote_hit_rate,
            };
            average.observe(hit_rate.min(1.0) as f32, CACHE_HIT_WEIGHT);
        }
        if !self.ignores_eos {
            let each = usage.completion_tokens / self.choices.max(1);
            let cut = finished.reason() != FinishReason::Stop;
            self.stats.observe_completion(each.into(), cut);
        }
    }
}

impl Observe for Dispatched {
    fn event(&mut self, event: &mut GenerateResponse) {
        match &event.event {
            Some(Event::Accepted(accepted)) => self.accepted(accepted),
            Some(Event::Token(delta)) => {
                self.reservation.add_generated(event.choice, delta.ids.len() as u64);
            }
            Some(Event::Finished(finished)) => {
                self.reservation.finished(event.choice);
                self.finished(finished);
            }
            Some(Event::Prompt(_) | Event::Preempted(_)) | None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use stoker_proto::v1::{
        Resume, ResumedChoice, Routing, Stopping, TokenDelta, Usage, generate_request::Input,
    };
    use tower::service_fn;

    use super::*;
    use crate::{
        config::BalancingConfig,
        pool::worker::{Worker, tests::worker},
        tests::support::{accepted, call, event, events, finished, request},
    };

    fn prompt(bytes: usize, max_tokens: u32) -> GenerateRequest {
        GenerateRequest {
            input: Some(Input::Prompt("x".repeat(bytes))),
            stopping: Some(Stopping { max_tokens: Some(max_tokens), ..Default::default() }),
            model: "m".into(),
            ..request()
        }
    }

    /// Returns the layer over workers that are never called.
    fn balance(workers: &[Arc<Worker>]) -> Balance<crate::endpoint::Endpoint> {
        let chooser = Arc::new(Chooser::new(&BalancingConfig::default(), 1));
        Balance::new(crate::endpoint::Endpoint, Pool::fixed(workers), chooser)
    }

    fn reserve(
        balance: &Balance<crate::endpoint::Endpoint>,
        request: GenerateRequest,
    ) -> Result<Dispatched, ServiceError> {
        balance
            .reserve(&Call { request: request.into(), ..call() })
            .map(|(dispatched, _)| dispatched)
    }

    fn tokens_event(tokens: usize) -> GenerateResponse {
        event(Event::Token(TokenDelta { ids: vec![1; tokens], ..Default::default() }))
    }

    fn end(usage: Usage) -> GenerateResponse {
        let reason = FinishReason::Stop.into();
        event(Event::Finished(Finished { reason, usage: Some(usage), ..Default::default() }))
    }

    #[tokio::test]
    async fn the_estimate_is_corrected_by_what_the_worker_counts() {
        let worker = worker("a", "m", "d");
        let balance = balance(&[Arc::clone(&worker)]);
        let tokens =
            || (worker.outstanding.prompt_tokens(), worker.outstanding.completion_tokens());
        let mut dispatched = reserve(&balance, prompt(40_000, 100)).unwrap();
        assert_eq!(tokens(), (10_000, 100));
        dispatched.event(&mut accepted("a", 8_000));
        assert_eq!(tokens(), (8_000, 100));
        dispatched.event(&mut tokens_event(1));
        assert_eq!(tokens(), (0, 99));
        drop(dispatched);
        // Nearly all of the prompt should be cached now.
        let mut again = reserve(&balance, prompt(40_000, 100)).unwrap();
        assert!(tokens().0 < 600, "{:?}", tokens());
        again.event(&mut accepted("a", 20_000));
        assert!(tokens().0 < 1_200, "{:?}", tokens());
        drop(again);
        assert_eq!(tokens(), (0, 0));
    }

    #[tokio::test]
    async fn responses_update_the_usual_length_and_the_cache_hits() {
        let worker = worker("a", "m", "d");
        let balance = balance(&[Arc::clone(&worker)]);
        for _ in 0..50 {
            let mut dispatched = reserve(&balance, prompt(40_000, 5_000)).unwrap();
            let cached_prompt_tokens = 0;
            let usage = Usage { completion_tokens: 30, cached_prompt_tokens, prompt_tokens: 9_000 };
            dispatched.event(&mut end(usage));
        }
        assert!(worker.prefix_hit_rate.get().unwrap() < 0.01, "it never had a cache hit");
        let _next = reserve(&balance, prompt(40_000, 5_000)).unwrap();
        assert_eq!(worker.outstanding.completion_tokens(), 30);
        assert!(worker.outstanding.prompt_tokens() > 9_000);
    }

    #[tokio::test]
    async fn a_resumed_call_reserves_its_generated_tokens_too() {
        let workers = [worker("a", "m", "d"), worker("b", "m", "other")];
        let balance = balance(&workers);
        let choice = ResumedChoice { token_ids: vec![1; 400], ..Default::default() };
        let resume = Some(Resume { choices: vec![choice], ..Default::default() });
        let request = GenerateRequest {
            routing: Some(Routing { resume, ..Default::default() }),
            ..prompt(4_000, 1_000)
        };
        let resumed = Call { request: request.into(), only_digest: Some("other".into()), ..call() };
        let (mut dispatched, _) = balance.reserve(&resumed).unwrap();
        let now = &workers[1].outstanding;
        assert_eq!((now.prompt_tokens(), now.completion_tokens()), (1_000 + 400, 600));
        dispatched.event(&mut accepted("b", 900));
        assert_eq!((now.prompt_tokens(), now.completion_tokens()), (900 + 400, 600));
        let unservable = Call { only_digest: Some("third".into()), ..resumed.clone() };
        let error = balance.reserve(&unservable).unwrap_err();
        assert!(error.to_string().contains("no worker of digest third"), "{error}");
    }

    #[tokio::test]
    async fn the_reservation_lasts_as_long_as_the_stream() {
        let worker = worker("a", "m", "d");
        let chooser = Arc::new(Chooser::new(&BalancingConfig::default(), 1));
        let endpoint = service_fn(|_: Dispatch| async {
            Ok::<_, ServiceError>(events([Ok(accepted("a", 4)), Ok(finished())]))
        });
        let balance = Balance::new(endpoint, Pool::fixed(&[Arc::clone(&worker)]), chooser);
        let call = Call { request: prompt(40, 10).into(), ..call() };
        let mut stream = balance.oneshot(call.clone()).await.unwrap();
        assert_eq!(worker.outstanding.streams(), 1);
        assert_eq!(call.tried.with(|tried| tried.len()), 1);
        while stream.next().await.is_some() {}
        assert_eq!((worker.outstanding.streams(), worker.outstanding.tokens()), (0, 0));
    }
}

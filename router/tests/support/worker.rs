//! A worker without a model: it does what its script says, and tells what happened to it.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures::{Stream, StreamExt, stream};
use stoker_proto::v1::{
    Accepted, Capacity, DetokenizeRequest, DetokenizeResponse, FinishReason, Finished,
    GenerateRequest, GenerateResponse, GetModelInfoRequest, Load, ModelInfo, ResumedChoice,
    Timings, TokenDelta, TokenizeRequest, TokenizeResponse, Usage, WatchLoadRequest,
    control_server::{Control, ControlServer},
    generate_response::Event,
    inference_server::{Inference, InferenceServer},
};
use stoker_shared::{ServiceError, guarded::Guarded, serve};
use tokio::{runtime::Runtime, sync::watch};
use tonic::{Request, Response, Status};

use super::soon;

/// What a worker does with one request.
#[derive(Clone)]
pub enum Script {
    /// As many tokens as the request allows in each continuation, and their ends.
    Answer,
    /// The same, with so much time before each token.
    Paced(Duration),
    /// The same, but one of the ends does not come.
    Unfinished,
    /// A status instead of a stream.
    Refuse(ServiceError),
    /// Nothing at all, not even headers.
    Hang,
    /// That many tokens, then silence.
    Stall(u32),
    /// That many tokens, then an error.
    Fail(u32, ServiceError),
    /// That many tokens, then the end, without a last event.
    Truncate(u32),
    /// Tokens without end, each in a message of its own.
    Flood,
    /// An answer between events that claim to be of another attempt.
    Ghosts,
}

type Choose = dyn FnMut(&GenerateRequest) -> Script + Send;

struct State {
    info: ModelInfo,
    script: Mutex<Box<Choose>>,
    requests: Mutex<Vec<GenerateRequest>>,
    timeouts: Mutex<Vec<Option<String>>>,
    connections: Mutex<BTreeSet<SocketAddr>>,
    flooded: AtomicUsize,
    open: watch::Sender<usize>,
    load: watch::Sender<Load>,
}

/// Dropping it kills it, as a crash would: every socket is closed.
pub struct FakeWorker {
    pub address: SocketAddr,
    state: Arc<State>,
    runtime: Option<Runtime>,
}

impl FakeWorker {
    /// A worker of the model `story` that answers.
    pub fn new(name: &str) -> Self {
        Self::at("127.0.0.1:0".parse().unwrap(), name, "story")
    }

    pub fn of_model(name: &str, model: &str) -> Self {
        Self::at("127.0.0.1:0".parse().unwrap(), name, model)
    }

    pub fn of_digest(name: &str, digest: &str) -> Self {
        Self::with(
            "127.0.0.1:0".parse().unwrap(),
            ModelInfo { digest: digest.into(), ..info(name, "story") },
        )
    }

    pub fn of_context(name: &str, context_length: u32) -> Self {
        Self::with(
            "127.0.0.1:0".parse().unwrap(),
            ModelInfo { context_length, ..info(name, "story") },
        )
    }

    pub fn at(address: SocketAddr, name: &str, model: &str) -> Self {
        Self::with(address, info(name, model))
    }

    fn with(address: SocketAddr, info: ModelInfo) -> Self {
        let state = Arc::new(State {
            info,
            script: Mutex::new(Box::new(|_| Script::Answer)),
            requests: Mutex::default(),
            timeouts: Mutex::default(),
            connections: Mutex::default(),
            flooded: AtomicUsize::new(0),
            open: watch::Sender::new(0),
            load: watch::Sender::new(Load { free_kv_blocks: 10, ..Default::default() }),
        });
        // Its own runtime, so that it can die with everything it holds.
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let std = std::net::TcpListener::bind(address).unwrap();
        std.set_nonblocking(true).unwrap();
        let address = std.local_addr().unwrap();
        let service = Service(Arc::clone(&state));
        runtime.spawn(async move {
            let listener = tokio::net::TcpListener::from_std(std).unwrap();
            let bounds = serve::Bounds::new(&serve::LimitsConfig::default(), Some(16_384));
            serve::server(&bounds)
                .add_service(InferenceServer::new(service.clone()))
                .add_service(ControlServer::new(service))
                .serve_with_incoming(serve::incoming(listener, &bounds))
                .await
                .unwrap();
        });
        Self { address, state, runtime: Some(runtime) }
    }

    /// Does the same with every request from now on.
    pub fn always(self, script: Script) -> Self {
        self.script(move |_| script.clone());
        self
    }

    pub fn script(&self, choose: impl FnMut(&GenerateRequest) -> Script + Send + 'static) {
        *self.state.script.lock().unwrap() = Box::new(choose);
    }

    /// Every request that came.
    pub fn requests(&self) -> Vec<GenerateRequest> {
        self.state.requests.lock().unwrap().clone()
    }

    /// The `grpc-timeout` of every request that came.
    pub fn timeouts(&self) -> Vec<Option<String>> {
        self.state.timeouts.lock().unwrap().clone()
    }

    /// Connections that requests came on.
    pub fn connections(&self) -> usize {
        self.state.connections.lock().unwrap().len()
    }

    /// Tokens that floods have made so far.
    pub fn flood(&self) -> usize {
        self.state.flooded.load(Ordering::Relaxed)
    }

    /// Waits until `tokens` tokens were made by floods.
    pub async fn flooded(&self, tokens: usize) {
        soon(async {
            while self.flood() < tokens {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }

    /// Waits until exactly `count` calls are under way.
    pub async fn open(&self, count: usize) {
        let mut open = self.state.open.subscribe();
        soon(open.wait_for(|open| *open == count)).await.unwrap();
    }

    pub fn set_load(&self, load: Load) {
        self.state.load.send_replace(load);
    }
}

fn info(name: &str, model: &str) -> ModelInfo {
    ModelInfo {
        model: model.into(),
        digest: "d1".into(),
        worker: name.into(),
        capacity: Some(Capacity { max_num_seqs: 8, ..Default::default() }),
        ..Default::default()
    }
}

impl Drop for FakeWorker {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

#[derive(Clone)]
struct Service(Arc<State>);

/// Counts a call for as long as it lives.
struct Open(Arc<State>);

impl Open {
    fn new(state: &Arc<State>) -> Self {
        state.open.send_modify(|open| *open += 1);
        Self(Arc::clone(state))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.send_modify(|open| *open -= 1);
    }
}

type Streamed<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Inference for Service {
    type GenerateStream = Streamed<GenerateResponse>;

    async fn generate(
        &self,
        request: Request<GenerateRequest>,
    ) -> Result<Response<Self::GenerateStream>, Status> {
        let open = Open::new(&self.0);
        let peer = request.extensions().get::<serve::Peer>().unwrap().address();
        self.0.connections.lock().unwrap().insert(peer);
        let timeout = request.metadata().get("grpc-timeout");
        let timeout = timeout.map(|value| value.to_str().unwrap().to_owned());
        self.0.timeouts.lock().unwrap().push(timeout);
        let request = request.into_inner();
        let script = (self.0.script.lock().unwrap())(&request);
        self.0.requests.lock().unwrap().push(request.clone());

        let answer = Answer::new(&self.0.info, &request);
        let events: Streamed<GenerateResponse> = match script {
            Script::Refuse(error) => return Err(error.into()),
            Script::Hang => std::future::pending().await,
            Script::Answer => {
                let (tokens, ends) = (answer.tokens, answer.ends());
                answer.events(tokens).chain(stream::iter(ends.map(Ok))).boxed()
            }
            Script::Paced(pause) => {
                let (tokens, ends) = (answer.tokens, answer.ends());
                let paced = answer.events(tokens).then(move |event| async move {
                    tokio::time::sleep(pause).await;
                    event
                });
                paced.chain(stream::iter(ends.map(Ok))).boxed()
            }
            Script::Unfinished => {
                let (tokens, ends) = (answer.tokens, answer.ends());
                let all_but_last = answer.had.len() - 1;
                let ends = stream::iter(ends.take(all_but_last).map(Ok));
                answer.events(tokens).chain(ends).boxed()
            }
            Script::Stall(tokens) => answer.events(tokens).chain(stream::pending()).boxed(),
            Script::Fail(tokens, error) => {
                let failed = stream::iter([Err(Status::from(error))]);
                answer.events(tokens).chain(failed).boxed()
            }
            Script::Flood => {
                let state = Arc::clone(&self.0);
                let tokens = answer.events(u32::MAX).then(move |event| {
                    state.flooded.fetch_add(1, Ordering::Relaxed);
                    async {
                        // What is ready at once travels in one message.
                        tokio::task::yield_now().await;
                        event
                    }
                });
                tokens.boxed()
            }
            Script::Truncate(tokens) => answer.events(tokens).boxed(),
            Script::Ghosts => {
                let (tokens, ends) = (answer.tokens, answer.ends());
                let ghost = |event: &GenerateResponse| GenerateResponse {
                    attempt: event.attempt + 1,
                    ..event.clone()
                };
                let real = answer.events(tokens).chain(stream::iter(ends.map(Ok)));
                real.flat_map(move |event: Result<GenerateResponse, Status>| {
                    let event = event.unwrap();
                    stream::iter([Ok(ghost(&event)), Ok(event)])
                })
                .boxed()
            }
        };
        Ok(Response::new(Guarded::new(events, open).boxed()))
    }
}

/// What there is of a continuation. The tokens here are the numbers from 0, each told as an `x`.
fn had(choice: ResumedChoice) -> (u32, bool) {
    let count = choice.token_ids.len() as u32;
    assert_eq!(choice.token_ids, Vec::from_iter(0..count));
    assert_eq!(choice.text_bytes_sent, u64::from(count));
    (count, choice.finished.is_some())
}

/// The events of an answer to one request.
#[derive(Clone)]
struct Answer {
    attempt: u32,
    accepted: Accepted,
    tokens: u32,
    /// What each continuation has already, and whether it has ended.
    had: Vec<(u32, bool)>,
}

impl Answer {
    fn new(info: &ModelInfo, request: &GenerateRequest) -> Self {
        let sampling = request.sampling.clone().unwrap_or_default();
        let resume = request.routing.clone().and_then(|routing| routing.resume);
        let choices = sampling.num_sequences.unwrap_or(1) as usize;
        let had = match resume {
            Some(resume) => {
                let begun = resume.choices.iter().any(|choice| !choice.token_ids.is_empty());
                assert_eq!(resume.digest, if begun { info.digest.as_str() } else { "" });
                assert_eq!(resume.choices.len(), choices);
                resume.choices.into_iter().map(had).collect()
            }
            None => vec![(0, false); choices],
        };
        Self {
            attempt: request.routing.as_ref().map_or(0, |r| r.attempt),
            accepted: Accepted {
                request_id: request.request_id.clone(),
                model: info.model.clone(),
                worker: info.worker.clone(),
                seed: sampling.seed.unwrap_or_default(),
                prompt_tokens: 4,
                max_tokens: request.stopping.as_ref().and_then(|s| s.max_tokens).unwrap_or(3),
            },
            tokens: request.stopping.as_ref().and_then(|s| s.max_tokens).unwrap_or(3),
            had,
        }
    }

    fn event(&self, choice: u32, event: Event) -> GenerateResponse {
        GenerateResponse { choice, event: Some(event), attempt: self.attempt }
    }

    /// Accepted, and `tokens` tokens of each continuation in turn.
    fn events(self, tokens: u32) -> impl Stream<Item = Result<GenerateResponse, Status>> + Send {
        let first = self.event(0, Event::Accepted(self.accepted.clone()));
        let had = self.had.clone();
        let all = (0..tokens).flat_map(move |i| {
            let missing = had.clone().into_iter().zip(0..);
            missing
                .filter(move |((had, ended), _)| i >= *had && !ended)
                .map(move |(_, choice)| (i, choice))
        });
        let rest = stream::iter(all).map(move |(i, choice)| {
            let delta = TokenDelta { ids: vec![i], text: "x".into(), ..Default::default() };
            Ok(self.event(choice, Event::Token(delta)))
        });
        stream::iter([Ok(first)]).chain(rest)
    }

    /// The ends, the first continuation's last: that one tells what all came to.
    fn ends(&self) -> impl Iterator<Item = GenerateResponse> + Send + use<> {
        let answer = self.clone();
        let open = answer.had.clone().into_iter().zip(0..).filter(|((_, ended), _)| !ended);
        let open: Vec<u32> = open.map(|(_, choice)| choice).collect();
        let last = open.first().copied();
        open.into_iter().rev().map(move |choice| {
            let (usage, timings) = match last {
                Some(last) if last == choice => {
                    (Some(answer.usage()), Some(Answer::timings().into()))
                }
                _ => (None, None),
            };
            let reason = FinishReason::Length.into();
            let end = Finished { reason, usage, timings, ..Default::default() };
            answer.event(choice, Event::Finished(end))
        })
    }

    fn usage(&self) -> Usage {
        let completion_tokens = self.tokens * self.had.len() as u32;
        Usage { prompt_tokens: 4, completion_tokens, ..Default::default() }
    }

    fn timings() -> Timings {
        Timings {
            // Less than a real call can take, so that there is something left to account for.
            worker_total: Duration::from_micros(1).try_into().ok(),
            queue: Duration::ZERO.try_into().ok(),
            ..Default::default()
        }
    }
}

#[tonic::async_trait]
impl Control for Service {
    type WatchLoadStream = Streamed<Load>;

    async fn get_model_info(
        &self,
        _: Request<GetModelInfoRequest>,
    ) -> Result<Response<ModelInfo>, Status> {
        Ok(Response::new(self.0.info.clone()))
    }

    async fn watch_load(
        &self,
        _: Request<WatchLoadRequest>,
    ) -> Result<Response<Self::WatchLoadStream>, Status> {
        let state = (self.0.load.subscribe(), true);
        let loads = stream::unfold(state, |(mut load, first)| async move {
            if !first {
                let _ = tokio::time::timeout(Duration::from_millis(500), load.changed()).await;
            }
            let now = *load.borrow_and_update();
            Some((Ok(now), (load, false)))
        });
        Ok(Response::new(loads.boxed()))
    }

    async fn tokenize(
        &self,
        _: Request<TokenizeRequest>,
    ) -> Result<Response<TokenizeResponse>, Status> {
        Ok(Response::new(TokenizeResponse { ids: vec![1, 2, 3] }))
    }

    async fn detokenize(
        &self,
        request: Request<DetokenizeRequest>,
    ) -> Result<Response<DetokenizeResponse>, Status> {
        let text = format!("{:?}", request.get_ref().ids);
        Ok(Response::new(DetokenizeResponse { text }))
    }
}

//! A scripted worker without a model, which records its requests.

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
    GenerateRequest, GenerateResponse, GetModelInfoRequest, ListModelsRequest, ListModelsResponse,
    Load, ModelInfo, ResumedChoice, Timings, TokenDelta, TokenizeRequest, TokenizeResponse, Usage,
    WatchLoadRequest,
    control_server::{Control, ControlServer},
    generate_response::Event,
    inference_server::{Inference, InferenceServer},
};
use stoker_shared::{ServiceError, guarded::Guarded, serve};
use tokio::{runtime::Runtime, sync::watch};
use tonic::{Request, Response, Status};

use super::soon;

/// Behaviour of a worker for one request.
#[derive(Clone)]
pub enum Script {
    /// `max_tokens` tokens in each choice, and the finished events.
    Complete,
    /// The same, with this pause before each event.
    Paced(Duration),
    /// The same, without the last finished event.
    Unfinished,
    /// A status instead of a stream.
    Refuse(ServiceError),
    /// No response, not even headers.
    Hang,
    /// N tokens, then no further events.
    Stall(u32),
    /// N tokens, then an error.
    Fail(u32, ServiceError),
    /// N tokens, then the end of the stream without a finished event.
    Truncate(u32),
    /// Endless tokens, each in a message of its own.
    Flood,
    /// A response interleaved with events of another attempt.
    OtherAttempts,
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

/// A worker on a real socket. Dropping it closes every socket, as a crash would.
pub struct FakeWorker {
    pub address: SocketAddr,
    state: Arc<State>,
    runtime: Option<Runtime>,
}

impl FakeWorker {
    /// A worker of the model `story` that completes every request.
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
            script: Mutex::new(Box::new(|_| Script::Complete)),
            requests: Mutex::default(),
            timeouts: Mutex::default(),
            connections: Mutex::default(),
            flooded: AtomicUsize::new(0),
            open: watch::Sender::new(0),
            load: watch::Sender::new(Load { free_kv_blocks: 10, ..Default::default() }),
        });
        // A runtime of its own, so that dropping it ends all its tasks.
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

    /// Uses the same script for every request from now on.
    pub fn always(self, script: Script) -> Self {
        self.script(move |_| script.clone());
        self
    }

    pub fn script(&self, choose: impl FnMut(&GenerateRequest) -> Script + Send + 'static) {
        *self.state.script.lock().unwrap() = Box::new(choose);
    }

    /// Returns all received requests.
    pub fn requests(&self) -> Vec<GenerateRequest> {
        self.state.requests.lock().unwrap().clone()
    }

    /// Returns the `grpc-timeout` of all received requests.
    pub fn timeouts(&self) -> Vec<Option<String>> {
        self.state.timeouts.lock().unwrap().clone()
    }

    /// Returns the number of connections on which requests were received.
    pub fn connections(&self) -> usize {
        self.state.connections.lock().unwrap().len()
    }

    /// Returns the number of tokens that floods have produced so far.
    pub fn flood(&self) -> usize {
        self.state.flooded.load(Ordering::Relaxed)
    }

    /// Waits until floods have produced `tokens` tokens.
    pub async fn flooded(&self, tokens: usize) {
        soon(async {
            while self.flood() < tokens {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }

    /// Waits until exactly `count` calls are open.
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

/// Counts an open call until it is dropped.
struct OpenCall(Arc<State>);

impl OpenCall {
    fn new(state: &Arc<State>) -> Self {
        state.open.send_modify(|open| *open += 1);
        Self(Arc::clone(state))
    }
}

impl Drop for OpenCall {
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
        let open = OpenCall::new(&self.0);
        let peer = request.extensions().get::<serve::Peer>().unwrap().address();
        self.0.connections.lock().unwrap().insert(peer);
        let timeout = request.metadata().get("grpc-timeout");
        let timeout = timeout.map(|value| value.to_str().unwrap().to_owned());
        self.0.timeouts.lock().unwrap().push(timeout);
        let request = request.into_inner();
        let script = (self.0.script.lock().unwrap())(&request);
        self.0.requests.lock().unwrap().push(request.clone());

        let response = ScriptedResponse::new(&self.0.info, &request);
        let events: Streamed<GenerateResponse> = match script {
            Script::Refuse(error) => return Err(error.into()),
            Script::Hang => std::future::pending().await,
            Script::Complete => {
                let (tokens, finished) = (response.tokens, response.final_events());
                response.events(tokens).chain(stream::iter(finished.map(Ok))).boxed()
            }
            Script::Paced(pause) => {
                let (tokens, finished) = (response.tokens, response.final_events());
                let paced = response.events(tokens).then(move |event| async move {
                    tokio::time::sleep(pause).await;
                    event
                });
                paced.chain(stream::iter(finished.map(Ok))).boxed()
            }
            Script::Unfinished => {
                let (tokens, finished) = (response.tokens, response.final_events());
                let all_but_last = response.resumed.len() - 1;
                let finished = stream::iter(finished.take(all_but_last).map(Ok));
                response.events(tokens).chain(finished).boxed()
            }
            Script::Stall(tokens) => response.events(tokens).chain(stream::pending()).boxed(),
            Script::Fail(tokens, error) => {
                let failed = stream::iter([Err(Status::from(error))]);
                response.events(tokens).chain(failed).boxed()
            }
            Script::Flood => {
                let state = Arc::clone(&self.0);
                let tokens = response.events(u32::MAX).then(move |event| {
                    state.flooded.fetch_add(1, Ordering::Relaxed);
                    async {
                        // Events that are ready at once share a message.
                        tokio::task::yield_now().await;
                        event
                    }
                });
                tokens.boxed()
            }
            Script::Truncate(tokens) => response.events(tokens).boxed(),
            Script::OtherAttempts => {
                let (tokens, finished) = (response.tokens, response.final_events());
                let other_attempt = |event: &GenerateResponse| GenerateResponse {
                    attempt: event.attempt + 1,
                    ..event.clone()
                };
                let real = response.events(tokens).chain(stream::iter(finished.map(Ok)));
                real.flat_map(move |event: Result<GenerateResponse, Status>| {
                    let event = event.unwrap();
                    stream::iter([Ok(other_attempt(&event)), Ok(event)])
                })
                .boxed()
            }
        };
        Ok(Response::new(Guarded::new(events, open).boxed()))
    }
}

/// Returns the number of tokens of a resumed choice, and whether it is finished. The token ids
/// count from 0, and the text of each is `x`.
fn resumed(choice: ResumedChoice) -> (u32, bool) {
    let count = choice.token_ids.len() as u32;
    assert_eq!(choice.token_ids, Vec::from_iter(0..count));
    assert_eq!(choice.text_bytes_sent, u64::from(count));
    (count, choice.finished.is_some())
}

/// The scripted events of a response to one request.
#[derive(Clone)]
struct ScriptedResponse {
    attempt: u32,
    accepted: Accepted,
    tokens: u32,
    /// Number of resumed tokens of each choice, and whether it is finished.
    resumed: Vec<(u32, bool)>,
}

impl ScriptedResponse {
    fn new(info: &ModelInfo, request: &GenerateRequest) -> Self {
        let sampling = request.sampling.clone().unwrap_or_default();
        let resume = request.routing.clone().and_then(|routing| routing.resume);
        let choices = sampling.num_sequences.unwrap_or(1) as usize;
        let resumed = match resume {
            Some(resume) => {
                let begun = resume.choices.iter().any(|choice| !choice.token_ids.is_empty());
                assert_eq!(resume.digest, if begun { info.digest.as_str() } else { "" });
                assert_eq!(resume.choices.len(), choices);
                resume.choices.into_iter().map(resumed).collect()
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
                ..Accepted::default()
            },
            tokens: request.stopping.as_ref().and_then(|s| s.max_tokens).unwrap_or(3),
            resumed,
        }
    }

    fn event(&self, choice: u32, event: Event) -> GenerateResponse {
        GenerateResponse { choice, event: Some(event), attempt: self.attempt }
    }

    /// Accepted event, then `tokens` tokens of each choice, interleaved.
    fn events(self, tokens: u32) -> impl Stream<Item = Result<GenerateResponse, Status>> + Send {
        let first = self.event(0, Event::Accepted(self.accepted.clone()));
        let resumed = self.resumed.clone();
        let all = (0..tokens).flat_map(move |i| {
            let missing = resumed.clone().into_iter().zip(0..);
            missing
                .filter(move |((resumed, ended), _)| i >= *resumed && !ended)
                .map(move |(_, choice)| (i, choice))
        });
        let rest = stream::iter(all).map(move |(i, choice)| {
            let delta = TokenDelta { ids: vec![i], text: "x".into(), ..Default::default() };
            Ok(self.event(choice, Event::Token(delta)))
        });
        stream::iter([Ok(first)]).chain(rest)
    }

    /// Finished events, that of the first choice last, with the usage and timings of the whole
    /// response.
    fn final_events(&self) -> impl Iterator<Item = GenerateResponse> + Send + use<> {
        let response = self.clone();
        let open = response.resumed.clone().into_iter().zip(0..).filter(|((_, ended), _)| !ended);
        let open: Vec<u32> = open.map(|(_, choice)| choice).collect();
        let last = open.first().copied();
        open.into_iter().rev().map(move |choice| {
            let (usage, timings) = match last {
                Some(last) if last == choice => {
                    (Some(response.usage()), Some(ScriptedResponse::timings().into()))
                }
                _ => (None, None),
            };
            let reason = FinishReason::Length.into();
            let end = Finished { reason, usage, timings, ..Default::default() };
            response.event(choice, Event::Finished(end))
        })
    }

    fn usage(&self) -> Usage {
        let completion_tokens = self.tokens * self.resumed.len() as u32;
        Usage { prompt_tokens: 4, completion_tokens, ..Default::default() }
    }

    fn timings() -> Timings {
        Timings {
            // Less than any real call takes, so that the router's own stages have a remainder.
            worker_total: Duration::from_micros(1).try_into().ok(),
            queue: Duration::ZERO.try_into().ok(),
            ..Default::default()
        }
    }
}

/// What a call returns.
type Returned<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl Control for Service {
    type WatchLoadStream = Streamed<Load>;

    async fn get_model_info(&self, _: Request<GetModelInfoRequest>) -> Returned<ModelInfo> {
        Ok(Response::new(self.0.info.clone()))
    }

    async fn list_models(&self, _: Request<ListModelsRequest>) -> Returned<ListModelsResponse> {
        Err(Status::unimplemented("a router knows its models"))
    }

    async fn watch_load(&self, _: Request<WatchLoadRequest>) -> Returned<Self::WatchLoadStream> {
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

    async fn tokenize(&self, _: Request<TokenizeRequest>) -> Returned<TokenizeResponse> {
        Ok(Response::new(TokenizeResponse { ids: vec![1, 2, 3] }))
    }

    async fn detokenize(
        &self,
        request: Request<DetokenizeRequest>,
    ) -> Returned<DetokenizeResponse> {
        let text = format!("{:?}", request.get_ref().ids);
        Ok(Response::new(DetokenizeResponse { text }))
    }
}

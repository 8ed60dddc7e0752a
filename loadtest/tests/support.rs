//! A scripted server, and the program.

use std::{
    collections::{BTreeSet, HashMap},
    net::SocketAddr,
    path::{Path, PathBuf},
    pin::Pin,
    process::{Output, Stdio},
    sync::{Arc, Mutex},
    time::Duration,
};

use futures::{Stream, StreamExt, stream};
use stoker_proto::v1::{
    Accepted, FinishReason, Finished, GenerateRequest, GenerateResponse, Timings, TokenDelta,
    Usage,
    generate_request::Input,
    generate_response::Event,
    inference_server::{Inference, InferenceServer},
};
use stoker_shared::{ServiceError, guarded::Guarded, serve};
use tempfile::TempDir;
use tokio::{
    net::TcpListener,
    process::{Child, Command},
    sync::watch,
    task::AbortHandle,
    time::timeout,
};
use tonic::{Request, Response, Status};

/// Number of tokens of every response.
pub const TOKENS: u32 = 6;
/// Number of tokens that the server reports for every prompt.
pub const PROMPT_TOKENS: u32 = 4;
/// Limit for waiting, far longer than anything here takes.
const TEST_TIMEOUT: Duration = Duration::from_secs(60);

/// The behavior of the server for a request.
#[derive(Clone)]
pub enum Script {
    /// The response that belongs to the seed.
    Respond,
    /// The same response, split into other events.
    Regroup,
    /// A response with another last token.
    Alter,
    /// A response without one of the tokens that it reports.
    Skip,
    /// A status instead of a stream.
    Refuse(ServiceError),
    /// This number of tokens, then an error.
    Lose(u32, ServiceError),
    /// This number of tokens, then the end of the stream without a last event.
    Truncate(u32),
    /// No response, not even headers.
    Hang,
    /// The response after a delay.
    Late(Duration),
    /// The response, resumed by another worker half-way after a delay.
    Resume(Duration),
    /// The response, once this number of calls is open.
    Together(usize),
    /// This number of tokens, and nothing more.
    Stall(u32),
}

/// Selects the script by the seed of the request and the number of earlier requests with it.
type Choose = dyn Fn(u64, u32) -> Script + Send + Sync;

/// A server on a socket. Dropping it closes it.
pub struct Server {
    pub address: SocketAddr,
    state: Arc<State>,
    task: AbortHandle,
}

struct State {
    choose: Box<Choose>,
    requests: Mutex<HashMap<u64, u32>>,
    prompts: Mutex<Vec<String>>,
    peers: Mutex<BTreeSet<SocketAddr>>,
    /// Number of open calls: current and maximum.
    open: watch::Sender<(usize, usize)>,
}

impl Server {
    pub async fn new(choose: impl Fn(u64, u32) -> Script + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(State {
            choose: Box::new(choose),
            requests: Mutex::default(),
            prompts: Mutex::default(),
            peers: Mutex::default(),
            open: watch::Sender::new((0, 0)),
        });
        let bounds = serve::Bounds::new(&serve::LimitsConfig::default(), None);
        let server = serve::server(&bounds)
            .add_service(InferenceServer::new(Service(Arc::clone(&state))))
            .serve_with_incoming(serve::incoming(listener, &bounds));
        let task = tokio::spawn(server).abort_handle();
        Self { address, state, task }
    }

    /// Returns the number of received requests.
    pub fn requests(&self) -> u32 {
        self.state.requests.lock().unwrap().values().sum()
    }

    /// Returns the received prompts, in order.
    pub fn prompts(&self) -> Vec<String> {
        self.state.prompts.lock().unwrap().clone()
    }

    /// Returns the number of connections with requests.
    pub fn connections(&self) -> usize {
        self.state.peers.lock().unwrap().len()
    }

    /// Returns the maximum number of calls that were open at the same time.
    pub fn max_open(&self) -> usize {
        self.state.open.borrow().1
    }

    /// Waits until `count` calls are open.
    pub async fn open(&self, count: usize) {
        let mut open = self.state.open.subscribe();
        timeout(TEST_TIMEOUT, open.wait_for(|open| open.0 == count)).await.unwrap().unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[derive(Clone)]
struct Service(Arc<State>);

/// Counts a call as open until dropped.
struct OpenCall(Arc<State>);

impl OpenCall {
    fn new(state: &Arc<State>) -> Self {
        state.open.send_modify(|(current, max)| {
            *current += 1;
            *max = (*max).max(*current);
        });
        Self(Arc::clone(state))
    }
}

impl Drop for OpenCall {
    fn drop(&mut self) {
        self.0.open.send_modify(|open| open.0 -= 1);
    }
}

#[tonic::async_trait]
impl Inference for Service {
    type GenerateStream = Pin<Box<dyn Stream<Item = Result<GenerateResponse, Status>> + Send>>;

    async fn generate(
        &self,
        request: Request<GenerateRequest>,
    ) -> Result<Response<Self::GenerateStream>, Status> {
        let open = OpenCall::new(&self.0);
        self.0
            .peers
            .lock()
            .unwrap()
            .insert(request.extensions().get::<serve::Peer>().unwrap().address());
        let seed = request.get_ref().sampling.as_ref().unwrap().seed.unwrap();
        if let Some(Input::Prompt(prompt)) = &request.get_ref().input {
            self.0.prompts.lock().unwrap().push(prompt.clone());
        }
        let before = {
            let mut requests = self.0.requests.lock().unwrap();
            let count = requests.entry(seed).or_default();
            *count += 1;
            *count - 1
        };
        let ids: Vec<u32> = (0..TOKENS).map(|i| (seed as u32) * 100 + i).collect();
        let mut pieces: Vec<Vec<u32>> = ids.iter().map(|id| vec![*id]).collect();
        let mut last = Some(Ok(finished(0)));
        let (mut pause, mut stalls) = (None, false);
        match (self.0.choose)(seed, before) {
            Script::Respond => {}
            Script::Regroup => pieces = ids.chunks(4).map(<[u32]>::to_vec).collect(),
            Script::Alter => pieces[TOKENS as usize - 1][0] += 1,
            Script::Skip => drop(pieces.remove(2)),
            Script::Refuse(error) => return Err(error.into()),
            Script::Lose(tokens, error) => {
                pieces.truncate(tokens as usize);
                last = Some(Err(Status::from(error)));
            }
            Script::Truncate(tokens) => {
                pieces.truncate(tokens as usize);
                last = None;
            }
            Script::Stall(tokens) => {
                pieces.truncate(tokens as usize);
                stalls = true;
            }
            Script::Hang => std::future::pending().await,
            Script::Late(time) => tokio::time::sleep(time).await,
            Script::Resume(time) => {
                pause = Some(time);
                last = Some(Ok(finished(1)));
            }
            Script::Together(count) => {
                let mut open = self.0.open.subscribe();
                let _ = open.wait_for(|open| open.1 >= count).await;
            }
        }
        let accepted = Event::Accepted(Accepted {
            request_id: format!("r{seed}"),
            model: "scripted".into(),
            worker: format!("worker-{}", seed % 2),
            seed,
            prompt_tokens: PROMPT_TOKENS,
            ..Accepted::default()
        });
        let pieces_sent = pieces.len();
        let tokens = pieces.into_iter().map(|ids| {
            let text = ids.iter().map(|id| format!("{id} ")).collect();
            Event::Token(TokenDelta { ids, text, logprobs: Vec::new() })
        });
        let events = [accepted].into_iter().chain(tokens).map(Ok).chain(last);
        let events = stream::iter(events.enumerate()).then(move |(i, event)| async move {
            if let Some(time) = pause.filter(|_| i == TOKENS as usize / 2) {
                tokio::time::sleep(time).await;
            }
            // Another worker has resumed it by then.
            let attempt = 1 + u32::from(pause.is_some() && i >= TOKENS as usize / 2);
            event.map(|event| GenerateResponse { choice: 0, event: Some(event), attempt })
        });
        let events = if stalls {
            let tokens = events.take(1 + pieces_sent).boxed();
            tokens.chain(stream::pending()).boxed()
        } else {
            events.boxed()
        };
        Ok(Response::new(Guarded::new(events, open).boxed()))
    }
}

fn finished(resumes: u32) -> Event {
    let duration = |millis| Duration::from_millis(millis).try_into().ok();
    Event::Finished(Finished {
        reason: FinishReason::Length.into(),
        usage: Some(Usage {
            prompt_tokens: PROMPT_TOKENS,
            completion_tokens: TOKENS,
            cached_prompt_tokens: 1,
        }),
        timings: Some(Box::new(Timings {
            queue: duration(2),
            prefill: duration(3),
            decode: duration(5),
            worker_total: duration(10),
            resumes,
            ..Timings::default()
        })),
        ..Finished::default()
    })
}

/// The result of a run of the program.
pub struct RunOutput {
    pub code: Option<i32>,
    pub table: String,
    pub errors: String,
    pub json: serde_json::Value,
}

impl RunOutput {
    /// Returns the count at this path of the JSON file, for instance `requests.lost`.
    pub fn count(&self, path: &str) -> u64 {
        self.at(path).as_u64().unwrap()
    }

    pub fn at(&self, path: &str) -> &serde_json::Value {
        path.split('.').fold(&self.json, |value, key| &value[key])
    }
}

/// The folder of the files that the program reads and writes.
pub struct Files(TempDir);

impl Files {
    pub fn new() -> Self {
        let files = Self(tempfile::tempdir().unwrap());
        files.write("prompts.txt", "Once upon a time\nThe fox\n\nA hen\n");
        files
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).unwrap();
    }

    pub fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap()
    }
}

pub fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_stoker-loadtest"));
    command.env_clear().kill_on_drop(true);
    command
}

/// The command of a load test of `server`, in a folder with prompts. Tests share their processors, so that
/// the load test itself may be late.
pub fn command(server: &Server, files: &Files, arguments: &str) -> Command {
    let mut command = program();
    command
        .args(["--endpoint", &server.address.to_string()])
        .args(["--prompts", "prompts.txt", "--json", "results.json", "--max-lateness", "1h"])
        .args(arguments.split_whitespace())
        .current_dir(files.path(""))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// Starts the program against `server`.
pub fn start(server: &Server, files: &Files, arguments: &str) -> Child {
    command(server, files, arguments).spawn().unwrap()
}

pub async fn end(program: Child, files: &Files) -> RunOutput {
    let output = timeout(TEST_TIMEOUT, program.wait_with_output()).await.unwrap().unwrap();
    let (code, table, errors) = captured(output);
    let json = std::fs::read(files.path("results.json")).unwrap_or_default();
    RunOutput { code, table, errors, json: serde_json::from_slice(&json).unwrap_or_default() }
}

pub async fn run(server: &Server, files: &Files, arguments: &str) -> RunOutput {
    end(start(server, files, arguments), files).await
}

/// Runs the program without a server.
pub async fn alone(arguments: &[&str], folder: &Path) -> (Option<i32>, String, String) {
    captured(program().args(arguments).current_dir(folder).output().await.unwrap())
}

fn captured(output: Output) -> (Option<i32>, String, String) {
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

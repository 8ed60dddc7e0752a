//! A server that answers by a script, and the program.

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

/// Tokens of every answer.
pub const TOKENS: u32 = 6;
/// Tokens that every prompt is said to have.
pub const PROMPT_TOKENS: u32 = 4;
/// Far above what anything here takes; a test that waits this long has failed.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the server does with a request.
#[derive(Clone)]
pub enum Script {
    /// The answer that belongs to the seed.
    Answer,
    /// The same answer, in other pieces.
    Regroup,
    /// An answer whose last token is another one.
    Alter,
    /// An answer that a token is missing of, though it says otherwise.
    Skip,
    /// A status instead of a stream.
    Refuse(ServiceError),
    /// That many tokens, then an error.
    Lose(u32, ServiceError),
    /// That many tokens, then the end, without a last event.
    Truncate(u32),
    /// Nothing, not even headers.
    Hang,
    /// The answer, that much later.
    Late(Duration),
    /// The answer, which another worker takes over that much later, half-way.
    Resume(Duration),
    /// The answer, once that many calls are under way.
    Together(usize),
}

/// Chooses by the request's seed and by how often it was asked before.
type Choose = dyn Fn(u64, u32) -> Script + Send + Sync;

/// A server on a socket. Dropping it closes it.
pub struct Server {
    pub address: SocketAddr,
    state: Arc<State>,
    task: AbortHandle,
}

struct State {
    choose: Box<Choose>,
    asked: Mutex<HashMap<u64, u32>>,
    peers: Mutex<BTreeSet<SocketAddr>>,
    /// Calls under way, now and at most.
    open: watch::Sender<(usize, usize)>,
}

impl Server {
    pub async fn new(choose: impl Fn(u64, u32) -> Script + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(State {
            choose: Box::new(choose),
            asked: Mutex::default(),
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

    /// Requests that came.
    pub fn requests(&self) -> u32 {
        self.state.asked.lock().unwrap().values().sum()
    }

    /// Connections that they came on.
    pub fn connections(&self) -> usize {
        self.state.peers.lock().unwrap().len()
    }

    /// The most calls that were under way at once.
    pub fn most_open(&self) -> usize {
        self.state.open.borrow().1
    }

    /// Waits until `count` calls are under way.
    pub async fn open(&self, count: usize) {
        let mut open = self.state.open.subscribe();
        timeout(PATIENCE, open.wait_for(|open| open.0 == count)).await.unwrap().unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[derive(Clone)]
struct Service(Arc<State>);

/// Counts a call for as long as it lives.
struct Open(Arc<State>);

impl Open {
    fn new(state: &Arc<State>) -> Self {
        state.open.send_modify(|(now, most)| {
            *now += 1;
            *most = (*most).max(*now);
        });
        Self(Arc::clone(state))
    }
}

impl Drop for Open {
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
        let open = Open::new(&self.0);
        self.0
            .peers
            .lock()
            .unwrap()
            .insert(request.extensions().get::<serve::Peer>().unwrap().address());
        let seed = request.get_ref().sampling.as_ref().unwrap().seed.unwrap();
        let before = {
            let mut asked = self.0.asked.lock().unwrap();
            let count = asked.entry(seed).or_default();
            *count += 1;
            *count - 1
        };
        let ids: Vec<u32> = (0..TOKENS).map(|i| (seed as u32) * 100 + i).collect();
        let mut pieces: Vec<Vec<u32>> = ids.iter().map(|id| vec![*id]).collect();
        let mut last = Some(Ok(finished(0)));
        let mut pause = None;
        match (self.0.choose)(seed, before) {
            Script::Answer => {}
            Script::Regroup => pieces = ids.chunks(4).map(<[u32]>::to_vec).collect(),
            Script::Alter => pieces[TOKENS as usize - 1][0] += 1,
            Script::Skip => drop(pieces.remove(2)),
            Script::Refuse(refusal) => return Err(refusal.into()),
            Script::Lose(tokens, loss) => {
                pieces.truncate(tokens as usize);
                last = Some(Err(Status::from(loss)));
            }
            Script::Truncate(tokens) => {
                pieces.truncate(tokens as usize);
                last = None;
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
            max_tokens: 0,
        });
        let tokens = pieces.into_iter().map(|ids| {
            let text = ids.iter().map(|id| format!("{id} ")).collect();
            Event::Token(TokenDelta { ids, text, logprobs: Vec::new() })
        });
        let events = [accepted].into_iter().chain(tokens).map(Ok).chain(last);
        let events = stream::iter(events.enumerate()).then(move |(i, event)| async move {
            if let Some(time) = pause.filter(|_| i == TOKENS as usize / 2) {
                tokio::time::sleep(time).await;
            }
            event.map(|event| GenerateResponse { choice: 0, event: Some(event), attempt: 0 })
        });
        Ok(Response::new(Guarded::new(events.boxed(), open).boxed()))
    }
}

fn finished(resumes: u32) -> Event {
    let spent = |millis| Duration::from_millis(millis).try_into().ok();
    Event::Finished(Finished {
        reason: FinishReason::Length.into(),
        usage: Some(Usage {
            prompt_tokens: PROMPT_TOKENS,
            completion_tokens: TOKENS,
            cached_prompt_tokens: 1,
        }),
        timings: Some(Box::new(Timings {
            queue: spent(2),
            prefill: spent(3),
            decode: spent(5),
            worker_total: spent(10),
            resumes,
            ..Timings::default()
        })),
        ..Finished::default()
    })
}

/// What a run of the program came to.
pub struct Ran {
    pub code: Option<i32>,
    pub table: String,
    pub errors: String,
    pub json: serde_json::Value,
}

impl Ran {
    /// The count that the JSON file has at this path, for instance `requests.lost`.
    pub fn count(&self, path: &str) -> u64 {
        self.at(path).as_u64().unwrap()
    }

    pub fn at(&self, path: &str) -> &serde_json::Value {
        path.split('.').fold(&self.json, |value, key| &value[key])
    }
}

/// A folder with what the program reads and writes.
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

/// Starts the program on `server`, in a folder with prompts.
pub fn start(server: &Server, files: &Files, arguments: &str) -> Child {
    program()
        .args(["--endpoint", &server.address.to_string()])
        .args(["--prompts", "prompts.txt", "--json", "results.json"])
        .args(arguments.split_whitespace())
        .current_dir(files.path(""))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

pub async fn end(program: Child, files: &Files) -> Ran {
    let output = timeout(PATIENCE, program.wait_with_output()).await.unwrap().unwrap();
    let (code, table, errors) = told(output);
    let json = std::fs::read(files.path("results.json")).unwrap_or_default();
    Ran { code, table, errors, json: serde_json::from_slice(&json).unwrap_or_default() }
}

pub async fn run(server: &Server, files: &Files, arguments: &str) -> Ran {
    end(start(server, files, arguments), files).await
}

/// Runs the program without a server.
pub async fn alone(arguments: &[&str], folder: &Path) -> (Option<i32>, String, String) {
    told(program().args(arguments).current_dir(folder).output().await.unwrap())
}

fn told(output: Output) -> (Option<i32>, String, String) {
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

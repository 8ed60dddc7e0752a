//! Clusters, processes and requests for tests.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader},
    path::PathBuf,
    process::{Child, ChildStderr, Command, ExitStatus, Output, Stdio},
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use futures::StreamExt;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use stoker::cluster::Cluster;
use stoker_proto::v1::{
    Accepted, Finished, GenerateRequest, GenerateResponse, Load, Sampling, Stopping,
    WatchLoadRequest, admin_client::AdminClient, control_client::ControlClient,
    generate_request::Input, generate_response::Event, inference_client::InferenceClient,
};
use stoker_router::RouterConfig;
use stoker_shared::names::label;
use stoker_worker::{ModelSource, WorkerConfig};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tonic::{Status, Streaming, transport::Channel};

/// Limit of every wait, far longer than any of them takes: a test that reaches it fails.
pub const TEST_TIMEOUT: Duration = Duration::from_secs(180);

/// A cluster in this process.
pub async fn cluster(workers: u16) -> Cluster {
    let any = ([127, 0, 0, 1], 0).into();
    Cluster::start(
        any,
        ModelSource::Bundled,
        workers,
        WorkerConfig::default(),
        RouterConfig::default(),
    )
    .await
    .unwrap()
}

pub async fn channel(address: &str) -> Channel {
    Channel::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap()
}

pub async fn inference(address: &str) -> InferenceClient<Channel> {
    InferenceClient::new(channel(address).await).max_encoding_message_size(64 << 20)
}

pub async fn control(address: &str) -> ControlClient<Channel> {
    ControlClient::new(channel(address).await)
}

/// A request for exactly `tokens` tokens, sampled with `seed`.
pub fn request(prompt: &str, seed: u64, tokens: u32) -> GenerateRequest {
    GenerateRequest {
        input: Some(Input::Prompt(prompt.into())),
        sampling: Some(Sampling { seed: Some(seed), ..Sampling::default() }),
        stopping: Some(Stopping {
            max_tokens: Some(tokens),
            ignore_eos: true,
            ..Stopping::default()
        }),
        ..GenerateRequest::default()
    }
}

/// A complete response.
#[derive(Debug, Clone, PartialEq)]
pub struct Completion {
    pub accepted: Accepted,
    pub ids: Vec<u32>,
    pub text: String,
    pub finished: Finished,
}

/// Reads a stream to its `Finished` event. Calls `each` for every token event. Fails on an error
/// status and on a stream that ends without `Finished`.
pub async fn read(
    mut stream: Streaming<GenerateResponse>,
    mut each: impl FnMut(),
) -> Result<Completion, Status> {
    let (mut accepted, mut ids, mut text) = (None, vec![], String::new());
    while let Some(response) = stream.next().await {
        match response?.event.unwrap() {
            Event::Accepted(event) => accepted = Some(event),
            Event::Token(delta) => {
                ids.extend(delta.ids);
                text.push_str(&delta.text);
                each();
            }
            Event::Finished(finished) => {
                assert!(finished.usage.is_some(), "a single choice has one Finished event");
                assert!(stream.next().await.is_none(), "the finish is the last event");
                return Ok(Completion { accepted: accepted.unwrap(), ids, text, finished });
            }
            Event::Prompt(_) | Event::Preempted(_) => {}
        }
    }
    Err(Status::internal("the stream ended without a finish"))
}

pub async fn complete(
    client: &mut InferenceClient<Channel>,
    request: GenerateRequest,
) -> Result<Completion, Status> {
    read(client.generate(request).await?.into_inner(), || ()).await
}

/// Waits until a load report satisfies `wanted`.
pub async fn wait_for_load(client: &mut ControlClient<Channel>, wanted: impl Fn(&Load) -> bool) {
    let watch = client.watch_load(WatchLoadRequest::default()).await.unwrap();
    let mut loads = watch.into_inner();
    let wait = async { while !wanted(&loads.next().await.unwrap().unwrap()) {} };
    timeout(TEST_TIMEOUT, wait).await.unwrap();
}

/// The command of a load test that prints its JSON to standard output. Tests share their processors, so
/// that the load test itself may be late.
pub fn load_test(address: &str, arguments: &str) -> tokio::process::Command {
    let mut command = program("stoker-loadtest");
    command.args(["--endpoint", address, "--json", "-", "--max-lateness", "1h"]);
    command.args(arguments.split_whitespace());
    let mut command = tokio::process::Command::from(command);
    command.kill_on_drop(true);
    command
}

/// Runs a load test to its end and returns its exit code and JSON.
pub async fn run(mut command: tokio::process::Command) -> (Option<i32>, Value) {
    let Output { status, stdout, stderr } =
        timeout(TEST_TIMEOUT, command.output()).await.unwrap().unwrap();
    eprintln!("{}", String::from_utf8_lossy(&stderr));
    let mut json: Value = serde_json::from_slice(&stdout).unwrap_or_default();
    // Long lists, which would hide everything else where a test fails.
    for key in ["cdf", "slices", "samples"] {
        json.as_object_mut().and_then(|json| json.remove(key));
    }
    (status.code(), json)
}

/// Runs a command to its end. Returns exit code, standard output and standard error.
pub async fn output(command: Command) -> (Option<i32>, String, String) {
    let mut command = tokio::process::Command::from(command);
    let Output { status, stdout, stderr } =
        timeout(TEST_TIMEOUT, command.kill_on_drop(true).output()).await.unwrap().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code(), text(stdout), text(stderr))
}

/// Runs `stoker` to its end. Returns exit code, standard output and standard error.
pub async fn stoker(arguments: &[&str]) -> (Option<i32>, String, String) {
    let mut command = program("stoker");
    command.args(arguments);
    output(command).await
}

/// The command of a program of the workspace, in the folder of this package's own binary.
pub fn program(name: &str) -> Command {
    let path = PathBuf::from(env!("CARGO_BIN_EXE_stoker")).with_file_name(name);
    assert!(path.exists(), "{} is not built: run the tests of the whole workspace", path.display());
    let mut command = Command::new(path);
    command.env_clear();
    command
}

/// A server in its own process. Killed when it is dropped.
pub struct Process {
    child: Child,
    /// Address of the gRPC listener.
    pub address: String,
    /// Address of the Admin service.
    pub admin: String,
    /// URL of the metrics, if they are served.
    pub metrics: Option<String>,
    /// Id of a worker.
    pub id: String,
    /// The log entry that has the addresses.
    pub started: Value,
    /// The lines of its log since then.
    log: Arc<Mutex<Vec<String>>>,
}

impl Process {
    /// Starts `name` on a free port and waits until its log has the address.
    pub fn start(name: &str, arguments: &[&str]) -> Self {
        let mut command = program(name);
        command.args(arguments);
        Self::spawn(command)
    }

    /// Starts a server, on a free port unless `--listen` is given, and waits until its log has the
    /// address.
    pub fn spawn(mut command: Command) -> Self {
        if !command.get_args().any(|argument| argument == "--listen") {
            command.args(["--listen", "127.0.0.1:0"]);
        }
        let mut child =
            command.args(["--log-format", "json"]).stderr(Stdio::piped()).spawn().unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let (started, metrics) = parse_start(&mut log);
        let text = |field: &str| started[field].as_str().unwrap_or_default().to_owned();
        let (address, admin, id) = (text("address"), text("admin"), text("worker"));
        let lines = Arc::<Mutex<Vec<String>>>::default();
        let kept = Arc::clone(&lines);
        // Keeps reading, or the process would block on a full pipe.
        thread::spawn(move || {
            for line in log.lines().map_while(Result::ok) {
                eprintln!("{line}");
                kept.lock().unwrap().push(line);
            }
        });
        Self { child, address, admin, metrics, id, started, log: lines }
    }

    /// Waits until the log has an entry with this message, and returns it.
    pub async fn log_entry(&self, message: &str) -> Value {
        let search = async {
            loop {
                let lines = self.log.lock().unwrap().clone();
                let entries = lines.iter().filter_map(|line| serde_json::from_str(line).ok());
                if let Some(entry) = entries.into_iter().find(|e: &Value| e["message"] == message) {
                    return entry;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(TEST_TIMEOUT, search).await.unwrap_or_else(|_| panic!("no log entry {message}"))
    }

    /// A client of the Admin service.
    pub async fn admin_client(&self) -> AdminClient<Channel> {
        AdminClient::new(channel(&self.admin).await)
    }

    /// Sends SIGTERM.
    pub fn terminate(&self) {
        self.signal(Signal::SIGTERM);
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).unwrap();
    }

    /// Waits for the process to end.
    pub fn wait(mut self) -> ExitStatus {
        self.child.wait().unwrap()
    }

    /// The process id.
    pub fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).unwrap())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Fails if the process has ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Samples by name and labels.
pub type Metrics = BTreeMap<String, f64>;

/// Sends a request to the metrics port of a process and returns the response's head in lower case
/// and its body.
pub async fn http(metrics: &str, method: &str, path: &str, accept: &str) -> (String, String) {
    let url = metrics.strip_prefix("http://").unwrap();
    let (host, _) = url.split_once('/').unwrap();
    let mut socket = TcpStream::connect(host).await.unwrap();
    let accept = if accept.is_empty() { String::new() } else { format!("Accept: {accept}\r\n") };
    let request =
        format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\n{accept}Connection: close\r\n\r\n");
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut response = String::new();
    socket.read_to_string(&mut response).await.unwrap();
    let (head, body) = response.split_once("\r\n\r\n").unwrap();
    (head.to_ascii_lowercase(), body.to_owned())
}

pub async fn scrape(process: &Process) -> Metrics {
    let open_metrics = "application/openmetrics-text; version=1.0.0";
    let metrics = process.metrics.as_deref().unwrap();
    let (head, body) = http(metrics, "GET", "/metrics", open_metrics).await;
    assert!(head.starts_with("http/1.1 200") && head.contains(open_metrics), "{head}");
    assert!(body.trim_end().ends_with("# EOF"), "{body}");
    let samples = body.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
    let sample = |line: &str| {
        // Without its exemplar.
        let line = line.split(" # {").next().unwrap();
        let (name, value) = line.rsplit_once(' ').unwrap();
        assert_labels_are_documented(name);
        (name.to_owned(), value.parse().unwrap_or_else(|e| panic!("{e}: {line}")))
    };
    samples.map(sample).collect()
}

/// Asserts that docs/metrics.md lists the values of the sample's labels. Labels with unbounded
/// values are not checked.
fn assert_labels_are_documented(sample: &str) {
    let explanations: String = label::ALL.iter().map(|(_, values)| *values).collect();
    for listed in [label::REASON, label::OUTCOME, label::STATE, label::LIMIT, label::FEATURE] {
        let value = sample.split_once(&format!("{listed}=\"")).and_then(|(_, v)| v.split_once('"'));
        let known = |(value, _)| explanations.contains(&format!("`{value}`"));
        assert!(value.is_none_or(known), "{sample}: {listed} is not documented in names/label.rs");
    }
}

/// Reads the log until the entry with the address of the gRPC listener. Returns it, and the URL of
/// the metrics, which is logged first.
fn parse_start(log: &mut BufReader<ChildStderr>) -> (Value, Option<String>) {
    let mut seen = String::new();
    let mut metrics = None;
    loop {
        let mut line = String::new();
        assert!(
            log.read_line(&mut line).unwrap() > 0,
            "the process ended before it listened:\n{seen}"
        );
        let entry: Value = serde_json::from_str(&line).unwrap_or_default();
        if let Some(url) = entry["url"].as_str() {
            metrics = Some(url.to_owned());
        }
        if entry["address"].is_string() {
            return (entry, metrics);
        }
        seen.push_str(&line);
    }
}

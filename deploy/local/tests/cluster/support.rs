//! Clusters, processes and requests to test with.

use std::{
    io::{BufRead, BufReader},
    path::PathBuf,
    process::{Child, ChildStderr, Command, ExitStatus, Stdio},
    thread,
};

use futures::StreamExt;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use stoker::cluster::Cluster;
use stoker_proto::v1::{
    Accepted, Finished, GenerateRequest, GenerateResponse, Sampling, Stopping,
    control_client::ControlClient, generate_request::Input, generate_response::Event,
    inference_client::InferenceClient,
};
use stoker_worker::{ModelSource, WorkerConfig};
use tonic::{Status, Streaming, transport::Channel};

/// A cluster in this process.
pub async fn cluster(workers: u16) -> Cluster {
    let any = ([127, 0, 0, 1], 0).into();
    Cluster::start(any, ModelSource::Bundled, workers, WorkerConfig::default()).await.unwrap()
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

/// Exactly `tokens` tokens, sampled with `seed`.
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

/// A whole answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    pub accepted: Accepted,
    pub ids: Vec<u32>,
    pub text: String,
    pub finished: Finished,
}

/// Reads a stream to its end, which must be an orderly one. Tells `each` about every token.
pub async fn read(
    mut stream: Streaming<GenerateResponse>,
    mut each: impl FnMut(),
) -> Result<Answer, Status> {
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
                assert!(finished.usage.is_some(), "one continuation ends once");
                assert!(stream.next().await.is_none(), "the finish is the last event");
                return Ok(Answer { accepted: accepted.unwrap(), ids, text, finished });
            }
            Event::Prompt(_) => {}
        }
    }
    Err(Status::internal("the stream ended without a finish"))
}

pub async fn answer(
    client: &mut InferenceClient<Channel>,
    request: GenerateRequest,
) -> Result<Answer, Status> {
    read(client.generate(request).await?.into_inner(), || ()).await
}

/// A program of the workspace, beside the one that this package builds.
pub fn program(name: &str) -> Command {
    let path = PathBuf::from(env!("CARGO_BIN_EXE_stoker")).with_file_name(name);
    assert!(path.exists(), "{} is not built: run the tests of the whole workspace", path.display());
    let mut command = Command::new(path);
    command.env_clear();
    command
}

/// A server in a process of its own. Killed when it is dropped.
pub struct Process {
    child: Child,
    /// Where it listens.
    pub address: String,
    /// Where its metrics are, if it was asked to serve them.
    pub metrics: Option<String>,
}

impl Process {
    /// Starts `name` on a free port and waits until its log tells the address.
    pub fn start(name: &str, arguments: &[&str]) -> Self {
        let mut command = program(name);
        command.args(arguments);
        Self::spawn(command)
    }

    /// Starts a server program on a free port and waits until its log tells the address.
    pub fn spawn(mut command: Command) -> Self {
        let mut child = command
            .args(["--listen", "127.0.0.1:0", "--log-format", "json"])
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let (address, metrics) = addresses_in(&mut log);
        // Somebody has to read on, or the process would stop at a full pipe.
        thread::spawn(move || {
            log.lines().map_while(Result::ok).for_each(|line| eprintln!("{line}"))
        });
        Self { child, address, metrics }
    }

    /// Asks it to stop.
    pub fn terminate(&self) {
        kill(self.pid(), Signal::SIGTERM).unwrap();
    }

    /// Waits for its end.
    pub fn wait(mut self) -> ExitStatus {
        self.child.wait().unwrap()
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).unwrap())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Fails if it has ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Where it listens, and where its metrics are, which it tells before.
fn addresses_in(log: &mut BufReader<ChildStderr>) -> (String, Option<String>) {
    let mut seen = String::new();
    let mut metrics = None;
    loop {
        let mut line = String::new();
        assert!(log.read_line(&mut line).unwrap() > 0, "it ended before it listened:\n{seen}");
        let entry: serde_json::Value = serde_json::from_str(&line).unwrap_or_default();
        if let Some(url) = entry["url"].as_str() {
            metrics = Some(url.to_owned());
        }
        if let Some(address) = entry["address"].as_str() {
            return (address.to_owned(), metrics);
        }
        seen.push_str(&line);
    }
}

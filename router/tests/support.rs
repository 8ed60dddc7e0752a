//! A router with scripted workers, on real sockets.

pub mod worker;

use std::{future::Future, time::Duration};

use futures::StreamExt;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use prometheus_client::registry::Registry;
use stoker_proto::v1::{
    Accepted, Finished, GenerateRequest, GenerateResponse, Stopping, control_client::ControlClient,
    generate_request::Input, generate_response::Event, inference_client::InferenceClient,
};
use stoker_router::{RouterConfig, RunningRouter, WorkerView};
use stoker_shared::{
    discovery::{Candidate, Source, WorkerId, dns},
    metrics::exposition,
    serve::LimitsConfig,
};
use tokio::net::TcpListener;
use tonic::{IntoRequest, Status, Streaming, body::Body, transport::Channel};
use worker::FakeWorker;

/// Far above the duration of any step; a test that waits this long has failed.
pub const TIMEOUT: Duration = Duration::from_secs(20);

/// Awaits `what`, and panics after [`TIMEOUT`].
pub async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(TIMEOUT, what).await.expect("it must happen soon")
}

/// A router, and a connection to it.
pub struct Cluster {
    pub router: RunningRouter,
    channel: Channel,
}

impl Cluster {
    /// A router with default settings, except for more streams per connection, once all `workers`
    /// are ready.
    pub async fn of(workers: &[&FakeWorker]) -> Self {
        let max_streams_per_connection = Some(16_384);
        let limits = LimitsConfig { max_streams_per_connection, ..LimitsConfig::default() };
        Self::with(RouterConfig { limits, ..RouterConfig::default() }, workers).await
    }

    pub async fn with(config: RouterConfig, workers: &[&FakeWorker]) -> Self {
        let addresses = workers.iter().map(|worker| worker.address.into());
        let cluster = Self::following(config, dns::lookup(addresses)).await;
        soon(cluster.router.wait_ready(workers.len())).await;
        cluster
    }

    pub async fn following(config: RouterConfig, source: impl Into<Source>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let router = stoker_router::start(config, source, listener).await.unwrap();
        let channel = Channel::from_shared(format!("http://{}", router.address()))
            .unwrap()
            .connect()
            .await
            .unwrap();
        Self { router, channel }
    }

    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    pub fn client(&self) -> InferenceClient<Channel> {
        InferenceClient::new(self.channel())
    }

    /// A client that does not enforce deadlines itself, as tonic's does, so that it gets the
    /// router's status.
    pub fn without_client_deadline(&self) -> InferenceClient<Client<HttpConnector, Body>> {
        let client = Client::builder(TokioExecutor::new()).http2_only(true).build_http();
        let origin = format!("http://{}", self.router.address());
        InferenceClient::with_origin(client, origin.parse().unwrap())
    }

    /// A client with a small flow-control window, which buffers almost nothing.
    pub async fn with_small_window(&self) -> InferenceClient<Channel> {
        let channel = Channel::from_shared(format!("http://{}", self.router.address()))
            .unwrap()
            .initial_stream_window_size(1024)
            .connect()
            .await
            .unwrap();
        InferenceClient::new(channel)
    }

    pub fn control(&self) -> ControlClient<Channel> {
        ControlClient::new(self.channel())
    }

    /// Starts a stream.
    pub async fn generate(
        &self,
        request: impl IntoRequest<GenerateRequest>,
    ) -> Result<Streaming<GenerateResponse>, Status> {
        let response = soon(self.client().generate(request.into_request())).await?;
        Ok(response.into_inner())
    }

    /// Returns the value of a router metric, with its labels; 0 while it is not exported.
    pub fn metric(&self, name: &str) -> u64 {
        let mut registry = Registry::default();
        self.router.register_metrics(&mut registry);
        let text = exposition(&registry);
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.map_or(0, |value| value.parse().unwrap())
    }

    /// Waits until the router's view of its workers meets `holds`.
    pub async fn until(&self, holds: impl Fn(&[WorkerView]) -> bool) {
        soon(async {
            while !holds(&self.router.workers()) {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }
}

/// A worker as listed by a discovery source.
pub fn candidate(id: &str, worker: &FakeWorker) -> Candidate {
    Candidate::named(WorkerId::new(id), worker.address.to_string())
}

/// A request for `max_tokens` tokens.
pub fn request(max_tokens: u32) -> GenerateRequest {
    GenerateRequest {
        input: Some(Input::Prompt("once upon a time".into())),
        stopping: Some(Stopping { max_tokens: Some(max_tokens), ..Default::default() }),
        ..Default::default()
    }
}

/// Reads a stream to its end. Returns the events, and the error that ended it.
pub async fn collect(
    mut stream: Streaming<GenerateResponse>,
) -> (Vec<GenerateResponse>, Option<Status>) {
    let mut events = Vec::new();
    while let Some(item) = soon(stream.next()).await {
        match item {
            Ok(event) => events.push(event),
            Err(status) => return (events, Some(status)),
        }
    }
    (events, None)
}

pub fn accepted(events: &[GenerateResponse]) -> &Accepted {
    match events.first().and_then(|first| first.event.as_ref()) {
        Some(Event::Accepted(accepted)) => accepted,
        other => panic!("not accepted: {other:?}"),
    }
}

pub fn finished(events: &[GenerateResponse]) -> &Finished {
    match events.last().and_then(|last| last.event.as_ref()) {
        Some(Event::Finished(finished)) => finished,
        other => panic!("not finished: {other:?}"),
    }
}

/// Returns the number of token events.
pub fn tokens(events: &[GenerateResponse]) -> usize {
    events.iter().filter(|e| matches!(e.event, Some(Event::Token(_)))).count()
}

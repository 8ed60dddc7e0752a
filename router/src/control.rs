//! `stoker.v1.Control` on the router: what its cluster serves, how busy that is, and questions that a worker answers.

use std::{sync::Arc, time::Duration};

use futures::{Stream, StreamExt, stream};
use stoker_proto::v1::{
    DetokenizeRequest, DetokenizeResponse, GetModelInfoRequest, Load, ModelInfo, TokenizeRequest,
    TokenizeResponse, WatchLoadRequest, control_client::ControlClient, control_server::Control,
};
use stoker_shared::{
    client::MAX_EVENT_BYTES,
    deadline::Deadline,
    duration,
    serve::{self, Bounds, CallLimit, Charge},
};
use tokio::time::{Instant, MissedTickBehavior};
use tonic::{Request, Response, Status, transport::Channel};

use crate::{endpoint, layer::gate::DrainGate, policy, pool::Pool};

/// Between two reports of the load: what a client gets that asks for nothing, and the least it can ask for.
const LOAD_INTERVAL: Duration = Duration::from_millis(100);
const LEAST_LOAD_INTERVAL: Duration = Duration::from_millis(10);
/// Load is reported this often also when nothing changes.
const LOAD_HEARTBEAT: Duration = Duration::from_secs(1);
/// Calls to `WatchLoad` at once: each report reads the whole fleet.
const LOAD_WATCHES: usize = 128;

/// How long a forwarded call without a deadline may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// Calls that may be forwarded to workers at once.
const QUESTIONS: usize = 1_024;

/// Serves it.
#[derive(Clone)]
pub(crate) struct ControlService {
    pool: Pool,
    gate: DrainGate,
    bounds: Bounds,
    watches: CallLimit,
    questions: CallLimit,
}

impl ControlService {
    pub(crate) fn new(pool: Pool, gate: DrainGate, bounds: Bounds) -> Self {
        let watches = CallLimit::new("WatchLoad calls", LOAD_WATCHES);
        let questions = CallLimit::new("Tokenize and Detokenize calls", QUESTIONS);
        Self { pool, gate, bounds, watches, questions }
    }

    /// Forwards a call to a worker that serves `model`, and to another one only where the first did nothing: what is merely
    /// slow would take as long elsewhere.
    async fn forward<Q: Clone, A>(
        &self,
        model: &str,
        request: Request<Q>,
        ask: impl AsyncFn(ControlClient<Channel>, Request<Q>) -> Result<Response<A>, Status>,
    ) -> Result<Response<A>, Status> {
        let _permit = self.questions.acquire()?;
        let _charge = Charge::of(&request);
        let deadline = Deadline::of(&request)?.or(PATIENCE);
        let question = request.into_inner();
        let mut tried = Vec::new();
        let mut last = None;
        loop {
            let fleet = self.pool.fleet();
            let worker = policy::any_worker(fleet.model(model)?, &tried).map(Arc::clone);
            let worker = match worker.filter(|worker| !tried.contains(&worker.instance)) {
                Some(worker) => worker,
                None => return Err(last.unwrap_or_else(|| fleet.no_worker_error()).into()),
            };
            tried.push(worker.instance.clone());
            let mut request = Request::new(question.clone());
            deadline.forward(&mut request);
            let client = ControlClient::new(worker.channel.clone())
                .max_decoding_message_size(MAX_EVENT_BYTES);
            let stage = format!("waiting for worker {}", worker.id);
            let error = match deadline.bound(&stage, ask(client, request)).await? {
                Ok(answer) => return Ok(answer),
                // Read and written again, so that only what is ours reaches the client.
                Err(status) => endpoint::read(&worker.id, deadline, &status),
            };
            if !error.is_retryable_elsewhere() {
                return Err(error.into());
            }
            last = Some(error);
        }
    }
}

#[tonic::async_trait]
impl Control for ControlService {
    type WatchLoadStream = serve::Response<Load>;

    async fn get_model_info(
        &self,
        request: Request<GetModelInfoRequest>,
    ) -> Result<Response<ModelInfo>, Status> {
        let fleet = self.pool.fleet();
        let info = fleet.model(&request.get_ref().model)?.info();
        Ok(Response::new(info.ok_or_else(|| fleet.no_worker_error())?))
    }

    async fn watch_load(
        &self,
        request: Request<WatchLoadRequest>,
    ) -> Result<Response<Self::WatchLoadStream>, Status> {
        let asked = duration::from_peer("min_interval", request.get_ref().min_interval)?;
        let interval = asked.unwrap_or(LOAD_INTERVAL).clamp(LEAST_LOAD_INTERVAL, LOAD_HEARTBEAT);
        let permit = self.watches.acquire()?;
        let cut = self.gate.cut().clone().cancelled_owned();
        let loads = loads(self.pool.clone(), self.gate.clone(), interval).take_until(cut);
        let loads = loads.map(Ok).boxed();
        Ok(Response::new(self.bounds.backpressure().watch(loads, Box::new(permit))))
    }

    async fn tokenize(
        &self,
        request: Request<TokenizeRequest>,
    ) -> Result<Response<TokenizeResponse>, Status> {
        let model = request.get_ref().model.clone();
        self.forward(&model, request, async |mut worker, request| worker.tokenize(request).await)
            .await
    }

    async fn detokenize(
        &self,
        request: Request<DetokenizeRequest>,
    ) -> Result<Response<DetokenizeResponse>, Status> {
        let model = request.get_ref().model.clone();
        self.forward(&model, request, async |mut worker, request| worker.detokenize(request).await)
            .await
    }
}

/// The sum of all workers' load: at once, then whenever it changed, and once a second anyway.
fn loads(pool: Pool, gate: DrainGate, interval: Duration) -> impl Stream<Item = Load> + Send {
    let mut ticks = tokio::time::interval(interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let state = (ticks, pool, gate, None);
    stream::unfold(state, |(mut ticks, pool, gate, mut reported)| async move {
        loop {
            ticks.tick().await;
            let mut load = pool.fleet().load();
            load.draining = gate.closed().is_cancelled();
            let changed = reported.is_none_or(|(before, at): (Load, Instant)| {
                before != load || at.elapsed() >= LOAD_HEARTBEAT
            });
            if changed {
                reported = Some((load, Instant::now()));
                return Some((load, (ticks, pool, gate, reported)));
            }
        }
    })
}

//! `stoker.v1.Control` on the router: the models and the load of its cluster, and calls forwarded
//! to a worker.

use std::{sync::Arc, time::Duration};

use futures::{Stream, StreamExt, stream};
use stoker_proto::v1::{
    DetokenizeRequest, DetokenizeResponse, GetModelInfoRequest, ListModelsRequest,
    ListModelsResponse, Load, ModelInfo, ServedModel, TokenizeRequest, TokenizeResponse,
    WatchLoadRequest, control_client::ControlClient, control_server::Control,
};
use stoker_shared::{
    ServiceError,
    client::MAX_EVENT_BYTES,
    deadline::Deadline,
    drain::DrainGate,
    duration,
    serve::{self, Bounds, CallLimit, Charge},
};
use tokio::time::{Instant, MissedTickBehavior};
use tonic::{Extensions, Request, Response, Status, transport::Channel};

use crate::{
    endpoint, policy,
    pool::{Pool, model::Model},
    tenant::Account,
};

/// Interval between two load reports: the default, and the minimum that a client can request.
const LOAD_INTERVAL: Duration = Duration::from_millis(100);
const MIN_LOAD_INTERVAL: Duration = Duration::from_millis(10);
/// Interval of load reports while the load does not change.
const LOAD_HEARTBEAT: Duration = Duration::from_secs(1);
/// Maximum concurrent `WatchLoad` calls. Each report reads the whole fleet.
const MAX_LOAD_WATCHES: usize = 128;

/// Timeout of a forwarded call without a deadline.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(60);
/// Maximum concurrent calls forwarded to workers.
const MAX_FORWARDED_CALLS: usize = 1_024;

/// The gRPC service.
#[derive(Clone)]
pub(crate) struct ControlService {
    pool: Pool,
    gate: DrainGate,
    bounds: Bounds,
    watches: CallLimit,
    forwarded: CallLimit,
}

impl ControlService {
    pub(crate) fn new(pool: Pool, gate: DrainGate, bounds: Bounds) -> Self {
        let watches = CallLimit::new("WatchLoad calls", MAX_LOAD_WATCHES);
        let forwarded = CallLimit::new("Tokenize and Detokenize calls", MAX_FORWARDED_CALLS);
        Self { pool, gate, bounds, watches, forwarded }
    }

    /// Returns the models that have a worker and that `account` may use, ordered by name.
    pub(crate) fn models(&self, account: Option<&Account>) -> Vec<ServedModel> {
        let fleet = self.pool.fleet();
        let served = |model: &Model| {
            fleet.permitted(model.name(), account).ok()?;
            let info = model.info()?;
            Some(ServedModel {
                aliases: fleet.aliases(model).map(str::to_owned).collect(),
                workers: u32::try_from(model.live().len()).unwrap_or(u32::MAX),
                context_length: info.context_length,
                has_chat_template: !info.chat_template.is_empty(),
                model: info.model,
            })
        };
        fleet.models().filter_map(served).collect()
    }

    /// Returns the tokens that end a response of `model`.
    pub(crate) fn end_tokens(&self, model: &str) -> Vec<u32> {
        let fleet = self.pool.fleet();
        let worker = fleet.model(model).ok().and_then(|model| model.live().first());
        worker.map(|worker| worker.info.eos_token_ids.clone()).unwrap_or_default()
    }

    /// Replaces the name of a model by the one that its workers know, and returns that.
    fn resolve(&self, name: &mut String, extensions: &Extensions) -> Result<String, ServiceError> {
        let fleet = self.pool.fleet();
        fleet.permitted(name, extensions.get())?.name().clone_into(name);
        Ok(name.clone())
    }

    /// Forwards a call to a worker that serves `model`. Retries on another worker only if the first
    /// did no work: a call that is merely slow would take as long there.
    async fn forward<Q: Clone, A>(
        &self,
        model: &str,
        request: Request<Q>,
        send: impl AsyncFn(ControlClient<Channel>, Request<Q>) -> Result<Response<A>, Status>,
    ) -> Result<Response<A>, Status> {
        let _permit = self.forwarded.acquire()?;
        let _charge = Charge::of(&request);
        let deadline = Deadline::of(&request)?.or(DEFAULT_TIMEOUT);
        let message = request.into_inner();
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
            let mut request = Request::new(message.clone());
            deadline.forward(&mut request);
            let client = ControlClient::new(worker.channel.clone())
                .max_decoding_message_size(MAX_EVENT_BYTES);
            let stage = format!("waiting for worker {}", worker.id);
            let error = match deadline.bound(&stage, send(client, request)).await? {
                Ok(response) => return Ok(response),
                // Converted, so that no foreign status details reach the client.
                Err(status) => endpoint::error_from_status(&worker.id, deadline, &status),
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
        let account = request.extensions().get();
        let info = fleet.permitted(&request.get_ref().model, account)?.info();
        Ok(Response::new(info.ok_or_else(|| fleet.no_worker_error())?))
    }

    async fn list_models(
        &self,
        request: Request<ListModelsRequest>,
    ) -> Result<Response<ListModelsResponse>, Status> {
        let models = self.models(request.extensions().get());
        Ok(Response::new(ListModelsResponse { models }))
    }

    async fn watch_load(
        &self,
        request: Request<WatchLoadRequest>,
    ) -> Result<Response<Self::WatchLoadStream>, Status> {
        let requested = duration::from_peer("min_interval", request.get_ref().min_interval)?;
        let interval = requested.unwrap_or(LOAD_INTERVAL).clamp(MIN_LOAD_INTERVAL, LOAD_HEARTBEAT);
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
        let (metadata, extensions, mut message) = request.into_parts();
        let model = self.resolve(&mut message.model, &extensions)?;
        let request = Request::from_parts(metadata, extensions, message);
        self.forward(&model, request, async |mut worker, request| worker.tokenize(request).await)
            .await
    }

    async fn detokenize(
        &self,
        request: Request<DetokenizeRequest>,
    ) -> Result<Response<DetokenizeResponse>, Status> {
        let (metadata, extensions, mut message) = request.into_parts();
        let model = self.resolve(&mut message.model, &extensions)?;
        let request = Request::from_parts(metadata, extensions, message);
        self.forward(&model, request, async |mut worker, request| worker.detokenize(request).await)
            .await
    }
}

/// Streams the summed load of all workers: immediately, on every change, and at least once a
/// second.
fn loads(pool: Pool, gate: DrainGate, interval: Duration) -> impl Stream<Item = Load> + Send {
    let mut ticks = tokio::time::interval(interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let state = (ticks, pool, gate, None);
    stream::unfold(state, |(mut ticks, pool, gate, mut reported)| async move {
        loop {
            ticks.tick().await;
            let mut load = pool.fleet().load();
            load.draining = gate.draining().is_cancelled();
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

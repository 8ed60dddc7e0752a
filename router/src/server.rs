//! The gRPC services of the router, and the only place where an error becomes a status.

use std::{pin::Pin, time::Duration};

use futures::{Stream, StreamExt, TryStreamExt, stream};
use stoker_proto::v1::{
    DetokenizeRequest, DetokenizeResponse, DrainRequest, DrainResponse, GenerateRequest,
    GenerateResponse, GetModelInfoRequest, Load, ModelInfo, TokenizeRequest, TokenizeResponse,
    WatchLoadRequest, control_client::ControlClient, control_server::Control,
    inference_server::Inference,
};
use stoker_shared::{
    ServiceError,
    deadline::{Deadline, arrived},
    telemetry::trace::TraceSpan,
};
use tokio::time::{Instant, MissedTickBehavior, timeout};
use tonic::{Request, Response, Status, transport::Channel};
use tower::ServiceExt;

use crate::{call::Call, layer::gate::Gate, policy, pool::Pool, stack::Stack, tenant::Tenants};

/// Between two reports of the load: what a client gets that asks for nothing, and the least it can ask for.
const LOAD_INTERVAL: Duration = Duration::from_millis(100);
const LEAST_LOAD_INTERVAL: Duration = Duration::from_millis(10);
/// Load is reported this often also when nothing changes.
const LOAD_HEARTBEAT: Duration = Duration::from_secs(1);

/// What a worker has for an answer that takes no model, and how many workers are asked.
const QUESTION: Duration = Duration::from_secs(2);
const QUESTIONS: usize = 3;

type Streamed<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Serves both services of the contract.
#[derive(Clone)]
pub(crate) struct Server {
    pub(crate) stack: Stack,
    pub(crate) pool: Pool,
    pub(crate) gate: Gate,
    pub(crate) tenants: Tenants,
}

#[tonic::async_trait]
impl Inference for Server {
    type GenerateStream = Streamed<GenerateResponse>;

    async fn generate(
        &self,
        request: Request<GenerateRequest>,
    ) -> Result<Response<Self::GenerateStream>, Status> {
        let mut malformed = None;
        let deadline =
            Deadline::of(&request).map_err(|error| malformed = Some(error)).unwrap_or_default();
        let tenant = self.tenants.of(request.metadata());
        let tenant = tenant.map_err(|error| malformed = Some(error)).unwrap_or_default();
        let (arrived, trace) = (arrived(&request), TraceSpan::of_caller(request.metadata()));
        let call = Call::new(request.into_inner(), deadline, arrived);
        let call = Call { malformed, trace, tenant, ..call };
        let events = self.stack.clone().oneshot(call).await?;
        Ok(Response::new(events.map_err(Status::from).boxed()))
    }
}

#[tonic::async_trait]
impl Control for Server {
    type WatchLoadStream = Streamed<Load>;

    async fn get_model_info(
        &self,
        request: Request<GetModelInfoRequest>,
    ) -> Result<Response<ModelInfo>, Status> {
        let fleet = self.pool.fleet();
        let info = fleet.model(&request.get_ref().model)?.info();
        Ok(Response::new(info.ok_or_else(|| fleet.nobody())?))
    }

    async fn watch_load(
        &self,
        request: Request<WatchLoadRequest>,
    ) -> Result<Response<Self::WatchLoadStream>, Status> {
        let asked = duration("min_interval", request.get_ref().min_interval)?;
        let interval = asked.unwrap_or(LOAD_INTERVAL).clamp(LEAST_LOAD_INTERVAL, LOAD_HEARTBEAT);
        let cut = self.gate.cut().clone().cancelled_owned();
        let loads = loads(self.pool.clone(), self.gate.clone(), interval).take_until(cut);
        Ok(Response::new(loads.map(Ok).boxed()))
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

    async fn drain(
        &self,
        request: Request<DrainRequest>,
    ) -> Result<Response<DrainResponse>, Status> {
        let timeout = duration("timeout", request.get_ref().timeout)?;
        self.gate.close();
        let unfinished = self.gate.drained(timeout).await;
        Ok(Response::new(DrainResponse {
            unfinished: u32::try_from(unfinished).unwrap_or(u32::MAX),
        }))
    }
}

impl Server {
    /// Asks any worker that serves `model`, and then another one if that is of no use.
    async fn forward<Q: Clone, A>(
        &self,
        model: &str,
        request: Request<Q>,
        ask: impl AsyncFn(ControlClient<Channel>, Request<Q>) -> Result<Response<A>, Status>,
    ) -> Result<Response<A>, Status> {
        let deadline = Deadline::of(&request)?;
        let question = request.into_inner();
        let mut tried = Vec::new();
        loop {
            let fleet = self.pool.fleet();
            let worker = policy::anyone(fleet.model(model)?, &tried);
            let worker = worker.ok_or_else(|| fleet.nobody())?;
            tried.push(worker.instance.clone());
            let mut request = Request::new(question.clone());
            deadline.forward(&mut request);
            let answer = ask(ControlClient::new(worker.channel.clone()), request);
            let answer = timeout(QUESTION, deadline.bound("waiting for a worker", answer)).await;
            let error = match answer {
                Ok(answer) => match answer? {
                    Ok(answer) => return Ok(answer),
                    // Read and written again, so that only what is ours reaches the client.
                    Err(status) => ServiceError::from(&status),
                },
                Err(_) => ServiceError::Stalled(format!(
                    "worker {} did not answer within {} s",
                    worker.id,
                    QUESTION.as_secs()
                )),
            };
            if tried.len() == QUESTIONS || !error.is_retryable_elsewhere() {
                return Err(error.into());
            }
        }
    }
}

/// The sum of all workers' load: at once, then whenever it changed, and once a second anyway.
fn loads(pool: Pool, gate: Gate, interval: Duration) -> impl Stream<Item = Load> + Send {
    let mut ticks = tokio::time::interval(interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let state = (ticks, pool, gate, None);
    stream::unfold(state, |(mut ticks, pool, gate, mut told)| async move {
        loop {
            ticks.tick().await;
            let mut load = pool.fleet().load();
            load.draining = gate.closed().is_cancelled();
            let news = told.is_none_or(|(before, at): (Load, Instant)| {
                before != load || at.elapsed() >= LOAD_HEARTBEAT
            });
            if news {
                told = Some((load, Instant::now()));
                return Some((load, (ticks, pool, gate, told)));
            }
        }
    })
}

fn duration(
    field: &str,
    value: Option<prost_types::Duration>,
) -> Result<Option<Duration>, ServiceError> {
    value
        .map(|value| {
            Duration::try_from(value)
                .map_err(|_| ServiceError::invalid(field, format!("{value} is negative")))
        })
        .transpose()
}

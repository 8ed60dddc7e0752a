//! `stoker.v1.Inference` on a worker.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use futures::{StreamExt, stream::BoxStream};
use stoker_engine::{Model, scheduler::AdmissionError};
use stoker_proto::v1::{
    Accepted, GenerateRequest, GenerateResponse, generate_request::Input,
    inference_server::Inference,
};
use stoker_shared::{
    ServiceError,
    deadline::{self, Deadline},
    memory,
    serve::{self, Bounds, Charge, Peer},
    validate::MAX_SEQUENCES,
};
use tokio::time::Instant;
use tonic::{Request, Response, Status};
use tracing::Instrument;

use crate::{
    admit::Admission,
    engine_thread::{Attachments, EngineHandle, SubmitError},
    inflight::Inflight,
    metrics::Metrics,
    request_log::RequestLog,
    request_trace::{RequestTrace, StageEnds},
    response_stream::ResponseStream,
    routing::AcceptRouting,
    text::TextExecutor,
};

/// Bounds of the retry-after hint for a request that would miss its deadline.
const MIN_RETRY_AFTER: Duration = Duration::from_millis(100);
const MAX_RETRY_AFTER: Duration = Duration::from_secs(30);

/// The state that all calls share.
#[derive(Clone)]
pub struct Worker {
    /// Id of the worker in responses.
    pub id: Arc<str>,
    /// Id of this process.
    pub instance_id: Arc<str>,
    /// Name of the model in requests.
    pub model_name: Arc<str>,
    /// The model.
    pub model: Arc<Model>,
    /// Handle of the engine thread.
    pub engine: EngineHandle,
    /// The calls in flight.
    pub inflight: Inflight,
    /// The metrics.
    pub metrics: Metrics,
    /// Tokenises and detokenises.
    pub text: TextExecutor,
    /// Limits on connections and streams.
    pub bounds: Bounds,
    /// Peers whose `routing` is accepted.
    pub accept_routing: AcceptRouting,
}

impl Worker {
    /// Returns the limits that requests are validated against.
    pub fn admission(&self) -> Admission<'_> {
        Admission {
            model: &self.model,
            name: &self.model_name,
            max_sequence_tokens: self.engine.max_sequence_tokens(),
            max_num_seqs: self.engine.max_num_seqs(),
        }
    }

    async fn admit(
        &self,
        request: GenerateRequest,
    ) -> Result<stoker_engine::Request, ServiceError> {
        let bytes = match &request.input {
            Some(Input::Prompt(text)) => text.len(),
            _ => 0,
        };
        let worker = self.clone();
        self.text.prompt(bytes, move || worker.admission().admit(request)).await
    }

    async fn start(
        &self,
        call: Request<GenerateRequest>,
        trace: Option<Arc<RequestTrace>>,
        ends: Arc<OnceLock<StageEnds>>,
    ) -> Result<BoxStream<'static, Result<GenerateResponse, ServiceError>>, ServiceError> {
        let arrived = deadline::arrival_time(&call).into_std();
        let deadline = Deadline::of(&call)?;
        let charge = Charge::of(&call);
        let peer = call.extensions().get::<Peer>().cloned();
        let request = call.into_inner();
        if let Some(charge) = &charge {
            charge.set(memory::allocated_bytes(&request))?;
        }
        if request.routing.is_some() {
            self.accept_routing.check(peer.as_ref())?;
        }
        let is_resumed = request.routing.as_ref().is_some_and(|routing| routing.resume.is_some());
        // Validation rejects higher numbers later, with an error that names the field.
        let limit = self.engine.max_num_seqs().clamp(1, MAX_SEQUENCES as usize);
        let requested = request.sampling.as_ref().and_then(|sampling| sampling.num_sequences);
        let sequences = (requested.unwrap_or(1) as usize).clamp(1, limit);
        let slot = self.inflight.acquire(sequences, is_resumed)?;
        let request_id = request.request_id.clone();
        let attempt = request.routing.as_ref().map_or(0, |r| r.attempt);

        let mut admitted = deadline.bound("while tokenising", self.admit(request)).await??;
        admitted.deadline = deadline.at().map(Instant::into_std);
        let resumed_tokens =
            admitted.resumed.iter().map(|resumed| resumed.tokens.len()).sum::<usize>();
        let queued =
            self.inflight.reserve_tokens(admitted.prompt.len() + resumed_tokens, is_resumed)?;
        let response = ResponseStream {
            accepted: Accepted {
                request_id,
                model: self.model_name.to_string(),
                worker: self.id.to_string(),
                seed: admitted.sampling.seed,
                prompt_tokens: admitted.prompt.len() as u32,
                max_tokens: admitted.stopping.max_tokens.unwrap_or_default() as u32,
            },
            attempt,
            tokenizer: Arc::clone(&self.model.tokenizer),
            arrived,
            tokenized: admitted.arrived,
            ends,
            deadline,
            cancel: self.inflight.cancellation().clone(),
        };
        let time_limit = admitted.deadline.map(|at| at.saturating_duration_since(admitted.arrived));
        let attached =
            Attachments { queued: Some(queued), resources: Some(Box::new((slot, charge))), trace };
        let submitted = self.engine.submit(admitted, attached);
        let events = deadline.bound("while queued", submitted).await?;
        let events = events.map_err(|error| submit_error(&error, time_limit))?;
        Ok(response.stream(events).boxed())
    }
}

/// Converts the error of a request that was not submitted. `time_limit` is the time from its
/// arrival to its deadline.
fn submit_error(error: &SubmitError, time_limit: Option<Duration>) -> ServiceError {
    match error {
        SubmitError::Rejected(error) => admission_error(error, time_limit),
        SubmitError::Stopped(error) => ServiceError::unavailable(error.to_string()),
    }
}

/// Converts the error of a request that the scheduler rejected. `time_limit` is the time from its
/// arrival to its deadline.
pub(crate) fn admission_error(
    error: &AdmissionError,
    time_limit: Option<Duration>,
) -> ServiceError {
    let what = error.to_string();
    match error {
        AdmissionError::TooLate { ahead, own, remaining } => {
            // A request that alone exceeds its time limit does so without a queue, too.
            if time_limit.is_some_and(|time_limit| *own > time_limit) {
                return ServiceError::TooLate { what };
            }
            let retry_after = (*ahead + *own).saturating_sub(*remaining);
            let retry_after = retry_after.clamp(MIN_RETRY_AFTER, MAX_RETRY_AFTER);
            ServiceError::Overloaded { what, retry_after }
        }
        AdmissionError::TooLong { .. } | AdmissionError::TooMany { .. } => {
            ServiceError::ExceedsWorker { what, needed_tokens: 0 }
        }
    }
}

#[tonic::async_trait]
impl Inference for Worker {
    type GenerateStream = serve::Response<GenerateResponse>;

    async fn generate(
        &self,
        call: Request<GenerateRequest>,
    ) -> Result<Response<Self::GenerateStream>, Status> {
        let mut log = RequestLog::begin(&call, self);
        let started = self.start(call, log.exported_trace(), log.stage_ends());
        let stream = match started.instrument(log.span().clone()).await {
            Ok(stream) => stream,
            Err(error) => {
                log.failed(&error);
                return Err(error.into());
            }
        };
        let mut log = Some(log);
        let logged = stream.map(move |item| {
            // Dropped with the last event, so that it reports before the stream is dropped.
            if log.as_mut().is_some_and(|log| log.observe(&item)) {
                log = None;
            }
            item.map_err(Status::from)
        });
        let tracked = Box::new(self.inflight.track_response());
        Ok(Response::new(self.bounds.backpressure().watch(logged.boxed(), tracked)))
    }
}

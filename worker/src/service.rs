//! `stoker.v1.Inference` on a worker.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use futures::{StreamExt, TryStreamExt, stream::BoxStream};
use stoker_proto::v1::{Accepted, GenerateRequest, GenerateResponse, inference_server::Inference};
use stoker_shared::{
    ServiceError,
    deadline::{self, Deadline},
    memory,
    observed::{Observe, Observed},
    serve::{self, Charge, Peer},
    validate::MAX_SEQUENCES,
};
use tokio::time::Instant;
use tonic::{Request, Response, Status};
use tracing::Instrument;

use crate::{
    admission_error::admission_error,
    engine_thread::{Attachments, SubmitError},
    request_log::RequestLog,
    request_trace::{RequestTrace, StageEnds},
    response_stream::ResponseStream,
    worker::Worker,
};

impl Worker {
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
            self.accept_routing.check(peer.as_ref(), &self.router_identity)?;
            if let Some(peer) = &peer {
                peer.set_router();
            }
        }
        let is_resumed = request.routing.as_ref().is_some_and(|routing| routing.resume.is_some());
        // Validation rejects higher numbers later, with an error that names the field.
        let limit = self.engine.max_num_seqs().clamp(1, MAX_SEQUENCES as usize);
        let requested = request.sampling.as_ref().and_then(|sampling| sampling.num_sequences);
        let sequences = (requested.unwrap_or(1) as usize).clamp(1, limit);
        let (slot, cut) = self.inflight.acquire(sequences, is_resumed)?;
        let request_id = request.request_id.clone();
        let attempt = request.routing.as_ref().map_or(0, |r| r.attempt);
        let wants_prompt = request.response.is_some_and(|response| response.prompt_token_ids);

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
                prompt_token_ids: if wants_prompt { admitted.prompt.to_vec() } else { Vec::new() },
            },
            attempt,
            tokenizer: Arc::clone(&self.model.tokenizer),
            arrived,
            tokenized: admitted.arrived,
            ends,
            deadline,
        };
        let time_limit = admitted.deadline.map(|at| at.saturating_duration_since(admitted.arrived));
        let attached =
            Attachments { queued: Some(queued), resources: Some(Box::new((slot, charge))), trace };
        let submitted = self.engine.submit(admitted, attached);
        let events = deadline.bound("while queued", submitted).await?;
        let events = events.map_err(|error| submit_error(&error, time_limit))?;
        // The router may resume a response that is cut off on another worker.
        let cut_off = || Err(ServiceError::Draining("the worker".into()));
        Ok(cut.end(response.stream(events), cut_off).boxed())
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
        let events = Observed::new(stream, log).map_err(Status::from);
        let undelivered = Box::new(self.inflight.gate().undelivered());
        Ok(Response::new(self.bounds.backpressure().watch(events.boxed(), undelivered)))
    }
}

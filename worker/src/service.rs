//! `stoker.v1.Inference` on a worker.

use std::{sync::Arc, time::Duration};

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
    response_stream::ResponseStream,
    engine_thread::{EngineHandle, Held, SubmitError},
    inflight::Inflight,
    metrics::Metrics,
    request_log::RequestLog,
    routing::AcceptRouting,
    text::TextWork,
};

/// When to come back with a request that could not be in time, in the best and the worst case.
const LEAST_HINT: Duration = Duration::from_millis(100);
const LONGEST_HINT: Duration = Duration::from_secs(30);

/// What all calls share.
#[derive(Clone)]
pub struct Worker {
    /// Names it in responses.
    pub id: Arc<str>,
    /// Identifies this process.
    pub instance_id: Arc<str>,
    /// What requests call the model.
    pub model_name: Arc<str>,
    /// The model.
    pub model: Arc<Model>,
    /// The thread that runs it.
    pub engine: EngineHandle,
    /// The calls under way.
    pub inflight: Inflight,
    /// What is counted.
    pub metrics: Metrics,
    /// Texts and tokens.
    pub text: TextWork,
    /// What clients hold.
    pub bounds: Bounds,
    /// Whose `routing` is accepted.
    pub accept_routing: AcceptRouting,
}

impl Worker {
    /// What requests are checked against.
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
    ) -> Result<BoxStream<'static, Result<GenerateResponse, ServiceError>>, ServiceError> {
        let arrived = deadline::arrived(&call).into_std();
        let deadline = Deadline::of(&call)?;
        let charge = Charge::of(&call);
        let peer = call.extensions().get::<Peer>().cloned();
        let request = call.into_inner();
        if let Some(charge) = &charge {
            charge.set(memory::held(&request))?;
        }
        if request.routing.is_some() {
            self.accept_routing.check(peer.as_ref())?;
        }
        let continues = request.routing.as_ref().is_some_and(|routing| routing.resume.is_some());
        // More than there may be are refused by name later.
        let most = self.engine.max_num_seqs().clamp(1, MAX_SEQUENCES as usize);
        let wanted = request.sampling.as_ref().and_then(|sampling| sampling.num_sequences);
        let sequences = (wanted.unwrap_or(1) as usize).clamp(1, most);
        let slot = self.inflight.enter(sequences, continues)?;
        let request_id = request.request_id.clone();
        let attempt = request.routing.as_ref().map_or(0, |r| r.attempt);

        let mut admitted = deadline.bound("while tokenising", self.admit(request)).await??;
        admitted.deadline = deadline.at().map(Instant::into_std);
        let drawn_before =
            admitted.resumed.iter().map(|resumed| resumed.tokens.len()).sum::<usize>();
        let queued = self.inflight.queue(admitted.prompt.len() + drawn_before, continues)?;
        let answer = ResponseStream {
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
            tokenize: admitted.arrived - arrived,
            deadline,
            cut: self.inflight.cut().clone(),
        };
        let patience = admitted.deadline.map(|at| at.saturating_duration_since(admitted.arrived));
        let held: Held = Box::new((slot, charge));
        let submitted = self.engine.submit(admitted, Some(queued), Some(held));
        let events = deadline.bound("while queued", submitted).await?;
        let events = events.map_err(|why| not_taken(&why, patience))?;
        Ok(answer.stream(events).boxed())
    }
}

/// The error of a request that the engine did not take. It had `patience` until its deadline when it came.
fn not_taken(why: &SubmitError, patience: Option<Duration>) -> ServiceError {
    match why {
        SubmitError::Rejected(why) => refused(why, patience),
        SubmitError::Stopped(stopped) => ServiceError::unavailable(stopped.to_string()),
    }
}

/// The error of a request that the scheduler refused. It had `patience` until its deadline when it came.
pub(crate) fn refused(why: &AdmissionError, patience: Option<Duration>) -> ServiceError {
    let what = why.to_string();
    match why {
        AdmissionError::TooLate { ahead, own, left } => {
            // Where the request alone takes too long, no wait makes it shorter.
            if patience.is_some_and(|patience| *own > patience) {
                return ServiceError::TooLate { what };
            }
            let retry_after = (*ahead + *own).saturating_sub(*left);
            let retry_after = retry_after.clamp(LEAST_HINT, LONGEST_HINT);
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
        let mut record = RequestLog::begin(&call, self);
        let stream = match self.start(call).instrument(record.log().clone()).await {
            Ok(stream) => stream,
            Err(error) => {
                record.failed(&error);
                return Err(error.into());
            }
        };
        let mut record = Some(record);
        let recorded = stream.map(move |item| {
            // Over with its last event, not only once the stream is dropped.
            if record.as_mut().is_some_and(|record| record.event(&item)) {
                record = None;
            }
            item.map_err(Status::from)
        });
        let untaken = Box::new(self.inflight.untaken());
        Ok(Response::new(self.bounds.backpressure().watch(recorded.boxed(), untaken)))
    }
}

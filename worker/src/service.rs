//! `stoker.v1.Inference` on a worker.

use std::{sync::Arc, time::Duration};

use futures::{StreamExt, stream::BoxStream};
use stoker_engine::{Model, scheduler::Refused};
use stoker_proto::v1::{
    Accepted, GenerateRequest, GenerateResponse, generate_request::Input,
    inference_server::Inference,
};
use stoker_shared::{
    ServiceError,
    deadline::{self, Deadline},
    guarded::Guarded,
    validate::MAX_SEQUENCES,
};
use tokio::time::Instant;
use tonic::{Request, Response, Status};
use tracing::Instrument;

use crate::{
    admit::Admission,
    answer::Answer,
    engine_thread::{EngineHandle, NotTaken},
    inflight::Inflight,
    metrics::Metrics,
    record::Record,
};

/// Prompts of fewer bytes are tokenised at once; for longer ones the async threads are spared.
const LONG_PROMPT: usize = 4096;
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
}

impl Worker {
    /// What requests are checked against.
    pub fn admission(&self) -> Admission<'_> {
        Admission {
            model: &self.model,
            name: &self.model_name,
            room: self.engine.room(),
            max_num_seqs: self.engine.max_num_seqs(),
        }
    }

    async fn admit(
        &self,
        request: GenerateRequest,
    ) -> Result<stoker_engine::Request, ServiceError> {
        let long = matches!(&request.input, Some(Input::Prompt(text)) if text.len() > LONG_PROMPT);
        if !long {
            return self.admission().admit(request);
        }
        let worker = self.clone();
        tokio::task::spawn_blocking(move || worker.admission().admit(request))
            .await
            .map_err(|error| ServiceError::Internal(format!("tokenising failed: {error}")))?
    }

    async fn start(
        &self,
        call: Request<GenerateRequest>,
    ) -> Result<BoxStream<'static, Result<GenerateResponse, ServiceError>>, ServiceError> {
        let arrived = deadline::arrived(&call).into_std();
        let deadline = Deadline::of(&call)?;
        let request = call.into_inner();
        let continues = request.routing.as_ref().is_some_and(|routing| routing.resume.is_some());
        // More than there may be are refused by name later.
        let most = self.engine.max_num_seqs().clamp(1, MAX_SEQUENCES as usize);
        let wanted = request.sampling.as_ref().and_then(|sampling| sampling.num_sequences);
        let sequences = (wanted.unwrap_or(1) as usize).clamp(1, most);
        let place = self.inflight.enter(sequences, continues)?;
        let request_id = request.request_id.clone();
        let attempt = request.routing.as_ref().map_or(0, |r| r.attempt);

        let mut admitted = deadline.bound("while tokenising", self.admit(request)).await??;
        admitted.deadline = deadline.at().map(Instant::into_std);
        let drawn_before =
            admitted.resumed.iter().map(|resumed| resumed.tokens.len()).sum::<usize>();
        let queued = self.inflight.queue(admitted.prompt.len() + drawn_before, continues)?;
        let answer = Answer {
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
        let events =
            deadline.bound("while queued", self.engine.submit(admitted, Some(queued))).await?;
        let events = events.map_err(|why| not_taken(&why, patience))?;
        Ok(Guarded::new(answer.stream(events), place).boxed())
    }
}

/// The error of a request that the engine did not take. It had `patience` until its deadline when it came.
fn not_taken(why: &NotTaken, patience: Option<Duration>) -> ServiceError {
    match why {
        NotTaken::Refused(why) => refused(why, patience),
        NotTaken::Stopped(stopped) => ServiceError::unavailable(stopped.to_string()),
    }
}

/// The error of a request that the scheduler refused. It had `patience` until its deadline when it came.
pub(crate) fn refused(why: &Refused, patience: Option<Duration>) -> ServiceError {
    let what = why.to_string();
    match why {
        Refused::TooLate { ahead, own, left } => {
            // Where the request alone takes too long, no wait makes it shorter.
            if patience.is_some_and(|patience| *own > patience) {
                return ServiceError::TooLate { what };
            }
            let retry_after = (*ahead + *own).saturating_sub(*left);
            let retry_after = retry_after.clamp(LEAST_HINT, LONGEST_HINT);
            ServiceError::Overloaded { what, retry_after }
        }
        Refused::TooLong { .. } | Refused::TooMany { .. } => {
            ServiceError::ExceedsWorker { what, needed_tokens: 0 }
        }
    }
}

#[tonic::async_trait]
impl Inference for Worker {
    type GenerateStream = BoxStream<'static, Result<GenerateResponse, Status>>;

    async fn generate(
        &self,
        call: Request<GenerateRequest>,
    ) -> Result<Response<Self::GenerateStream>, Status> {
        let mut record = Record::begin(&call, self);
        let stream = match self.start(call).instrument(record.log().clone()).await {
            Ok(stream) => stream,
            Err(error) => {
                record.failed(&error);
                return Err(error.into());
            }
        };
        let mut record = Some(record);
        let told = stream.map(move |item| {
            // Over with its last event, not only once the stream is dropped.
            if record.as_mut().is_some_and(|record| record.event(&item)) {
                record = None;
            }
            item.map_err(Status::from)
        });
        Ok(Response::new(told.boxed()))
    }
}

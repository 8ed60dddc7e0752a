//! The call to one worker.

use std::{
    error::Error,
    sync::Arc,
    task::{Context, Poll},
    time::SystemTime,
};

use futures::{FutureExt, StreamExt, future::BoxFuture, stream};
use stoker_proto::v1::{
    GenerateResponse, Routing, generate_response::Event, inference_client::InferenceClient,
};
use stoker_shared::{
    ServiceError,
    client::MAX_EVENT_BYTES,
    deadline::Deadline,
    error::root_cause,
    telemetry::{
        names::{attribute, span},
        trace::{SpanKind, TraceSpan},
    },
};
use tonic::{Request, Status, Streaming, TimeoutExpired};
use tower::Service;

use crate::{
    call::{Call, EventStream},
    pool::{health::Pass, worker::Worker},
};

/// A call and the worker that was chosen for it.
pub(crate) struct Dispatch {
    pub(crate) call: Call,
    pub(crate) worker: Arc<Worker>,
    /// Taken by whoever tells the worker's health what came of the call.
    pub(crate) pass: Option<Pass>,
}

/// Calls the worker and returns once it has accepted, so that a refusal is an error of the call.
/// Dropping the future or the stream resets the call, and the worker stops.
#[derive(Debug, Clone)]
pub(crate) struct Endpoint;

impl Service<Dispatch> for Endpoint {
    type Response = EventStream;
    type Error = ServiceError;
    type Future = BoxFuture<'static, Result<EventStream, ServiceError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ServiceError>> {
        // The channel waits for its connection inside the call, where the deadline bounds it.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, Dispatch { call, worker, .. }: Dispatch) -> Self::Future {
        generate(call, worker).boxed()
    }
}

async fn generate(mut call: Call, worker: Arc<Worker>) -> Result<EventStream, ServiceError> {
    call.span.record("worker", worker.id.as_str());
    let tenant = call.tenant.to_string();
    call.request.routing = Some(Routing { attempt: call.attempt, tenant, ..Default::default() });
    let attempt = Attempt::new(&call.trace, &worker, call.attempt);
    let mut request = Request::new(call.request);
    call.deadline.forward(&mut request);
    attempt.0.forward(request.metadata_mut());
    let response = InferenceClient::new(worker.channel.clone())
        .max_decoding_message_size(MAX_EVENT_BYTES)
        .generate(request)
        .await
        .map_err(|status| attempt.failed(read(&status, &worker, call.deadline)))?;

    let mut events = Events {
        messages: response.into_inner(),
        worker,
        number: call.attempt,
        attempt,
        deadline: call.deadline,
        complete: false,
    };
    let first = match events.next().await {
        Some(first) => first?,
        None => return Ok(stream::empty().boxed()),
    };
    let rest = stream::unfold(events, |mut events| async move {
        let item = events.next().await?;
        Some((item, events))
    });
    Ok(stream::iter([Ok(first)]).chain(rest).boxed())
}

/// One attempt in the trace of its request. Ends when it is dropped.
struct Attempt(TraceSpan);

impl Attempt {
    fn new(request: &TraceSpan, worker: &Worker, number: u32) -> Self {
        let attempt = request.child(span::ATTEMPT, SpanKind::Client, SystemTime::now());
        if attempt.is_recording() {
            attempt.set(attribute::WORKER, worker.id.as_str().to_owned());
            attempt.set(attribute::ATTEMPT, i64::from(number));
            attempt.set(attribute::RPC_SYSTEM, "grpc");
        }
        Self(attempt)
    }

    fn failed(&self, error: ServiceError) -> ServiceError {
        if self.0.is_recording() {
            self.0.set(attribute::ERROR_TYPE, error.reason());
            self.0.set(attribute::RPC_STATUS, error.code_name());
            self.0.fail(error.to_string());
        }
        error
    }
}

/// What the worker sends.
struct Events {
    messages: Streaming<GenerateResponse>,
    worker: Arc<Worker>,
    number: u32,
    attempt: Attempt,
    deadline: Deadline,
    /// The last event has come.
    complete: bool,
}

impl Events {
    async fn next(&mut self) -> Option<Result<GenerateResponse, ServiceError>> {
        loop {
            match self.messages.message().await {
                // The fence: what another attempt made must not reach the client.
                Ok(Some(event)) if event.attempt != self.number => {}
                Ok(Some(event)) => {
                    self.complete |=
                        matches!(&event.event, Some(Event::Finished(f)) if f.usage.is_some());
                    return Some(Ok(event));
                }
                Ok(None) if self.complete => return None,
                Ok(None) => {
                    self.complete = true;
                    let what = format!("worker {} ended the answer early", self.worker.id);
                    return Some(Err(self.attempt.failed(ServiceError::unavailable(what))));
                }
                Err(status) => {
                    let error = read(&status, &self.worker, self.deadline);
                    return Some(Err(self.attempt.failed(error)));
                }
            }
        }
    }
}

/// What a status means. One with a source was made here, by the transport: the worker said nothing.
fn read(status: &Status, worker: &Worker, deadline: Deadline) -> ServiceError {
    let source = status.source();
    let causes = || std::iter::successors(source, |&error| error.source());
    // The deadline is kept at both ends of the connection too, by tonic, rounded down and with CANCELLED.
    if deadline.is_over() || causes().any(|error| error.is::<TimeoutExpired>()) {
        return ServiceError::DeadlineExceeded {
            stage: format!("waiting for worker {}", worker.id),
        };
    }
    match source {
        None => ServiceError::from(status),
        Some(source) => ServiceError::unavailable(format!(
            "worker {}: the connection failed: {}",
            worker.id,
            root_cause(source)
        )),
    }
}

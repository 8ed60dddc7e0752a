//! The call to one worker.

use std::{
    error::Error,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use futures::{FutureExt, Stream, StreamExt, future::BoxFuture, stream};
use stoker_proto::{
    codec::SmallMessages,
    v1::{GenerateRequest, GenerateResponse, Routing, generate_response::Event},
};
use stoker_shared::{
    ServiceError,
    client::MAX_EVENT_BYTES,
    deadline::Deadline,
    discovery::WorkerId,
    error::root_cause,
    names::{attribute, span},
    telemetry::trace::{SpanKind, TraceSpan},
};
use tonic::{
    Request, Status, Streaming, TimeoutExpired, client::Grpc, codegen::http::uri::PathAndQuery,
    transport::Channel,
};
use tower::Service;

use crate::{
    call::{Attempts, Call, EventStream, PanicCounter},
    pool::{health::AttemptPermit, worker::Worker},
};

/// Path of the gRPC method.
const GENERATE: &str = "/stoker.v1.Inference/Generate";

/// A call and the worker selected for it.
pub(crate) struct Dispatch {
    pub(crate) call: Call,
    pub(crate) worker: Arc<Worker>,
    /// Taken by the layer that reports the result of the call to the worker's health.
    pub(crate) permit: Option<AttemptPermit>,
}

/// Calls the worker and returns once it has accepted or refused, so that a refusal is an error of
/// the call. Dropping the future or the stream resets the call, and the worker stops.
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
    let routing: &mut Routing = call.request.routing.get_or_insert_default();
    routing.attempt = call.attempt;
    routing.suspect = call.panics.count() > 0;
    let is_resumed = routing.resume.is_some();
    let attempt = RecordedAttempt::new(&call, &worker);
    let reader = StatusReader {
        worker: Arc::clone(&worker),
        deadline: call.deadline,
        is_resumed,
        panics: call.panics,
    };
    let mut request = Request::new(call.request);
    call.deadline.forward(&mut request);
    attempt.trace.forward(request.metadata_mut());
    let messages = open(worker.channel.clone(), request)
        .await
        .map_err(|status| attempt.failed(reader.read(&status)))?;

    let mut events = WorkerStream { messages, reader, attempt, complete: false, first: None };
    match events.next().await {
        Some(first) => events.first = Some(first?),
        None => return Ok(stream::empty().boxed()),
    }
    Ok(events.boxed())
}

/// Opens the stream like the generated client, but with a boxed request. Every call waits for
/// acceptance in this future, and the generated client's future holds several copies of the request
/// struct (3.7 KiB).
async fn open(
    channel: Channel,
    request: Request<Box<GenerateRequest>>,
) -> Result<Streaming<GenerateResponse>, Status> {
    let mut client = Grpc::new(channel).max_decoding_message_size(MAX_EVENT_BYTES);
    client.ready().await.map_err(|error| Status::from_error(error.into()))?;
    let path = PathAndQuery::from_static(GENERATE);
    let codec = SmallMessages::<Box<GenerateRequest>, GenerateResponse>::default();
    Ok(client.server_streaming(request, path, codec).await?.into_inner())
}

/// What is recorded of one attempt: its span, and its entry in the attempts of the request. Both
/// end when it is dropped.
struct RecordedAttempt {
    number: u32,
    trace: TraceSpan,
    attempts: Attempts,
}

impl RecordedAttempt {
    /// Begins where the selection of the worker ended.
    fn new(call: &Call, worker: &Worker) -> Self {
        let began = call.timeline.stage_began();
        call.attempts.began(call.attempt, &worker.id, call.cause, began);
        let start = call.timeline.time_of(began);
        let trace = call.trace.child(span::ATTEMPT, SpanKind::Client, start);
        if trace.is_exported() {
            trace.set(attribute::WORKER, worker.id.as_str().to_owned());
            trace.set(attribute::ATTEMPT, i64::from(call.attempt));
            if let Some(cause) = call.cause {
                trace.set(attribute::ATTEMPT_CAUSE, cause);
            }
            trace.set(attribute::RPC_SYSTEM, "grpc");
        }
        Self { number: call.attempt, trace, attempts: call.attempts.clone() }
    }

    fn failed(&self, error: ServiceError) -> ServiceError {
        self.attempts.failed(self.number, &error);
        if self.trace.is_exported() {
            self.trace.set(attribute::ERROR_TYPE, error.reason());
            self.trace.set(attribute::RPC_STATUS, error.code_name());
            self.trace.fail(error.to_string());
        }
        error
    }

    /// Ends it now, unless it has ended.
    fn end(&self) {
        self.attempts.ended(self.number);
        self.trace.end();
    }
}

impl Drop for RecordedAttempt {
    fn drop(&mut self) {
        self.end();
    }
}

/// Events of one attempt.
struct WorkerStream {
    messages: Streaming<GenerateResponse>,
    reader: StatusReader,
    attempt: RecordedAttempt,
    /// Whether the last event was received.
    complete: bool,
    /// First event, already received and returned before all others.
    first: Option<GenerateResponse>,
}

impl Stream for WorkerStream {
    type Item = Result<GenerateResponse, ServiceError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        if let Some(first) = this.first.take() {
            return Poll::Ready(Some(Ok(first)));
        }
        Poll::Ready(loop {
            match ready!(this.messages.poll_next_unpin(cx)) {
                // Fencing: events of another attempt must not reach the client.
                Some(Ok(event)) if event.attempt != this.attempt.number => {}
                Some(Ok(event)) => {
                    if matches!(&event.event, Some(Event::Finished(f)) if f.usage.is_some()) {
                        this.complete = true;
                        // Not later than the request, which ends with this event.
                        this.attempt.end();
                    }
                    break Some(Ok(event));
                }
                None if this.complete => break None,
                None => {
                    this.complete = true;
                    let what = format!("worker {} ended the response early", this.reader.worker.id);
                    break Some(Err(this.attempt.failed(ServiceError::unavailable(what))));
                }
                Some(Err(status)) => {
                    let error = this.reader.read(&status);
                    break Some(Err(this.attempt.failed(error)));
                }
            }
        })
    }
}

/// Converts a status of `worker` to an error. A status with a source comes from the local
/// transport, not from the worker.
pub(crate) fn error_from_status(
    worker: &WorkerId,
    deadline: Deadline,
    status: &Status,
) -> ServiceError {
    let source = status.source();
    let causes = || std::iter::successors(source, |&error| error.source());
    // tonic enforces the deadline at both ends of the connection too, rounded down and with
    // CANCELLED.
    if deadline.is_over() || causes().any(|error| error.is::<TimeoutExpired>()) {
        return ServiceError::DeadlineExceeded { stage: format!("waiting for worker {worker}") };
    }
    match source {
        Some(source) => {
            let cause = root_cause(source);
            ServiceError::Lost(format!("worker {worker}: the connection failed: {cause}"))
        }
        None => ServiceError::from(status),
    }
}

/// Converts the statuses of one attempt to errors.
struct StatusReader {
    worker: Arc<Worker>,
    deadline: Deadline,
    /// Whether another worker has accepted the request before.
    is_resumed: bool,
    panics: PanicCounter,
}

impl StatusReader {
    fn read(&self, status: &Status) -> ServiceError {
        let error = error_from_status(&self.worker.id, self.deadline, status);
        self.panics.record(&error);
        if let ServiceError::RoutingRefused(why) = error {
            return self.worker.refuses_routing(&why);
        }
        if self.is_router_fault(&error) {
            return ServiceError::Mismatch(format!("worker {}: {error}", self.worker.id));
        }
        error
    }

    /// Whether a worker refused a field that the router set and not one of the client's. The router
    /// looks up the model's name, and a request that another worker has accepted is valid.
    fn is_router_fault(&self, error: &ServiceError) -> bool {
        match error {
            ServiceError::UnknownModel { .. } => true,
            ServiceError::Invalid(violations) => {
                self.is_resumed || violations.iter().any(|v| v.field.starts_with("routing"))
            }
            ServiceError::Unsupported(_) => self.is_resumed,
            _ => false,
        }
    }
}

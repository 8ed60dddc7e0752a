//! The call to one worker.

use std::{
    error::Error,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::SystemTime,
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
    telemetry::{
        names::{attribute, span},
        trace::{SpanKind, TraceSpan},
    },
};
use tonic::{
    Request, Status, Streaming, TimeoutExpired, client::Grpc, codegen::http::uri::PathAndQuery,
    transport::Channel,
};
use tower::Service;

use crate::{
    call::{Call, EventStream, Panics},
    pool::{health::AttemptPermit, worker::Worker},
};

/// The method that is called.
const GENERATE: &str = "/stoker.v1.Inference/Generate";

/// A call and the worker that was chosen for it.
pub(crate) struct Dispatch {
    pub(crate) call: Call,
    pub(crate) worker: Arc<Worker>,
    /// Taken by whoever tells the worker's health what came of the call.
    pub(crate) pass: Option<AttemptPermit>,
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
    let routing: &mut Routing = call.request.routing.get_or_insert_default();
    routing.attempt = call.attempt;
    routing.suspect = call.panics.count() > 0;
    let attempt = Attempt::new(&call.trace, &worker, call.attempt);
    let reader = Reader {
        worker: Arc::clone(&worker),
        deadline: call.deadline,
        continues: routing.resume.is_some(),
        panics: call.panics,
    };
    let mut request = Request::new(call.request);
    call.deadline.forward(&mut request);
    attempt.0.forward(request.metadata_mut());
    let messages = open(worker.channel.clone(), request)
        .await
        .map_err(|status| attempt.failed(reader.read(&status)))?;

    let mut events =
        Events { messages, reader, number: call.attempt, attempt, complete: false, first: None };
    match events.next().await {
        Some(first) => events.first = Some(first?),
        None => return Ok(stream::empty().boxed()),
    }
    Ok(events.boxed())
}

/// What the generated client does, with the request in a box: every call waits for acceptance in this future,
/// and the client's holds the request itself several times over (3.7 KiB in all).
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
    reader: Reader,
    number: u32,
    attempt: Attempt,
    /// The last event has come.
    complete: bool,
    /// Was waited for, and goes out before everything else.
    first: Option<GenerateResponse>,
}

impl Stream for Events {
    type Item = Result<GenerateResponse, ServiceError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        if let Some(first) = this.first.take() {
            return Poll::Ready(Some(Ok(first)));
        }
        Poll::Ready(loop {
            match ready!(this.messages.poll_next_unpin(cx)) {
                // The fence: what another attempt made must not reach the client.
                Some(Ok(event)) if event.attempt != this.number => {}
                Some(Ok(event)) => {
                    this.complete |=
                        matches!(&event.event, Some(Event::Finished(f)) if f.usage.is_some());
                    break Some(Ok(event));
                }
                None if this.complete => break None,
                None => {
                    this.complete = true;
                    let what = format!("worker {} ended the answer early", this.reader.worker.id);
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

/// What a status of `worker` means. One with a source was made here, by the transport: the worker said nothing.
pub(crate) fn read(worker: &WorkerId, deadline: Deadline, status: &Status) -> ServiceError {
    let source = status.source();
    let causes = || std::iter::successors(source, |&error| error.source());
    // The deadline is kept at both ends of the connection too, by tonic, rounded down and with CANCELLED.
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

/// Reads the statuses of one attempt.
struct Reader {
    worker: Arc<Worker>,
    deadline: Deadline,
    /// Another worker had accepted the request.
    continues: bool,
    panics: Panics,
}

impl Reader {
    fn read(&self, status: &Status) -> ServiceError {
        let error = read(&self.worker.id, self.deadline, status);
        self.panics.note(&error);
        if let ServiceError::RoutingRefused(why) = error {
            return self.worker.refuses_routing(&why);
        }
        if self.is_about_routing(&error) {
            return ServiceError::Mismatch(format!("worker {}: {error}", self.worker.id));
        }
        error
    }

    /// Whether a worker refuses what this router says, and not what the client does: the model's name is looked up here,
    /// and what another worker had accepted is right.
    fn is_about_routing(&self, error: &ServiceError) -> bool {
        match error {
            ServiceError::UnknownModel { .. } => true,
            ServiceError::Invalid(violations) => {
                self.continues || violations.iter().any(|v| v.field.starts_with("routing"))
            }
            ServiceError::Unsupported(_) => self.continues,
            _ => false,
        }
    }
}

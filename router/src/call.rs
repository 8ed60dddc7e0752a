//! One request on its way through the stack, and the stream of events that comes back.

mod observed;

use std::{
    pin::Pin,
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

use futures::Stream;
use stoker_proto::v1::{GenerateRequest, GenerateResponse, Timings, generate_response::Event};
use stoker_shared::{
    ServiceError, deadline::Deadline, discovery::WorkerId, telemetry::trace::TraceSpan,
};
use tokio::time::Instant;
use tower::Service;
use tracing::Span;

pub(crate) use observed::{Observe, observe};

/// What a worker sends, and at most one error as the last item.
pub(crate) type EventStream =
    Pin<Box<dyn Stream<Item = Result<GenerateResponse, ServiceError>> + Send>>;

/// A request with what the layers know about it.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    pub(crate) request: GenerateRequest,
    pub(crate) deadline: Deadline,
    /// What is wrong with its headers. Refused below the layers that tell about it.
    pub(crate) malformed: Option<ServiceError>,
    pub(crate) arrived: Instant,
    /// The request in the log; layers record here what only they know.
    pub(crate) span: Span,
    /// The request in its trace; the caller's span at first.
    pub(crate) trace: TraceSpan,
    /// The model that will answer, once it is found.
    pub(crate) served: Arc<OnceLock<Arc<str>>>,
    /// Counts from 1; a worker repeats it in every event.
    pub(crate) attempt: u32,
    pub(crate) tried: Tried,
    /// If set, only a worker of this digest may take it: it goes on where one of these stopped.
    pub(crate) only_digest: Option<Arc<str>>,
}

impl Call {
    pub(crate) fn new(request: GenerateRequest, deadline: Deadline, arrived: Instant) -> Self {
        Self {
            request,
            deadline,
            malformed: None,
            arrived,
            span: Span::none(),
            trace: TraceSpan::default(),
            served: Arc::default(),
            attempt: 1,
            tried: Tried::default(),
            only_digest: None,
        }
    }
}

/// The workers that a request was sent to, in order. Every attempt of the request shares it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tried(Arc<Mutex<Vec<WorkerId>>>);

impl Tried {
    /// Reads or adds to the list.
    pub(crate) fn with<T>(&self, f: impl FnOnce(&mut Vec<WorkerId>) -> T) -> T {
        f(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Anything that serves a call: the stack, and what is left of it below a layer.
pub(crate) trait Generate:
    Service<Call, Response = EventStream, Error = ServiceError, Future: Send + 'static>
    + Clone
    + Send
    + 'static
{
}

impl<S> Generate for S where
    S: Service<Call, Response = EventStream, Error = ServiceError, Future: Send + 'static>
        + Clone
        + Send
        + 'static
{
}

/// The timings of a stream's last event; `None` for every other event.
pub(crate) fn last_timings(event: &mut GenerateResponse) -> Option<&mut Timings> {
    match &mut event.event {
        Some(Event::Finished(finished)) if finished.usage.is_some() => {
            Some(finished.timings.get_or_insert_default())
        }
        _ => None,
    }
}

//! One request on its way through the stack, and the stream of events that comes back.

mod observed;

use std::{
    pin::Pin,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
};

use futures::Stream;
use stoker_proto::v1::{GenerateRequest, GenerateResponse, Timings, generate_response::Event};
use stoker_shared::{
    ServiceError,
    deadline::Deadline,
    memory::{self, Hold},
    serve::Charge,
    telemetry::trace::TraceSpan,
};
use tokio::time::Instant;
use tower::Service;
use tracing::Span;

pub(crate) use observed::{Observe, observe};

use crate::pool::worker::{InstanceId, Worker};

/// What a worker sends, and at most one error as the last item.
pub(crate) type EventStream =
    Pin<Box<dyn Stream<Item = Result<GenerateResponse, ServiceError>> + Send>>;

/// A request with what the layers know about it.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    /// Boxed, since every layer that waits keeps a copy of the call in its future.
    pub(crate) request: Box<GenerateRequest>,
    pub(crate) deadline: Deadline,
    /// What is wrong with its headers. Refused below the layers that tell about it.
    pub(crate) malformed: Option<ServiceError>,
    pub(crate) arrived: Instant,
    /// Who asks; "" where nobody says.
    pub(crate) tenant: Arc<str>,
    /// The request in the log; layers record here what only they know.
    pub(crate) span: Span,
    /// The request in its trace; the caller's span at first.
    pub(crate) trace: TraceSpan,
    /// The model that will answer, once it is found.
    pub(crate) served: Arc<OnceLock<Arc<str>>>,
    /// A worker repeats it in every event.
    pub(crate) attempt: u32,
    pub(crate) attempts: Attempts,
    pub(crate) tried: AttemptedWorkers,
    /// Only a worker of this digest can continue what there is of the response.
    pub(crate) only_digest: Option<Arc<str>>,
    /// Tokens of the longest sequence, prompt and response together, once a worker has counted them.
    pub(crate) room: Option<u64>,
    pub(crate) panics: Panics,
    pub(crate) chosen: SelectedWorker,
    pub(crate) memory: Memory,
}

impl Call {
    pub(crate) fn new(request: GenerateRequest, deadline: Deadline, arrived: Instant) -> Self {
        Self {
            request: Box::new(request),
            deadline,
            malformed: None,
            arrived,
            tenant: Arc::default(),
            span: Span::none(),
            trace: TraceSpan::default(),
            served: Arc::default(),
            attempt: 1,
            attempts: Attempts::default(),
            tried: AttemptedWorkers::default(),
            only_digest: None,
            room: None,
            panics: Panics::default(),
            chosen: SelectedWorker::default(),
            memory: Memory::default(),
        }
    }

    /// The same call for another attempt.
    pub(crate) fn again(&self) -> Self {
        let attempt = self.attempts.next();
        self.span.record("attempts", attempt);
        let memory = self.memory.copy(&self.request);
        Self { attempt, chosen: SelectedWorker::default(), memory, ..self.clone() }
    }
}

/// The memory that a call is accounted for with. Clones share it, and give it back with the last of them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Memory {
    /// For the request.
    request: Option<Charge>,
    /// For a copy on its way to a worker.
    _copy: Option<Arc<Hold>>,
}

impl Memory {
    /// Accounts for `request`, now that it is decoded, with what its bytes were accounted for.
    pub(crate) fn of(
        charge: Option<Charge>,
        request: &GenerateRequest,
    ) -> Result<Self, ServiceError> {
        if let Some(charge) = &charge {
            charge.set(memory::held(request))?;
        }
        Ok(Self { request: charge, _copy: None })
    }

    /// The same with a copy of `request`, decoded and as bytes on their way. That is counted even where there is no room:
    /// the request was let in, and others are not while it is so.
    fn copy(&self, request: &GenerateRequest) -> Self {
        let bytes = || memory::held(request) + memory::wire(request);
        let copy =
            self.request.as_ref().map(|charge| Arc::new(charge.budget().hold_anyway(bytes())));
        Self { request: self.request.clone(), _copy: copy }
    }
}

/// Counts the attempts of a request, from 1. All of them share it, so no two have the same number.
#[derive(Debug, Clone, Default)]
pub(crate) struct Attempts(Arc<AtomicU32>);

impl Attempts {
    fn next(&self) -> u32 {
        self.0.fetch_add(1, Ordering::Relaxed) + 1
    }
}

/// Counts the engine steps that panicked with the request among their sequences. All attempts of a request share it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Panics(Arc<AtomicU32>);

impl Panics {
    /// Takes note of an error of a worker.
    pub(crate) fn note(&self, error: &ServiceError) {
        if matches!(error, ServiceError::EnginePanicked { sequences, .. } if !sequences.is_empty())
        {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// How many there were.
    pub(crate) fn count(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The workers that a request was sent to, in order. Every attempt of the request shares it.
#[derive(Debug, Clone, Default)]
pub(crate) struct AttemptedWorkers(Arc<Mutex<Vec<InstanceId>>>);

impl AttemptedWorkers {
    /// Reads or adds to the list.
    pub(crate) fn with<T>(&self, f: impl FnOnce(&mut Vec<InstanceId>) -> T) -> T {
        f(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The worker of one attempt, once it is chosen: the layers above the choice have to know whom they wait for.
#[derive(Debug, Clone, Default)]
pub(crate) struct SelectedWorker(Arc<OnceLock<Arc<Worker>>>);

impl SelectedWorker {
    /// SelectedWorker once an attempt.
    pub(crate) fn set(&self, worker: &Arc<Worker>) {
        let _ = self.0.set(Arc::clone(worker));
    }

    pub(crate) fn get(&self) -> Option<&Arc<Worker>> {
        self.0.get()
    }
}

/// Anything that serves a call: the stack, and what is left of it below a layer.
pub(crate) trait Generate:
    Service<Call, Response = EventStream, Error = ServiceError, Future: Send + 'static>
    + Clone
    + Send
    + Sync
    + 'static
{
}

impl<S> Generate for S where
    S: Service<Call, Response = EventStream, Error = ServiceError, Future: Send + 'static>
        + Clone
        + Send
        + Sync
        + 'static
{
}

/// How many continuations a request asks for.
pub(crate) fn continuations(request: &GenerateRequest) -> u32 {
    request.sampling.as_ref().and_then(|s| s.num_sequences).unwrap_or(1).max(1)
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

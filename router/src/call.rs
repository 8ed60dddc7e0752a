//! A request on its way through the stack, and the stream of response events.

mod attempts;
mod timeline;

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
    memory::{self, MemoryReservation},
    serve::Charge,
    telemetry::trace::TraceSpan,
};
use tokio::time::Instant;
use tower::Service;
use tracing::Span;

pub(crate) use attempts::Attempts;
pub(crate) use timeline::{Stage, StageTimes, Timeline};

use crate::{
    pool::worker::{InstanceId, Worker},
    tenant::Account,
};

/// Events of a response; an error, if any, is the last item.
pub(crate) type EventStream =
    Pin<Box<dyn Stream<Item = Result<GenerateResponse, ServiceError>> + Send>>;

/// Cause of an attempt beside a slow one.
pub(crate) const HEDGE: &str = "HEDGE";

/// A request with the state that the layers share.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    /// Boxed, since every layer that waits holds a copy of the call in its future.
    pub(crate) request: Box<GenerateRequest>,
    pub(crate) deadline: Deadline,
    /// Error in the request's headers, returned by a layer below tracing and metrics.
    pub(crate) malformed: Option<ServiceError>,
    pub(crate) arrived: Instant,
    /// Tenant of the request; "" without a tenant header or API keys.
    pub(crate) tenant: Arc<str>,
    /// The tenant of its API key, if it has one.
    pub(crate) account: Option<Account>,
    /// Log span of the request; each layer records its own fields.
    pub(crate) span: Span,
    /// Trace span of the request; initially the caller's span.
    pub(crate) trace: TraceSpan,
    /// Stages of the request.
    pub(crate) timeline: Timeline,
    /// Full name of the model, set by the model lookup.
    pub(crate) served: Arc<OnceLock<Arc<str>>>,
    /// Number of this attempt. The worker repeats it in every event.
    pub(crate) attempt: u32,
    pub(crate) attempts: Attempts,
    /// Why there is another attempt: the reason for which the last one failed, or [`HEDGE`].
    pub(crate) cause: Option<&'static str>,
    pub(crate) tried: AttemptedWorkers,
    /// Digest that a worker must have to continue the response; `None` before it has begun.
    pub(crate) only_digest: Option<Arc<str>>,
    /// Maximum tokens of one sequence (prompt and completion), once a worker has counted them.
    pub(crate) sequence_tokens: Option<u64>,
    pub(crate) panics: PanicCounter,
    pub(crate) selected: SelectedWorker,
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
            account: None,
            span: Span::none(),
            trace: TraceSpan::default(),
            timeline: Timeline::start(arrived),
            served: Arc::default(),
            attempt: 1,
            attempts: Attempts::default(),
            cause: None,
            tried: AttemptedWorkers::default(),
            only_digest: None,
            sequence_tokens: None,
            panics: PanicCounter::default(),
            selected: SelectedWorker::default(),
            memory: Memory::default(),
        }
    }

    /// Returns a copy of the call for the next attempt.
    pub(crate) fn next_attempt(&self) -> Self {
        let attempt = self.attempts.next();
        self.span.record("attempts", attempt);
        let memory = self.memory.copy(&self.request);
        Self { attempt, selected: SelectedWorker::default(), memory, ..self.clone() }
    }
}

/// Memory charged for a call. Clones share it; it is released when the last one is dropped.
#[derive(Debug, Clone, Default)]
pub(crate) struct Memory {
    /// Charge for the request.
    request: Option<Charge>,
    /// Charge for the copy that is sent to a worker.
    _copy: Option<Arc<MemoryReservation>>,
}

impl Memory {
    /// Adjusts `charge`, which covers the encoded bytes, to the size of the decoded `request`.
    pub(crate) fn of(
        charge: Option<Charge>,
        request: &GenerateRequest,
    ) -> Result<Self, ServiceError> {
        if let Some(charge) = &charge {
            charge.set(memory::allocated_bytes(request))?;
        }
        Ok(Self { request: charge, _copy: None })
    }

    /// Adds the charge for a copy of `request`, decoded and encoded. An admitted request may exceed
    /// the budget with it; new requests are refused meanwhile.
    fn copy(&self, request: &GenerateRequest) -> Self {
        let bytes = || memory::allocated_bytes(request) + memory::encoded_bytes(request);
        let copy = self
            .request
            .as_ref()
            .map(|charge| Arc::new(charge.budget().reserve_unchecked(bytes())));
        Self { request: self.request.clone(), _copy: copy }
    }
}

/// Counts the engine steps that panicked with the request among their sequences. All attempts of a
/// request share it.
#[derive(Debug, Clone, Default)]
pub(crate) struct PanicCounter(Arc<AtomicU32>);

impl PanicCounter {
    /// Counts `error` if it is such a panic.
    pub(crate) fn record(&self, error: &ServiceError) {
        if matches!(error, ServiceError::EnginePanicked { sequences, .. } if !sequences.is_empty())
        {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Returns the number of panics so far.
    pub(crate) fn count(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Workers that a request was sent to, in order. All attempts of a request share it.
#[derive(Debug, Clone, Default)]
pub(crate) struct AttemptedWorkers(Arc<Mutex<Vec<InstanceId>>>);

impl AttemptedWorkers {
    /// Reads or adds to the list.
    pub(crate) fn with<T>(&self, f: impl FnOnce(&mut Vec<InstanceId>) -> T) -> T {
        f(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Worker of one attempt, once selected. The layers above `Balance` watch its liveness.
#[derive(Debug, Clone, Default)]
pub(crate) struct SelectedWorker(Arc<OnceLock<Arc<Worker>>>);

impl SelectedWorker {
    /// Sets the worker, once per attempt.
    pub(crate) fn set(&self, worker: &Arc<Worker>) {
        let _ = self.0.set(Arc::clone(worker));
    }

    pub(crate) fn get(&self) -> Option<&Arc<Worker>> {
        self.0.get()
    }
}

/// A service for calls: the stack, or the part of it below a layer.
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

/// Returns the number of choices that a request wants.
pub(crate) fn num_choices(request: &GenerateRequest) -> u32 {
    request.sampling.as_ref().and_then(|s| s.num_sequences).unwrap_or(1).max(1)
}

/// Returns the timings of a stream's last event; `None` for every other event.
pub(crate) fn last_timings(event: &mut GenerateResponse) -> Option<&mut Timings> {
    match &mut event.event {
        Some(Event::Finished(finished)) if finished.usage.is_some() => {
            Some(finished.timings.get_or_insert_default())
        }
        _ => None,
    }
}

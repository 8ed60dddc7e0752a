//! The errors of a call. Inner code returns [`ServiceError`]; the service of each process converts
//! it to a status.

mod status;

use std::{error::Error, time::Duration};

use tonic::Code;

use crate::tls;

pub use status::is_stoker_status;

/// Distinguishes draining from other causes of UNAVAILABLE, since a retry on another worker costs
/// nothing.
const DRAINING: &str = "DRAINING";
/// The same for workers that are lost or stalled.
const LOST: &str = "WORKER_LOST";
const STALLED: &str = "WORKER_STALLED";
/// Distinguishes a deadline that could not be met from one that passed.
const TOO_LATE: &str = "TOO_LATE";
/// Distinguishes a response that was cut off from a request that no worker accepted.
const INTERRUPTED: &str = "INTERRUPTED";
/// Distinguishes a limit of one worker from overload: waiting does not help, but another worker
/// may.
const EXCEEDS_WORKER: &str = "EXCEEDS_WORKER";
/// Distinguishes an error of the router from an error of its client.
const MISMATCH: &str = "MISMATCH";
/// Distinguishes a sequence that was moved off an overloaded worker from one that was lost with a
/// failed worker.
const PREEMPTED: &str = "PREEMPTED";
/// Reports a panic of the engine, with the sequences of the step that panicked.
const ENGINE_PANICKED: &str = "ENGINE_PANICKED";
/// Distinguishes a router that the worker does not accept from a client that lacks a permission.
const ROUTING_REFUSED: &str = "ROUTING_REFUSED";
/// Rejects a call without a valid API key.
const UNAUTHENTICATED: &str = "UNAUTHENTICATED";
/// Rejects what a tenant may not do.
const PERMISSION_DENIED: &str = "PERMISSION_DENIED";
/// Distinguishes a limit of the tenant from overload of the cluster.
const RATE_LIMITED: &str = "RATE_LIMITED";
/// Rejects a request whose content made engines panic.
const QUARANTINED: &str = "QUARANTINED";
/// Retry delay after which a lost worker may be available again.
const DEFAULT_RETRY_DELAY: Duration = Duration::from_secs(1);
/// Maximum number of bytes of a peer's text that are quoted, so that an error that quotes another
/// error does not grow with every hop.
pub const MAX_QUOTED: usize = 512;
/// Maximum number of violations in an error.
pub(crate) const MAX_VIOLATIONS: usize = 12;

/// One invalid field: its name in the proto, and a description with the value, the limit and the
/// remedy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Path of the field, for instance `sampling.temperature`.
    pub field: String,
    /// The invalid value, and what is allowed.
    pub description: String,
}

/// Why a call failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ServiceError {
    /// The request is invalid. A retry does not help.
    #[error("{}", join_violations(.0))]
    Invalid(Vec<Violation>),
    /// No worker serves this model.
    #[error("model `{model}` is not served here; available: {}", join_names(.available))]
    UnknownModel {
        /// Name of the model in the request.
        model: String,
        /// Names of the served models.
        available: Vec<String>,
    },
    /// A limit on queued or running work is reached.
    #[error("{what}; try again in {} ms", .retry_after.as_millis())]
    Overloaded {
        /// The limit, with its value.
        what: String,
        /// Time until a slot is likely to be free.
        retry_after: Duration,
    },
    /// The request cannot be served now: no worker is ready, or a connection was lost.
    #[error("{reason}")]
    Unavailable {
        /// The cause.
        reason: String,
        /// Delay before a retry.
        retry_after: Duration,
    },
    /// The worker or router is shutting down and did not process the request. Another one can serve
    /// it immediately.
    #[error("{0} is draining")]
    Draining(String),
    /// The connection to the worker is lost, and with it the state of the call.
    #[error("{0}")]
    Lost(String),
    /// The worker makes no progress.
    #[error("{0}")]
    Stalled(String),
    /// The response had started, its worker was lost, and no other worker could resume it.
    #[error("{reason}; the response is cut off after {completion_tokens} tokens")]
    Interrupted {
        /// The cause.
        reason: String,
        /// Delay before a retry.
        retry_after: Duration,
        /// Number of prompt tokens.
        prompt_tokens: u32,
        /// Number of tokens that were sent, of all choices together.
        completion_tokens: u32,
    },
    /// The caller's deadline passed.
    #[error("deadline exceeded {stage}")]
    DeadlineExceeded {
        /// The stage in which the deadline passed, for instance `while queued`.
        stage: String,
    },
    /// The deadline cannot be met, so the request was not started. A faster worker may meet it.
    #[error("{what}; increase the deadline")]
    TooLate {
        /// The required and the available time.
        what: String,
    },
    /// The caller cancelled the call.
    #[error("cancelled by the caller")]
    Cancelled,
    /// The field is part of the API, but this version does not support it.
    #[error("`{0}` is not supported by this version")]
    Unsupported(String),
    /// The request exceeds a limit of this worker, not of the model. A larger worker may accept it.
    #[error("{what}")]
    ExceedsWorker {
        /// The requirement, and the limit with its flag.
        what: String,
        /// Number of tokens of the longest sequence, including the prompt, if that exceeds the
        /// limit; else 0.
        needed_tokens: u32,
    },
    /// The worker is not the one that the router expected, or cannot resume the response.
    #[error("{0}")]
    Mismatch(String),
    /// The sequence was preempted on a worker without free KV blocks, and another worker has room
    /// for it.
    #[error("{0}")]
    Preempted(String),
    /// The engine of the worker panicked, and the worker is about to exit.
    #[error("the worker's engine panicked: {cause}")]
    EnginePanicked {
        /// Message of the panic.
        cause: String,
        /// Choices of this request that were part of the step that panicked.
        sequences: Vec<u32>,
    },
    /// Requests with the same content made the engines of two workers panic.
    #[error("{0}")]
    Quarantined(String),
    /// The call has no valid API key.
    #[error("{0}")]
    Unauthenticated(String),
    /// The tenant of the API key may not do this.
    #[error("{0}")]
    PermissionDenied(String),
    /// The tenant of the API key has reached a limit of its own.
    #[error("{what}; try again in {} ms", .retry_after.as_millis())]
    RateLimited {
        /// The limit, with its value.
        what: String,
        /// Time until the request is within the limit.
        retry_after: Duration,
    },
    /// The worker does not accept `routing` from this peer.
    #[error("{0}")]
    RoutingRefused(String),
    /// A bug in Stoker.
    #[error("internal error: {0}")]
    Internal(String),
}

fn join_violations(violations: &[Violation]) -> String {
    let descriptions: Vec<_> =
        violations.iter().map(|v| format!("{}: {}", v.field, v.description)).collect();
    descriptions.join("; ")
}

fn join_names(names: &[String]) -> String {
    if names.is_empty() { "none".into() } else { names.join(", ") }
}

impl ServiceError {
    /// Creates an error about one invalid field.
    pub fn invalid(field: impl Into<String>, description: impl Into<String>) -> Self {
        Self::Invalid(vec![Violation { field: field.into(), description: description.into() }])
    }

    /// Creates an `Unavailable` error with the default retry delay.
    pub fn unavailable(reason: impl Into<String>) -> Self {
        Self::Unavailable { reason: reason.into(), retry_after: DEFAULT_RETRY_DELAY }
    }

    /// Returns whether the same request may succeed on another worker.
    pub fn is_retryable_elsewhere(&self) -> bool {
        let unavailable = matches!(self, Self::Unavailable { .. } | Self::Overloaded { .. });
        let too_late = matches!(self, Self::TooLate { .. });
        unavailable || too_late || self.retry_adds_no_load()
    }

    /// Returns whether a retry on another worker adds no load to the cluster, since this worker
    /// does nothing for the request any more.
    pub fn retry_adds_no_load(&self) -> bool {
        let lost = matches!(self, Self::Draining(_) | Self::Lost(_) | Self::EnginePanicked { .. });
        let abandoned = matches!(self, Self::Stalled(_) | Self::Preempted(_));
        let unfit = matches!(self, Self::ExceedsWorker { .. } | Self::Mismatch(_));
        lost || abandoned || unfit
    }

    /// Returns a stable name for logs, metrics and `google.rpc.ErrorInfo.reason`: one of
    /// [`REASONS`](crate::names::label::REASONS).
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Invalid(_) => "INVALID",
            Self::UnknownModel { .. } => "UNKNOWN_MODEL",
            Self::Overloaded { .. } => "OVERLOADED",
            Self::Unavailable { .. } => "UNAVAILABLE",
            Self::Draining(_) => DRAINING,
            Self::Lost(_) => LOST,
            Self::Stalled(_) => STALLED,
            Self::Interrupted { .. } => INTERRUPTED,
            Self::DeadlineExceeded { .. } => "DEADLINE_EXCEEDED",
            Self::TooLate { .. } => TOO_LATE,
            Self::Cancelled => "CANCELLED",
            Self::Unsupported(_) => "UNSUPPORTED",
            Self::ExceedsWorker { .. } => EXCEEDS_WORKER,
            Self::Mismatch(_) => MISMATCH,
            Self::Preempted(_) => PREEMPTED,
            Self::EnginePanicked { .. } => ENGINE_PANICKED,
            Self::Quarantined(_) => QUARANTINED,
            Self::Unauthenticated(_) => UNAUTHENTICATED,
            Self::PermissionDenied(_) => PERMISSION_DENIED,
            Self::RateLimited { .. } => RATE_LIMITED,
            Self::RoutingRefused(_) => ROUTING_REFUSED,
            Self::Internal(_) => "INTERNAL",
        }
    }

    /// Returns the name of the corresponding gRPC status, as shown in logs and metrics.
    pub fn code_name(&self) -> &'static str {
        code_name(self.code())
    }

    fn code(&self) -> Code {
        match self {
            Self::Invalid(_) => Code::InvalidArgument,
            Self::UnknownModel { .. } => Code::NotFound,
            Self::Overloaded { .. } | Self::ExceedsWorker { .. } => Code::ResourceExhausted,
            Self::Mismatch(_) => Code::FailedPrecondition,
            // A request that was not part of the step can be retried.
            Self::EnginePanicked { sequences, .. } if sequences.is_empty() => Code::Unavailable,
            Self::EnginePanicked { .. } | Self::Quarantined(_) => Code::Internal,
            Self::Unavailable { .. }
            | Self::Draining(_)
            | Self::Lost(_)
            | Self::Stalled(_)
            | Self::Preempted(_)
            | Self::Interrupted { .. } => Code::Unavailable,
            Self::DeadlineExceeded { .. } | Self::TooLate { .. } => Code::DeadlineExceeded,
            Self::Cancelled => Code::Cancelled,
            Self::Unsupported(_) => Code::Unimplemented,
            Self::Unauthenticated(_) => Code::Unauthenticated,
            Self::RateLimited { .. } => Code::ResourceExhausted,
            Self::PermissionDenied(_) | Self::RoutingRefused(_) => Code::PermissionDenied,
            Self::Internal(_) => Code::Internal,
        }
    }
}

/// Returns the innermost cause of an error, which is the most specific one: `connection refused`
/// instead of `transport error`. Causes of TLS are explained.
pub fn root_cause(error: &(dyn Error + 'static)) -> String {
    let mut innermost = error;
    loop {
        if let Some(cause) = tls::explain(innermost) {
            return cause;
        }
        match innermost.source() {
            Some(source) => innermost = source,
            None => return innermost.to_string(),
        }
    }
}

/// Returns at most [`MAX_QUOTED`] bytes of a peer's text, without control characters other than
/// line breaks.
pub fn quoted(text: &str) -> String {
    let printable = |c: char| if c.is_control() && c != '\n' { ' ' } else { c };
    let end = text.floor_char_boundary(MAX_QUOTED);
    let quoted: String = text[..end].chars().map(printable).collect();
    if end < text.len() { quoted + "..." } else { quoted }
}

/// Returns the name of a gRPC code, for instance `RESOURCE_EXHAUSTED`.
pub fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

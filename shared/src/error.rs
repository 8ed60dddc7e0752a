//! The errors of a call. Inner code returns [`ServiceError`]; the edge of each process turns it into a status.

mod status;

use std::{error::Error, time::Duration};

use tonic::Code;

pub use status::is_stoker_status;

/// Told apart from other reasons to be unavailable, since a retry elsewhere costs nobody anything.
const DRAINING: &str = "DRAINING";
/// The same for workers that are gone, or as good as gone.
const LOST: &str = "WORKER_LOST";
const STALLED: &str = "WORKER_STALLED";
/// Tells a deadline that could not be met from one that passed.
const TOO_LATE: &str = "TOO_LATE";
/// Tells an answer that had begun from a request that nobody took.
const INTERRUPTED: &str = "INTERRUPTED";
/// Distinguishes a limit of one worker from overload: waiting does not help, another worker may.
const EXCEEDS_WORKER: &str = "EXCEEDS_WORKER";
/// Distinguishes what a router got wrong from what its client did.
const MISMATCH: &str = "MISMATCH";
/// Distinguishes a sequence that was moved off a busy worker from one that a failing worker lost.
const PREEMPTED: &str = "PREEMPTED";
/// Reports a panic of the engine, with the sequences of the step that panicked.
const ENGINE_PANICKED: &str = "ENGINE_PANICKED";
/// Distinguishes a router that is not accepted as one from a client that may not do something.
const ROUTING_REFUSED: &str = "ROUTING_REFUSED";
/// Refuses the content of a request that made engines panic.
const QUARANTINED: &str = "QUARANTINED";
/// A worker that was lost may be back by then.
const SOON: Duration = Duration::from_secs(1);
/// Bytes of a peer's text that are quoted, at most: an error that quotes an error must not grow with every hop.
pub const MAX_QUOTED: usize = 512;
/// One field that is wrong: `field` as the proto names it, and value, limit and remedy in `description`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Path of the field, for instance `sampling.temperature`.
    pub field: String,
    /// What is wrong with which value, and what is allowed.
    pub description: String,
}

/// Why a call failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ServiceError {
    /// The request cannot be served as it is; trying again does not help.
    #[error("{}", describe(.0))]
    Invalid(Vec<Violation>),
    /// Nobody serves this model.
    #[error("model `{model}` is not served here; available: {}", list(.available))]
    UnknownModel {
        /// As the request names it.
        model: String,
        /// What is served.
        available: Vec<String>,
    },
    /// A limit on waiting or running work is reached.
    #[error("{what}; try again in {} ms", .retry_after.as_millis())]
    Overloaded {
        /// Which limit, with its value.
        what: String,
        /// When a place is likely.
        retry_after: Duration,
    },
    /// Nobody can serve this now: no worker, connection lost, draining.
    #[error("{reason}")]
    Unavailable {
        /// What happened.
        reason: String,
        /// When to come back.
        retry_after: Duration,
    },
    /// Whoever was asked is about to stop and did nothing; another one can serve this at once.
    #[error("{0} is draining")]
    Draining(String),
    /// The connection to whoever was asked is gone, and with it what it had of the call.
    #[error("{0}")]
    Lost(String),
    /// Whoever was asked makes no progress.
    #[error("{0}")]
    Stalled(String),
    /// An answer had begun, its worker was lost, and nobody could go on with it.
    #[error("{reason}; the answer is cut off after {completion_tokens} tokens")]
    Interrupted {
        /// What happened.
        reason: String,
        /// When to come back.
        retry_after: Duration,
        /// Tokens of the prompt.
        prompt_tokens: u32,
        /// Tokens that were sent, of all continuations together.
        completion_tokens: u32,
    },
    /// The caller's deadline passed.
    #[error("deadline exceeded {stage}")]
    DeadlineExceeded {
        /// Where the time ran out, for instance `while queued`.
        stage: String,
    },
    /// The caller's deadline would pass, so nothing was begun. Somebody who is faster may be in time.
    #[error("{what}; give it more time")]
    TooLate {
        /// What it takes, and what it has.
        what: String,
    },
    /// The caller went away.
    #[error("cancelled by the caller")]
    Cancelled,
    /// The field is part of the contract but this version does not serve it.
    #[error("`{0}` is not supported by this version")]
    Unsupported(String),
    /// A limit of the worker that was called, not of the model: a worker with more room may take the request.
    #[error("{what}")]
    ExceedsWorker {
        /// What is needed, and the limit with its flag.
        what: String,
        /// Tokens of the longest sequence, prompt included, where they are the limit; else 0.
        needed_tokens: u32,
    },
    /// The worker that was called is not the one that the router took it for, or cannot continue that response.
    #[error("{0}")]
    Mismatch(String),
    /// The response waits at a busy worker without KV blocks, and another worker has room for it.
    #[error("{0}")]
    Preempted(String),
    /// The worker's engine panicked, and the worker is about to end.
    #[error("the worker's engine panicked: {cause}")]
    EnginePanicked {
        /// What the panic said.
        cause: String,
        /// Choices of this request that were part of the step that panicked.
        sequences: Vec<u32>,
    },
    /// Requests with the same content made the engines of two workers panic.
    #[error("{0}")]
    Quarantined(String),
    /// The worker that was called does not accept `routing` from that peer.
    #[error("{0}")]
    RoutingRefused(String),
    /// A fault of ours.
    #[error("internal error: {0}")]
    Internal(String),
}

fn describe(violations: &[Violation]) -> String {
    let parts: Vec<_> =
        violations.iter().map(|v| format!("{}: {}", v.field, v.description)).collect();
    parts.join("; ")
}

fn list(names: &[String]) -> String {
    if names.is_empty() { "none".into() } else { names.join(", ") }
}

impl ServiceError {
    /// One field is wrong.
    pub fn invalid(field: impl Into<String>, description: impl Into<String>) -> Self {
        Self::Invalid(vec![Violation { field: field.into(), description: description.into() }])
    }

    /// Unavailable, worth another try in a second.
    pub fn unavailable(reason: impl Into<String>) -> Self {
        Self::Unavailable { reason: reason.into(), retry_after: SOON }
    }

    /// Whether the same request may succeed on another worker.
    pub fn is_retryable_elsewhere(&self) -> bool {
        let busy = matches!(self, Self::Unavailable { .. } | Self::Overloaded { .. });
        let slow = matches!(self, Self::TooLate { .. });
        busy || slow || self.retry_adds_no_load()
    }

    /// Whether asking another worker adds no load to the cluster, since the first one does nothing for the
    /// call any more.
    pub fn retry_adds_no_load(&self) -> bool {
        let lost = matches!(self, Self::Draining(_) | Self::Lost(_) | Self::EnginePanicked { .. });
        let left = matches!(self, Self::Stalled(_) | Self::Preempted(_));
        let unfit = matches!(self, Self::ExceedsWorker { .. } | Self::Mismatch(_));
        lost || left || unfit
    }

    /// A stable name for logs, metrics and `google.rpc.ErrorInfo.reason`.
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
            Self::RoutingRefused(_) => ROUTING_REFUSED,
            Self::Internal(_) => "INTERNAL",
        }
    }

    /// The name of the gRPC status that it becomes, as logs and metrics show it.
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
            Self::RoutingRefused(_) => Code::PermissionDenied,
            Self::Internal(_) => Code::Internal,
        }
    }
}

/// The innermost cause of an error, which is the one that helps: `connection refused`, not `transport
/// error`.
pub fn root_cause(error: &dyn Error) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

/// At most [`MAX_QUOTED`] bytes of a peer's text, in one line.
pub fn quoted(text: &str) -> String {
    let printable = |c: char| if c.is_control() && c != '\n' { ' ' } else { c };
    let end = text.floor_char_boundary(MAX_QUOTED);
    let kept: String = text[..end].chars().map(printable).collect();
    if end < text.len() { kept + "..." } else { kept }
}

/// A code as gRPC spells it, for instance `RESOURCE_EXHAUSTED`.
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

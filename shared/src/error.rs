//! The errors of a call, and the one translation to and from `tonic::Status`.
//!
//! Inner code returns [`ServiceError`]; the edge of each process turns it into a status with details.
//! The router reads a worker's status back into the same type, so a cause survives the hop.

use std::{collections::HashMap, error::Error, time::Duration};

use tonic::{Code, Status, metadata::MetadataValue};
use tonic_types::{ErrorDetails, StatusExt};

use crate::validate::MAX_VIOLATIONS;

/// Tells gRPC clients with a retry policy when to come back.
const PUSHBACK: &str = "grpc-retry-pushback-ms";
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
/// Refuses the content of a request that made engines panic.
const QUARANTINED: &str = "QUARANTINED";
/// A worker that was lost may be back by then.
const SOON: Duration = Duration::from_secs(1);
/// Somebody else is there.
const AT_ONCE: Duration = Duration::ZERO;
/// What an interrupted answer has come to, in its `google.rpc.ErrorInfo.metadata`.
const PROMPT_TOKENS: &str = "prompt_tokens";
const COMPLETION_TOKENS: &str = "completion_tokens";
/// Tokens that a request needs and a worker cannot hold, in the same place.
const NEEDED_TOKENS: &str = "needed_tokens";
/// The choices of a request in the step that panicked, separated by commas.
const SEQUENCES: &str = "sequences";
/// Bytes of a peer's text that are quoted, at most: an error that quotes an error must not grow with every hop.
pub const MAX_QUOTED: usize = 512;
/// The `domain` of our `google.rpc.ErrorInfo`.
const DOMAIN: &str = "stoker";

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
        busy || slow || self.is_free_elsewhere()
    }

    /// Whether asking another worker adds no load to the cluster, since the first one does nothing for the
    /// call any more.
    pub fn is_free_elsewhere(&self) -> bool {
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
            Self::Internal(_) => Code::Internal,
        }
    }

    /// What the type holds beyond its message, so that it can be read back on the other side.
    fn metadata(&self) -> HashMap<String, String> {
        let entries: Vec<(&str, String)> = match self {
            Self::UnknownModel { model, available } => {
                vec![("model", model.clone()), ("available", available.join("\n"))]
            }
            Self::Overloaded { what, .. } | Self::TooLate { what } => vec![("what", what.clone())],
            Self::Draining(who) => vec![("who", who.clone())],
            Self::Interrupted { reason, prompt_tokens, completion_tokens, .. } => vec![
                ("reason", reason.clone()),
                (PROMPT_TOKENS, prompt_tokens.to_string()),
                (COMPLETION_TOKENS, completion_tokens.to_string()),
            ],
            Self::DeadlineExceeded { stage } => vec![("stage", stage.clone())],
            Self::ExceedsWorker { what, needed_tokens } => {
                vec![("what", what.clone()), (NEEDED_TOKENS, needed_tokens.to_string())]
            }
            Self::EnginePanicked { cause, sequences } => {
                let sequences: Vec<_> = sequences.iter().map(u32::to_string).collect();
                vec![("cause", cause.clone()), (SEQUENCES, sequences.join(","))]
            }
            Self::Unsupported(field) => vec![("field", field.clone())],
            Self::Internal(cause) => vec![("cause", cause.clone())],
            _ => Vec::new(),
        };
        entries.into_iter().map(|(k, v)| (k.to_owned(), v)).collect()
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

impl From<ServiceError> for Status {
    fn from(error: ServiceError) -> Self {
        let mut details = ErrorDetails::new();
        details.set_error_info(error.reason(), DOMAIN, error.metadata());
        let mut pushback = None;
        match &error {
            ServiceError::Invalid(violations) => {
                for v in violations {
                    details.add_bad_request_violation(&v.field, &v.description);
                }
            }
            ServiceError::Overloaded { retry_after, .. }
            | ServiceError::Unavailable { retry_after, .. }
            | ServiceError::Interrupted { retry_after, .. } => {
                details.set_retry_info(Some(*retry_after));
                pushback = Some(*retry_after);
            }
            ServiceError::Draining(_) => {
                details.set_retry_info(Some(AT_ONCE));
                pushback = Some(AT_ONCE);
            }
            ServiceError::Lost(_) | ServiceError::Stalled(_) | ServiceError::Preempted(_) => {
                details.set_retry_info(Some(SOON));
                pushback = Some(SOON);
            }
            _ => {}
        }
        let mut status = Status::with_error_details(error.code(), error.to_string(), details);
        if let Some(after) = pushback {
            let millis = u64::try_from(after.as_millis()).unwrap_or(u64::MAX);
            status.metadata_mut().insert(PUSHBACK, MetadataValue::from(millis));
        }
        status
    }
}

/// At most [`MAX_QUOTED`] bytes of a peer's text, in one line.
pub fn quoted(text: &str) -> String {
    let printable = |c: char| if c.is_control() && c != '\n' { ' ' } else { c };
    let end = text.floor_char_boundary(MAX_QUOTED);
    let kept: String = text[..end].chars().map(printable).collect();
    if end < text.len() { kept + "..." } else { kept }
}

/// Whether a status was made by a router or worker of ours, and not by something between.
pub fn is_ours(status: &Status) -> bool {
    status.get_details_error_info().is_some_and(|info| info.domain == DOMAIN)
}

/// A peer's status, with what its details say in our own domain.
struct Received<'a> {
    status: &'a Status,
    details: ErrorDetails,
}

impl Received<'_> {
    fn message(&self) -> String {
        quoted(self.status.message())
    }

    /// Why, if the peer is one of ours.
    fn reason(&self) -> &str {
        let info = self.details.error_info().filter(|info| info.domain == DOMAIN);
        info.map_or("", |info| info.reason.as_str())
    }

    fn field(&self, key: &str) -> Option<String> {
        let info = self.details.error_info().filter(|info| info.domain == DOMAIN)?;
        info.metadata.get(key).map(|text| quoted(text))
    }

    fn text(&self, key: &str) -> String {
        self.field(key).unwrap_or_else(|| self.message())
    }

    fn count(&self, key: &str) -> u32 {
        self.field(key).and_then(|n| n.parse().ok()).unwrap_or_default()
    }

    fn retry_after(&self) -> Duration {
        self.details.retry_info().and_then(|info| info.retry_delay).unwrap_or(SOON)
    }

    fn violations(&self) -> Vec<Violation> {
        let given = self.details.bad_request().map(|bad| bad.field_violations.as_slice());
        let given = given.unwrap_or_default().iter().take(MAX_VIOLATIONS);
        given
            .map(|v| Violation { field: quoted(&v.field), description: quoted(&v.description) })
            .collect()
    }

    fn engine_panicked(&self) -> ServiceError {
        let sequences = self.field(SEQUENCES).unwrap_or_default();
        ServiceError::EnginePanicked {
            cause: self.text("cause"),
            sequences: sequences.split(',').filter_map(|choice| choice.parse().ok()).collect(),
        }
    }
}

impl From<&Status> for ServiceError {
    /// Reads a peer's status. One that is not ours keeps its code and message. No text is longer than
    /// [`MAX_QUOTED`].
    fn from(status: &Status) -> Self {
        let peer = Received { status, details: status.get_error_details() };
        match (status.code(), peer.reason()) {
            (Code::FailedPrecondition, MISMATCH) => Self::Mismatch(peer.message()),
            (Code::InvalidArgument | Code::OutOfRange | Code::FailedPrecondition, _) => {
                match peer.violations() {
                    none if none.is_empty() => Self::invalid("request", peer.message()),
                    violations => Self::Invalid(violations),
                }
            }
            (Code::NotFound, _) => Self::UnknownModel {
                model: peer.text("model"),
                available: peer
                    .field("available")
                    .map(|names| {
                        names.split('\n').filter(|n| !n.is_empty()).map(Into::into).collect()
                    })
                    .unwrap_or_default(),
            },
            (Code::ResourceExhausted, EXCEEDS_WORKER) => Self::ExceedsWorker {
                what: peer.text("what"),
                needed_tokens: peer.count(NEEDED_TOKENS),
            },
            (Code::ResourceExhausted, _) => {
                Self::Overloaded { what: peer.text("what"), retry_after: peer.retry_after() }
            }
            (Code::DeadlineExceeded, TOO_LATE) => Self::TooLate { what: peer.text("what") },
            (Code::DeadlineExceeded, _) => Self::DeadlineExceeded { stage: peer.text("stage") },
            (Code::Cancelled, _) => Self::Cancelled,
            (Code::Unimplemented, _) => Self::Unsupported(peer.text("field")),
            (Code::Unavailable | Code::Internal, ENGINE_PANICKED) => peer.engine_panicked(),
            (Code::Unavailable, DRAINING) => Self::Draining(peer.text("who")),
            (Code::Unavailable, LOST) => Self::Lost(peer.message()),
            (Code::Unavailable, STALLED) => Self::Stalled(peer.message()),
            (Code::Unavailable, PREEMPTED) => Self::Preempted(peer.message()),
            (Code::Unavailable, INTERRUPTED) => Self::Interrupted {
                reason: peer.text("reason"),
                retry_after: peer.retry_after(),
                prompt_tokens: peer.count(PROMPT_TOKENS),
                completion_tokens: peer.count(COMPLETION_TOKENS),
            },
            (Code::Unavailable, _) => {
                Self::Unavailable { reason: peer.message(), retry_after: peer.retry_after() }
            }
            (Code::Internal, QUARANTINED) => Self::Quarantined(peer.message()),
            _ => Self::Internal(peer.text("cause")),
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_error_survives_the_hop() {
        let after = Duration::from_millis(250);
        for error in [
            ServiceError::invalid("sampling.top_p", "2 is above 1"),
            ServiceError::UnknownModel {
                model: "x".into(),
                available: vec!["a".into(), "b".into()],
            },
            ServiceError::UnknownModel { model: "x".into(), available: vec![] },
            ServiceError::Overloaded { what: "512 requests wait".into(), retry_after: after },
            ServiceError::Unavailable { reason: "draining".into(), retry_after: after },
            ServiceError::Draining("worker-1".into()),
            ServiceError::Lost("worker-1: connection reset".into()),
            ServiceError::Stalled("worker-1 stands still".into()),
            ServiceError::Interrupted {
                reason: "worker-1 is gone".into(),
                retry_after: after,
                prompt_tokens: 12,
                completion_tokens: 345,
            },
            ServiceError::DeadlineExceeded { stage: "while queued".into() },
            ServiceError::TooLate { what: "it takes 3 s and has 2 s".into() },
            ServiceError::ExceedsWorker { what: "17 of 16".into(), needed_tokens: 17 },
            ServiceError::Mismatch("another digest".into()),
            ServiceError::Preempted("worker-1 is busy".into()),
            ServiceError::EnginePanicked { cause: "index".into(), sequences: vec![] },
            ServiceError::EnginePanicked { cause: "index".into(), sequences: vec![0, 2] },
            ServiceError::Quarantined("two engines panicked".into()),
            ServiceError::Cancelled,
            ServiceError::Unsupported("guided".into()),
            ServiceError::Internal("NaN logits".into()),
        ] {
            let status = Status::from(error.clone());
            assert_eq!(ServiceError::from(&status), error, "{status:?}");
        }
    }

    #[test]
    fn an_error_that_quotes_itself_does_not_grow() {
        let mut error = ServiceError::unavailable("x".repeat(10_000));
        for _ in 0..20 {
            let quote = ServiceError::from(&Status::from(error));
            error = ServiceError::unavailable(format!("worker-\u{e9}: {quote}"));
        }
        let length = error.to_string().len();
        assert!((MAX_QUOTED..MAX_QUOTED + 32).contains(&length), "{length}");
    }

    #[test]
    fn overload_tells_grpc_clients_when_to_come_back() {
        let status = Status::from(ServiceError::Overloaded {
            what: "full".into(),
            retry_after: Duration::from_millis(250),
        });
        assert_eq!(status.metadata().get(PUSHBACK).map(|v| v.as_bytes()), Some(&b"250"[..]));
    }
}

//! The errors of a call, and the one translation to and from `tonic::Status`.
//!
//! Inner code returns [`ServiceError`]; the edge of each process turns it into a status with details.
//! The router reads a worker's status back into the same type, so a cause survives the hop.

use std::{collections::HashMap, error::Error, time::Duration};

use tonic::{Code, Status, metadata::MetadataValue};
use tonic_types::{ErrorDetails, StatusExt};

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
/// A worker that was lost may be back by then.
const SOON: Duration = Duration::from_secs(1);
/// Somebody else is there.
const AT_ONCE: Duration = Duration::ZERO;
/// What an interrupted answer has come to, in its `google.rpc.ErrorInfo.metadata`.
const PROMPT_TOKENS: &str = "prompt_tokens";
const COMPLETION_TOKENS: &str = "completion_tokens";
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
        matches!(self, Self::Draining(_) | Self::Lost(_) | Self::Stalled(_))
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
            Self::Overloaded { .. } => Code::ResourceExhausted,
            Self::Unavailable { .. }
            | Self::Draining(_)
            | Self::Lost(_)
            | Self::Stalled(_)
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
            ServiceError::Lost(_) | ServiceError::Stalled(_) => {
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

impl From<&Status> for ServiceError {
    /// Reads a peer's status. One that is not ours keeps its code and message.
    fn from(status: &Status) -> Self {
        let details = status.get_error_details();
        let retry_after = details.retry_info().and_then(|info| info.retry_delay).unwrap_or(SOON);
        let field = |key: &str| {
            details
                .error_info()
                .filter(|info| info.domain == DOMAIN)
                .and_then(|info| info.metadata.get(key).cloned())
        };
        let message = || status.message().to_owned();
        match status.code() {
            Code::InvalidArgument | Code::OutOfRange | Code::FailedPrecondition => {
                let violations: Vec<_> = details
                    .bad_request()
                    .map(|bad| bad.field_violations.as_slice())
                    .unwrap_or_default()
                    .iter()
                    .map(|v| Violation {
                        field: v.field.clone(),
                        description: v.description.clone(),
                    })
                    .collect();
                if violations.is_empty() {
                    Self::invalid("request", message())
                } else {
                    Self::Invalid(violations)
                }
            }
            Code::NotFound => Self::UnknownModel {
                model: field("model").unwrap_or_else(message),
                available: field("available")
                    .map(|names| {
                        names.split('\n').filter(|n| !n.is_empty()).map(Into::into).collect()
                    })
                    .unwrap_or_default(),
            },
            Code::ResourceExhausted => {
                Self::Overloaded { what: field("what").unwrap_or_else(message), retry_after }
            }
            Code::DeadlineExceeded => match details.error_info() {
                Some(info) if info.domain == DOMAIN && info.reason == TOO_LATE => {
                    Self::TooLate { what: field("what").unwrap_or_else(message) }
                }
                _ => Self::DeadlineExceeded { stage: field("stage").unwrap_or_else(message) },
            },
            Code::Cancelled => Self::Cancelled,
            Code::Unimplemented => Self::Unsupported(field("field").unwrap_or_else(message)),
            Code::Unavailable => {
                let info = details.error_info().filter(|info| info.domain == DOMAIN);
                let count = |key| field(key).and_then(|n| n.parse().ok()).unwrap_or_default();
                match info.map_or("", |info| info.reason.as_str()) {
                    DRAINING => Self::Draining(field("who").unwrap_or_else(message)),
                    LOST => Self::Lost(message()),
                    STALLED => Self::Stalled(message()),
                    INTERRUPTED => Self::Interrupted {
                        reason: field("reason").unwrap_or_else(message),
                        retry_after,
                        prompt_tokens: count(PROMPT_TOKENS),
                        completion_tokens: count(COMPLETION_TOKENS),
                    },
                    _ => Self::Unavailable { reason: message(), retry_after },
                }
            }
            _ => Self::Internal(field("cause").unwrap_or_else(message)),
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
            ServiceError::Cancelled,
            ServiceError::Unsupported("guided".into()),
            ServiceError::Internal("NaN logits".into()),
        ] {
            let status = Status::from(error.clone());
            assert_eq!(ServiceError::from(&status), error, "{status:?}");
        }
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

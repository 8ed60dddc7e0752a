//! Conversion of errors to and from `tonic::Status`.
//!
//! The service of each process converts a [`ServiceError`] to a status with details. The router
//! converts the status of a worker back to the same type, so a cause survives the hop.

use std::{collections::HashMap, time::Duration};

use tonic::{Code, Status, metadata::MetadataValue};
use tonic_types::{ErrorDetails, StatusExt};

use super::{
    DEFAULT_RETRY_DELAY, DRAINING, ENGINE_PANICKED, EXCEEDS_WORKER, INTERRUPTED, LOST,
    MAX_VIOLATIONS, MISMATCH, PERMISSION_DENIED, PREEMPTED, QUARANTINED, RATE_LIMITED,
    ROUTING_REFUSED, STALLED, ServiceError, TOO_LATE, UNAUTHENTICATED, Violation, code_name,
    quoted,
};

/// Retry delay for gRPC clients with a retry policy.
const PUSHBACK: &str = "grpc-retry-pushback-ms";
/// Retry delay if another worker can serve the request.
const IMMEDIATE: Duration = Duration::ZERO;
/// Token counts of an interrupted response, in `google.rpc.ErrorInfo.metadata`.
const PROMPT_TOKENS: &str = "prompt_tokens";
const COMPLETION_TOKENS: &str = "completion_tokens";
/// Number of tokens that a request needs and a worker cannot hold, in the metadata.
const NEEDED_TOKENS: &str = "needed_tokens";
/// The choices of a request in the step that panicked, separated by commas, in the metadata.
const SEQUENCES: &str = "sequences";
/// The `domain` of `google.rpc.ErrorInfo` in statuses of Stoker.
const DOMAIN: &str = "stoker";

/// Returns the fields of an error that the receiver needs to restore it.
fn metadata(error: &ServiceError) -> HashMap<String, String> {
    let entries: Vec<(&str, String)> = match error {
        ServiceError::UnknownModel { model, available } => {
            vec![("model", model.clone()), ("available", available.join("\n"))]
        }
        ServiceError::Overloaded { what, .. }
        | ServiceError::RateLimited { what, .. }
        | ServiceError::TooLate { what } => vec![("what", what.clone())],
        ServiceError::Draining(peer) => vec![("who", peer.clone())],
        ServiceError::Interrupted { reason, prompt_tokens, completion_tokens, .. } => vec![
            ("reason", reason.clone()),
            (PROMPT_TOKENS, prompt_tokens.to_string()),
            (COMPLETION_TOKENS, completion_tokens.to_string()),
        ],
        ServiceError::DeadlineExceeded { stage } => vec![("stage", stage.clone())],
        ServiceError::ExceedsWorker { what, needed_tokens } => {
            vec![("what", what.clone()), (NEEDED_TOKENS, needed_tokens.to_string())]
        }
        ServiceError::EnginePanicked { cause, sequences } => {
            let sequences: Vec<_> = sequences.iter().map(u32::to_string).collect();
            vec![("cause", cause.clone()), (SEQUENCES, sequences.join(","))]
        }
        ServiceError::Unsupported(field) => vec![("field", field.clone())],
        ServiceError::Internal(cause) => vec![("cause", cause.clone())],
        _ => Vec::new(),
    };
    entries.into_iter().map(|(k, v)| (k.to_owned(), v)).collect()
}

impl From<ServiceError> for Status {
    fn from(error: ServiceError) -> Self {
        let mut details = ErrorDetails::new();
        details.set_error_info(error.reason(), DOMAIN, metadata(&error));
        let mut pushback = None;
        match &error {
            ServiceError::Invalid(violations) => {
                for v in violations {
                    details.add_bad_request_violation(&v.field, &v.description);
                }
            }
            ServiceError::RateLimited { what, retry_after } => {
                details.add_quota_failure_violation("tenant", what);
                details.set_retry_info(Some(*retry_after));
                pushback = Some(*retry_after);
            }
            ServiceError::Overloaded { retry_after, .. }
            | ServiceError::Unavailable { retry_after, .. }
            | ServiceError::Interrupted { retry_after, .. } => {
                details.set_retry_info(Some(*retry_after));
                pushback = Some(*retry_after);
            }
            ServiceError::Draining(_) => {
                details.set_retry_info(Some(IMMEDIATE));
                pushback = Some(IMMEDIATE);
            }
            ServiceError::Lost(_) | ServiceError::Stalled(_) | ServiceError::Preempted(_) => {
                details.set_retry_info(Some(DEFAULT_RETRY_DELAY));
                pushback = Some(DEFAULT_RETRY_DELAY);
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

/// Returns whether a status was created by a router or worker of Stoker, and not by an
/// intermediary.
pub fn is_stoker_status(status: &Status) -> bool {
    status.get_details_error_info().is_some_and(|info| info.domain == DOMAIN)
}

/// The status of a peer with its decoded details.
struct Received<'a> {
    status: &'a Status,
    details: ErrorDetails,
}

impl Received<'_> {
    fn message(&self) -> String {
        quoted(self.status.message())
    }

    /// Returns the reason if the status is from Stoker, else an empty text.
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
        self.details.retry_info().and_then(|info| info.retry_delay).unwrap_or(DEFAULT_RETRY_DELAY)
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
    /// Converts the status of a peer. A status of an intermediary keeps its message, and its code
    /// unless that would blame the client. Texts are [`quoted`].
    fn from(status: &Status) -> Self {
        let peer = Received { status, details: status.get_error_details() };
        match (status.code(), peer.reason()) {
            (Code::FailedPrecondition, MISMATCH) => Self::Mismatch(peer.message()),
            // From an intermediary or a lower layer, so it is not an error of the client.
            (Code::InvalidArgument | Code::OutOfRange | Code::FailedPrecondition, "") => {
                let code = code_name(status.code());
                Self::Internal(format!("a peer returned {code}: {}", peer.message()))
            }
            (Code::InvalidArgument | Code::OutOfRange | Code::FailedPrecondition, _) => {
                match peer.violations() {
                    violations if violations.is_empty() => Self::invalid("request", peer.message()),
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
            (Code::ResourceExhausted, RATE_LIMITED) => {
                Self::RateLimited { what: peer.text("what"), retry_after: peer.retry_after() }
            }
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
            (Code::Unauthenticated, UNAUTHENTICATED) => Self::Unauthenticated(peer.message()),
            (Code::PermissionDenied, PERMISSION_DENIED) => Self::PermissionDenied(peer.message()),
            (Code::PermissionDenied, ROUTING_REFUSED) => Self::RoutingRefused(peer.message()),
            (Code::Internal, QUARANTINED) => Self::Quarantined(peer.message()),
            _ => Self::Internal(peer.text("cause")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::MAX_QUOTED, *};

    #[test]
    fn every_error_round_trips() {
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
            ServiceError::Stalled("worker-1 is stalled".into()),
            ServiceError::Interrupted {
                reason: "worker-1 is gone".into(),
                retry_after: after,
                prompt_tokens: 12,
                completion_tokens: 345,
            },
            ServiceError::DeadlineExceeded { stage: "while queued".into() },
            ServiceError::TooLate { what: "it takes 3 s and has 2 s".into() },
            ServiceError::Unauthenticated("the API key is unknown".into()),
            ServiceError::PermissionDenied("the tenant may not use m".into()),
            ServiceError::RateLimited { what: "60 a minute".into(), retry_after: after },
            ServiceError::ExceedsWorker { what: "17 of 16".into(), needed_tokens: 17 },
            ServiceError::Mismatch("another digest".into()),
            ServiceError::Preempted("worker-1 is busy".into()),
            ServiceError::EnginePanicked { cause: "index".into(), sequences: vec![] },
            ServiceError::EnginePanicked { cause: "index".into(), sequences: vec![0, 2] },
            ServiceError::Quarantined("two engines panicked".into()),
            ServiceError::RoutingRefused("from 10.0.0.1".into()),
            ServiceError::Cancelled,
            ServiceError::Unsupported("guided".into()),
            ServiceError::Internal("NaN logits".into()),
        ] {
            let status = Status::from(error.clone());
            assert_eq!(ServiceError::from(&status), error, "{status:?}");
        }
    }

    #[test]
    fn a_nested_quoted_error_does_not_grow() {
        let mut error = ServiceError::unavailable("x".repeat(10_000));
        for _ in 0..20 {
            let quote = ServiceError::from(&Status::from(error));
            error = ServiceError::unavailable(format!("worker-\u{e9}: {quote}"));
        }
        let length = error.to_string().len();
        assert!((MAX_QUOTED..MAX_QUOTED + 32).contains(&length), "{length}");
    }

    #[test]
    fn overload_sets_the_retry_delay_of_grpc_clients() {
        let status = Status::from(ServiceError::Overloaded {
            what: "full".into(),
            retry_after: Duration::from_millis(250),
        });
        assert_eq!(status.metadata().get(PUSHBACK).map(|v| v.as_bytes()), Some(&b"250"[..]));
    }
}

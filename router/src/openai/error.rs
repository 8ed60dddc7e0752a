//! Errors in OpenAI's shape.

use std::time::Duration;

use axum::{
    http::{HeaderValue, Method, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;
use serde_json::json;
use stoker_shared::{ServiceError, error::Violation, validate};
use tonic::Status;

/// Delay in milliseconds, which OpenAI's clients prefer to `retry-after`.
const RETRY_AFTER_MS: &str = "retry-after-ms";

/// An error, and the HTTP status that it has before a response has begun.
#[derive(Debug, Clone)]
pub(super) struct ApiError {
    status: StatusCode,
    error: ErrorBody,
    retry_after: Option<Duration>,
}

/// OpenAI's `Error`.
#[derive(Debug, Clone, Serialize)]
struct ErrorBody {
    message: String,
    r#type: &'static str,
    /// The field of the request.
    param: Option<String>,
    code: Option<&'static str>,
}

impl ApiError {
    /// An error about one field of the request.
    pub(super) fn invalid(param: &str, message: impl Into<String>) -> Self {
        Self::refused(StatusCode::BAD_REQUEST, Some(param), None, message.into())
    }

    /// A field of OpenAI's API that this version does not support.
    pub(super) fn unsupported(param: &str) -> Self {
        let message = format!("{param} is not supported by this version; leave it out");
        let code = Some("unsupported_parameter");
        Self::refused(StatusCode::BAD_REQUEST, Some(param), code, message)
    }

    /// A field that the API does not have.
    pub(super) fn unknown_field(param: &str) -> Self {
        let message = format!("Unrecognized request argument supplied: {param}");
        let code = Some("unknown_parameter");
        Self::refused(StatusCode::BAD_REQUEST, Some(param), code, message)
    }

    /// A body that is no JSON object.
    pub(super) fn malformed(message: impl Into<String>) -> Self {
        Self::refused(StatusCode::BAD_REQUEST, None, None, message.into())
    }

    /// A body of another type than JSON.
    pub(super) fn wrong_content_type(found: &str) -> Self {
        let message = format!("content-type is {found:?}; send application/json");
        Self::refused(StatusCode::UNSUPPORTED_MEDIA_TYPE, None, None, message)
    }

    /// A body that took too long to arrive.
    pub(super) fn too_slow(error: &ServiceError) -> Self {
        Self::refused(StatusCode::REQUEST_TIMEOUT, None, None, error.to_string())
    }

    /// Headers above the size limit.
    pub(super) fn too_many_headers(size: usize, limit: usize) -> Self {
        let message =
            format!("the headers have {size} bytes; at most {limit} are read (--max-header-size)");
        Self::refused(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, None, None, message)
    }

    /// A body above the size limit.
    pub(super) fn too_large(limit: usize) -> Self {
        let message = format!("the body is longer than {limit} bytes, the limit");
        Self::refused(StatusCode::PAYLOAD_TOO_LARGE, None, None, message)
    }

    pub(super) fn unknown_path(method: &Method, path: &str) -> Self {
        let message = format!(
            "Unknown request URL: {method} {path}. There are /v1/chat/completions, \
             /v1/completions, /v1/models, /tokenize, /detokenize, /health and /version"
        );
        Self::refused(StatusCode::NOT_FOUND, None, Some("unknown_url"), message)
    }

    pub(super) fn wrong_method(method: &Method, path: &str) -> Self {
        let message = format!("{path} has no method {method}");
        Self::refused(StatusCode::METHOD_NOT_ALLOWED, None, None, message)
    }

    fn refused(
        status: StatusCode,
        param: Option<&str>,
        code: Option<&'static str>,
        message: String,
    ) -> Self {
        let param = param.map(str::to_owned);
        let error = ErrorBody { message, r#type: "invalid_request_error", param, code };
        Self { status, error, retry_after: None }
    }

    /// Renames the field, if the request has it under another name: pairs of names, and those of the
    /// request.
    pub(super) fn renamed(mut self, names: &[(&str, &str)]) -> Self {
        for (name, given) in names {
            if self.error.param.as_deref() == Some(name) {
                self.error.param = Some((*given).to_owned());
                self.error.message = self.error.message.replace(name, given);
            }
        }
        self
    }

    /// Returns the text of an event, for a response that has begun.
    pub(super) fn event(&self) -> String {
        json!({ "error": self.error }).to_string()
    }
}

impl From<Status> for ApiError {
    fn from(status: Status) -> Self {
        ServiceError::from(&status).into()
    }
}

impl From<ServiceError> for ApiError {
    fn from(error: ServiceError) -> Self {
        use ServiceError as E;
        let message = error.to_string();
        let (status, kind, code) = match &error {
            E::Invalid(violations) => return invalid(violations),
            E::Unsupported(field) => return Self::unsupported(&param(field)),
            E::UnknownModel { .. } => {
                let code = Some("model_not_found");
                return Self::refused(StatusCode::NOT_FOUND, Some("model"), code, message);
            }
            E::ExceedsWorker { needed_tokens, .. } => {
                let code = (*needed_tokens > 0).then_some(CONTEXT_LENGTH);
                return Self::refused(StatusCode::BAD_REQUEST, None, code, message);
            }
            E::Unauthenticated(_) => {
                let code = Some("invalid_api_key");
                return Self::refused(StatusCode::UNAUTHORIZED, None, code, message);
            }
            E::PermissionDenied(_) => {
                let code = Some("permission_denied");
                return Self::refused(StatusCode::FORBIDDEN, None, code, message);
            }
            E::Overloaded { .. } | E::RateLimited { .. } => {
                (StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", Some("rate_limit_exceeded"))
            }
            E::Unavailable { .. }
            | E::Draining(_)
            | E::Lost(_)
            | E::Stalled(_)
            | E::Preempted(_)
            | E::Interrupted { .. } => {
                (StatusCode::SERVICE_UNAVAILABLE, "server_error", Some("service_unavailable"))
            }
            E::DeadlineExceeded { .. } | E::TooLate { .. } => {
                (StatusCode::GATEWAY_TIMEOUT, "server_error", Some("timeout"))
            }
            // The client is gone; the number is the customary one.
            E::Cancelled => {
                let closed = StatusCode::from_u16(499).unwrap_or(StatusCode::BAD_REQUEST);
                (closed, "invalid_request_error", Some("cancelled"))
            }
            E::Mismatch(_)
            | E::EnginePanicked { .. }
            | E::Quarantined(_)
            | E::RoutingRefused(_)
            | E::Internal(_) => (StatusCode::INTERNAL_SERVER_ERROR, "server_error", None),
        };
        let retry_after = match error {
            E::Overloaded { retry_after, .. }
            | E::RateLimited { retry_after, .. }
            | E::Unavailable { retry_after, .. }
            | E::Interrupted { retry_after, .. } => Some(retry_after),
            _ if status == StatusCode::SERVICE_UNAVAILABLE => Some(Duration::ZERO),
            _ => None,
        };
        let error = ErrorBody { message, r#type: kind, param: None, code };
        Self { status, error, retry_after }
    }
}

/// The code of a prompt that is too long, on which clients shorten it.
const CONTEXT_LENGTH: &str = "context_length_exceeded";

/// Converts invalid fields: the first one is named, and the message has all of them.
fn invalid(violations: &[Violation]) -> ApiError {
    let field = violations.first().map(|violation| param(&violation.field));
    let described: Vec<_> =
        violations.iter().map(|v| format!("{}: {}", param(&v.field), v.description)).collect();
    let too_long = violations.iter().any(|v| v.description.contains(validate::LEAVES_NO_ROOM));
    let code = too_long.then_some(CONTEXT_LENGTH);
    let message = described.join("; ");
    ApiError::refused(StatusCode::BAD_REQUEST, field.as_deref(), code, message)
}

/// Returns OpenAI's name of a field of the contract.
fn param(field: &str) -> String {
    let (first, rest) = field.split_once('.').unwrap_or((field, ""));
    match (first, rest) {
        ("chat", "") => "messages".into(),
        ("chat", "template_kwargs_json") => "chat_template_kwargs".into(),
        ("chat", rest) => rest.replace("_json", ""),
        _ if first.starts_with("token_ids") => "prompt".into(),
        ("sampling", "num_sequences") => "n".into(),
        ("stopping", rest) if rest.ends_with("token_id") => "stop_token_ids".into(),
        ("stopping", rest) if rest.starts_with("conditions") => "stop".into(),
        ("response", "top_candidates") => "top_logprobs".into(),
        ("sampling" | "stopping", rest) => rest.to_owned(),
        _ => field.to_owned(),
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let body = json!({ "error": self.error }).to_string();
        let mut response =
            (self.status, [(header::CONTENT_TYPE, "application/json")], body).into_response();
        if self.status == StatusCode::UNAUTHORIZED {
            let scheme = HeaderValue::from_static("Bearer");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, scheme);
        }
        if let Some(delay) = self.retry_after {
            let headers = response.headers_mut();
            // In whole seconds, and not earlier than that.
            let seconds = delay.as_millis().div_ceil(1000) as u64;
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
            headers.insert(RETRY_AFTER_MS, HeaderValue::from(delay.as_millis() as u64));
        }
        response
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn errors_have_the_status_and_the_field_that_clients_expect() {
        let second = Duration::from_millis(1500);
        let overloaded =
            ServiceError::Overloaded { what: "the queue is full".into(), retry_after: second };
        for (error, status, param, code) in [
            (ServiceError::invalid("sampling.top_p", "2"), 400, Some("top_p"), None),
            (ServiceError::invalid("sampling.num_sequences", "17"), 400, Some("n"), None),
            (ServiceError::invalid("stopping.conditions[3].text", ""), 400, Some("stop"), None),
            (ServiceError::invalid("chat.messages", ""), 400, Some("messages"), None),
            (
                ServiceError::invalid("chat.messages[1].tool_calls_json[0]", ""),
                400,
                Some("messages[1].tool_calls[0]"),
                None,
            ),
            (
                ServiceError::invalid("prompt", format!("9 {} 8", validate::LEAVES_NO_ROOM)),
                400,
                Some("prompt"),
                Some(CONTEXT_LENGTH),
            ),
            (
                ServiceError::UnknownModel { model: "a".into(), available: vec![] },
                404,
                Some("model"),
                Some("model_not_found"),
            ),
            (overloaded.clone(), 429, None, Some("rate_limit_exceeded")),
            (ServiceError::unavailable("no worker"), 503, None, Some("service_unavailable")),
            (ServiceError::TooLate { what: "9 s".into() }, 504, None, Some("timeout")),
            (ServiceError::Internal("a bug".into()), 500, None, None),
        ] {
            let api = ApiError::from(error.clone());
            assert_eq!(api.status.as_u16(), status, "{error}");
            assert_eq!((api.error.param.as_deref(), api.error.code), (param, code), "{error}");
        }
        let response = ApiError::from(overloaded).into_response();
        assert_eq!(response.headers()[header::RETRY_AFTER], "2");
        assert_eq!(response.headers()[RETRY_AFTER_MS], "1500");
    }
}

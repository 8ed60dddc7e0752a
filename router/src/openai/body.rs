//! The body of a request: JSON of bounded length.

use axum::{
    body::{Body, Bytes},
    http::header,
};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use stoker_shared::{
    ServiceError,
    error::root_cause,
    serve::{MAX_RESPONSE_BYTES, SizeLimit},
};
use tonic::Status;

use super::{HttpRequest, error::ApiError, fields::Fields, headers::Context};

/// Memory that parsing takes, as a multiple of the body: a message of a few bytes becomes a
/// structure of strings.
const PARSED: u64 = 16;

/// Reads a request. `take` takes the fields that it knows; any other is refused.
pub(super) async fn parse<T>(
    request: HttpRequest,
    take: impl FnOnce(&mut Fields<'_>) -> Result<T, ApiError>,
) -> Result<(Context, T), ApiError> {
    let (parts, body) = request.into_parts();
    let context = Context::of(parts);
    let body = read(&context, body).await?;
    let mut fields = Fields::parse(&body)?;
    let parsed = take(&mut fields)?;
    fields.finish()?;
    Ok((context, parsed))
}

/// Reads a body, and charges what it takes until it is parsed.
async fn read(context: &Context, body: Body) -> Result<Bytes, ApiError> {
    let headers = context.headers();
    let kind = headers.get(header::CONTENT_TYPE).map(|value| value.to_str().unwrap_or_default());
    // Anything else could come from a form of a web page, without the browser's check of origins.
    let found = kind.unwrap_or_default();
    let media_type = found.split(';').next().unwrap_or_default().trim();
    if !media_type.eq_ignore_ascii_case("application/json") {
        return Err(ApiError::wrong_content_type(found));
    }
    // Every request of a listener has a limit.
    let limit = context.extension().map_or(MAX_RESPONSE_BYTES, |limit: &SizeLimit| limit.body);
    let length = headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok());
    if length.and_then(|length| length.parse::<u64>().ok()) > Some(limit as u64) {
        return Err(ApiError::too_large(limit));
    }
    let body = match Limited::new(body, limit).collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) if error.is::<LengthLimitError>() => {
            return Err(ApiError::too_large(limit));
        }
        Err(error) => return Err(failed(error.as_ref())),
    };
    if let Some(charge) = context.charge() {
        charge.set(PARSED * body.len() as u64)?;
    }
    Ok(body)
}

/// Returns the error of a body that was not received: one of the listener's limits, or a client
/// that is gone.
fn failed(error: &(dyn std::error::Error + 'static)) -> ApiError {
    let mut cause = Some(error);
    let mut all = std::iter::successors(cause, |error| error.source());
    // A chunk without its length, for instance: tonic makes a status of it.
    if all.any(|error| error.is::<hyper::Error>()) {
        return ApiError::malformed(format!("the body was not received: {}", root_cause(error)));
    }
    while let Some(error) = cause {
        if let Some(status) = error.downcast_ref::<Status>() {
            return match ServiceError::from(status) {
                error @ ServiceError::DeadlineExceeded { .. } => ApiError::too_slow(&error),
                error => error.into(),
            };
        }
        cause = error.source();
    }
    ApiError::malformed(format!("the body was not received: {}", root_cause(error)))
}

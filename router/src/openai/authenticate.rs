//! Authenticates requests by their API keys.

use axum::{
    extract::State,
    middleware::Next,
    response::{IntoResponse, Response},
};

use super::{HttpRequest, error::ApiError};
use crate::{authenticate::identify, tenant::ApiKeys};

/// Paths without a key: probes and tools have none.
const OPEN: [&str; 2] = ["/health", "/version"];

/// Admits a request with a valid key.
pub(super) async fn authenticate(
    State(keys): State<ApiKeys>,
    mut request: HttpRequest,
    next: Next,
) -> Response {
    if OPEN.contains(&request.uri().path()) {
        return next.run(request).await;
    }
    match identify(&keys, &mut request).await {
        Ok(()) => next.run(request).await,
        Err(error) => ApiError::from(error).into_response(),
    }
}

//! Which web pages may call the API from a browser.

use std::time::Duration;

use axum::http::{HeaderName, HeaderValue, Method};
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer};

/// How long browsers remember what is allowed.
const MAX_AGE: Duration = Duration::from_secs(3600);
/// Headers of responses that scripts may read.
const EXPOSED: [&str; 3] = ["x-request-id", "retry-after", "retry-after-ms"];

/// Origins of web pages.
#[derive(Debug, Clone)]
pub(crate) struct AllowedOrigins(AllowOrigin);

impl AllowedOrigins {
    /// Allows these origins; `*` stands for all.
    pub(crate) fn new(origins: &[HeaderValue]) -> Self {
        if origins.iter().any(|origin| origin == "*") {
            return Self(AllowOrigin::any());
        }
        Self(AllowOrigin::list(origins.iter().cloned()))
    }

    pub(super) fn layer(&self) -> CorsLayer {
        // Not with credentials: there are no cookies.
        CorsLayer::new()
            .allow_origin(self.0.clone())
            .allow_methods([Method::GET, Method::POST])
            .allow_headers(AllowHeaders::mirror_request())
            .expose_headers(EXPOSED.map(HeaderName::from_static))
            .max_age(MAX_AGE)
    }
}

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

/// Parses an origin, for `value_parser`.
pub(crate) fn origin(text: &str) -> Result<HeaderValue, String> {
    let is_origin = text.split_once("://").is_some_and(|(scheme, host)| {
        !scheme.is_empty() && !host.is_empty() && !host.contains('/')
    });
    match HeaderValue::from_str(text) {
        // No page has the origin "none".
        Ok(value) if matches!(text, "*" | "none") || is_origin => Ok(value),
        _ => Err("give * for all, none, or an origin such as https://app.example.com".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_have_a_scheme_and_no_path() {
        for good in ["*", "none", "https://app.example.com", "http://localhost:3000"] {
            assert!(origin(good).is_ok(), "{good}");
        }
        for bad in ["", "app.example.com", "https://", "https://a/b", "https://a\n"] {
            assert!(origin(bad).is_err(), "{bad:?}");
        }
    }
}

//! Origins of web pages (`--http-allowed-origins`).

use axum::http::HeaderValue;

/// Parses an origin, for `value_parser`.
pub(super) fn origin(text: &str) -> Result<HeaderValue, String> {
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

//! Negotiation of the format of metrics by the `Accept` header (RFC 9110, 12.5.1).

use axum::http::{HeaderMap, header::ACCEPT};

/// The supported formats.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    /// Prometheus text format 0.0.4, which every client supports.
    Text,
    /// OpenMetrics 1.0.0, for clients that request it.
    OpenMetrics,
}

impl Format {
    /// Returns the format for a request with these headers: OpenMetrics if a media range names it,
    /// with at least the quality of text. A wildcard is not enough, since clients that do not
    /// support OpenMetrics send one too. A client that accepts neither gets text instead of an
    /// error, as from the client libraries of Prometheus.
    pub(super) fn negotiate(headers: &HeaderMap) -> Self {
        let headers = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
        let ranges: Vec<_> =
            headers.flat_map(|header| split(header, ',')).filter_map(range).collect();
        let (named, open_metrics) = quality(&ranges, Self::OpenMetrics);
        let (_, text) = quality(&ranges, Self::Text);
        if named && open_metrics > 0.0 && open_metrics >= text {
            Self::OpenMetrics
        } else {
            Self::Text
        }
    }

    /// Returns the value of `Content-Type`.
    pub(super) fn content_type(self) -> &'static str {
        match self {
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }

    fn kind(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Self::Text => ("text", "plain", "0.0.4"),
            Self::OpenMetrics => ("application", "openmetrics-text", "1.0.0"),
        }
    }
}

/// A media range.
#[derive(Debug)]
struct Range<'a> {
    kind: &'a str,
    subtype: &'a str,
    version: Option<&'a str>,
    quality: f32,
}

impl Range<'_> {
    /// Returns how specifically this range matches `format`, from 1 for `*/*`, or `None` if it does
    /// not. Parameters other than the version, such as the character set and `escaping`, are
    /// ignored.
    fn specificity(&self, format: Format) -> Option<u8> {
        let (kind, subtype, version) = format.kind();
        if self.kind == "*" && self.subtype == "*" {
            return Some(1);
        }
        if !self.kind.eq_ignore_ascii_case(kind) {
            return None;
        }
        if self.subtype == "*" {
            return Some(2);
        }
        let matches = self.subtype.eq_ignore_ascii_case(subtype);
        match self.version {
            _ if !matches => None,
            None => Some(3),
            Some(requested) => (requested == version).then_some(4),
        }
    }
}

/// Returns the quality of `format` by the most specific matching range, and whether that range
/// names the format. Without any range, every format has quality 1.
fn quality(ranges: &[Range<'_>], format: Format) -> (bool, f32) {
    let matching =
        ranges.iter().filter_map(|range| Some((range.specificity(format)?, range.quality)));
    let best = matching.reduce(|best, next| {
        // Of two equally specific ranges, the one with the higher quality: `version=1.0.0` may
        // occur once per escaping scheme.
        if next.0 > best.0 || (next.0 == best.0 && next.1 > best.1) { next } else { best }
    });
    match best {
        Some((specificity, quality)) => (specificity >= 3, quality),
        None => (false, if ranges.is_empty() { 1.0 } else { 0.0 }),
    }
}

/// Parses a media range. Returns `None` if it is malformed.
fn range(text: &str) -> Option<Range<'_>> {
    let mut fields = split(text, ';');
    let (kind, subtype) = fields.next()?.trim().split_once('/')?;
    let mut range =
        Range { kind: kind.trim(), subtype: subtype.trim(), version: None, quality: 1.0 };
    for field in fields {
        let Some((name, value)) = field.split_once('=') else { continue };
        let value = value.trim().trim_matches('"');
        match name.trim() {
            name if name.eq_ignore_ascii_case("q") => {
                range.quality = value.parse().ok().filter(|q| (0.0..=1.0).contains(q))?;
            }
            name if name.eq_ignore_ascii_case("version") => range.version = Some(value),
            _ => {}
        }
    }
    Some(range)
}

/// Splits at `separator`, except within quotes.
fn split(text: &str, separator: char) -> impl Iterator<Item = &str> {
    let (mut quoted, mut escaped) = (false, false);
    text.split(move |c| {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = quoted,
            '"' => quoted = !quoted,
            _ => return !quoted && c == separator,
        }
        false
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    fn negotiated(accept: &[&str]) -> Format {
        let mut headers = HeaderMap::new();
        for value in accept {
            headers.append(ACCEPT, value.parse().unwrap());
        }
        Format::negotiate(&headers)
    }

    #[test]
    fn open_metrics_is_served_to_clients_that_name_it() {
        const PROMETHEUS_3: &str = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,\
             application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,\
             text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
        for accept in [
            PROMETHEUS_3,
            "application/openmetrics-text",
            "application/openmetrics-text; version=1.0.0; charset=utf-8",
            "Application/OpenMetrics-Text; Version=\"1.0.0\"",
            "application/openmetrics-text;q=0.5, text/plain;q=0.5",
            "text/plain;q=0.4, application/openmetrics-text;q=0.5",
            "application/openmetrics-text;q=0.5, text/plain;q=0",
            "application/openmetrics-text, */*",
            "application/openmetrics-text;x=\"a,b;q=0\"",
        ] {
            assert_eq!(negotiated(&[accept]), Format::OpenMetrics, "{accept}");
        }
        assert_eq!(
            negotiated(&["text/plain;q=0.5", "application/openmetrics-text"]),
            Format::OpenMetrics
        );
    }

    #[test]
    fn other_clients_get_text() {
        assert_eq!(negotiated(&[]), Format::Text, "no header");
        for accept in [
            "",
            "*/*",
            "text/*",
            "application/*",
            "text/plain",
            "text/plain;version=0.0.4",
            "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8",
            // Prometheus 2.20, Telegraf and the Go client library.
            "application/openmetrics-text; version=0.0.1,text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
            "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited;q=0.7,\
             text/plain;version=0.0.4;q=0.3",
            "text/plain, application/openmetrics-text;q=0.9",
            "*/*, application/openmetrics-text;q=0.9",
            "application/openmetrics-text;q=0",
            "application/openmetrics-text;q=2",
            "application/openmetrics-text;q=NaN",
            "application/openmetrics-text;version=2.0.0",
            "text/plain;x=\", application/openmetrics-text\"",
            "application/json",
            "nonsense, ;;q=, /",
        ] {
            assert_eq!(negotiated(&[accept]), Format::Text, "{accept}");
        }
    }
}

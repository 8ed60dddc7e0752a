//! Converts OpenMetrics, which prometheus-client writes, to Prometheus text format 0.0.4, which
//! every client supports.
//!
//! The samples are the same. In the text format, counters and infos are described by the full name
//! of their samples, and there is no type `info`, no unit, no exemplar and no end marker.

/// Converts a whole exposition, line by line.
pub(crate) fn from_open_metrics(exposition: &str) -> String {
    let mut text = String::with_capacity(exposition.len());
    // The name of a family depends on its type, which follows its help text.
    let mut help: Option<(&str, &str)> = None;
    for line in exposition.lines() {
        match line.split_once(' ').filter(|(mark, _)| *mark == "#") {
            Some((_, comment)) => match comment.split_once(' ') {
                Some(("HELP", rest)) => help = rest.split_once(' '),
                Some(("TYPE", rest)) => {
                    let (family, kind) = rest.split_once(' ').unwrap_or((rest, "unknown"));
                    let (suffix, kind) = suffix_and_type(kind);
                    if let Some((_, help_text)) = help.take().filter(|(name, _)| *name == family) {
                        push_line(
                            &mut text,
                            &["# HELP ", family, suffix, " ", &without_escaped_quotes(help_text)],
                        );
                    }
                    push_line(&mut text, &["# TYPE ", family, suffix, " ", kind]);
                }
                // UNIT and EOF.
                _ => {}
            },
            None => push_line(&mut text, &[without_exemplar(line)]),
        }
    }
    text
}

fn push_line(text: &mut String, pieces: &[&str]) {
    text.extend(pieces.iter().copied());
    text.push('\n');
}

/// Returns the suffix of the name of a family of this type, and its type in the text format.
fn suffix_and_type(kind: &str) -> (&'static str, &str) {
    match kind {
        "counter" => ("_total", kind),
        "info" => ("_info", "gauge"),
        "gauge" | "histogram" | "summary" => ("", kind),
        "stateset" => ("", "gauge"),
        // "unknown" and "gaugehistogram".
        _ => ("", "untyped"),
    }
}

/// Removes the escaping of quotes: help text has only the escapes `\\` and `
/// ` in the text format.
fn without_escaped_quotes(help: &str) -> String {
    let (mut text, mut escaped) = (String::with_capacity(help.len()), false);
    for c in help.chars() {
        if c == '"' && escaped {
            text.pop();
        }
        escaped = c == '\\' && !escaped;
        text.push(c);
    }
    text
}

/// Returns a sample without its exemplar, ` # {...} value time`. Quoted label values may contain
/// the same characters.
fn without_exemplar(sample: &str) -> &str {
    let (mut quoted, mut escaped) = (false, false);
    for (at, c) in sample.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = quoted,
            '"' => quoted = !quoted,
            '#' if !quoted => return sample[..at].trim_end(),
            _ => {}
        }
    }
    sample
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_line_is_converted() {
        let open_metrics = "\
# HELP stoker_requests Requests, \\\"quoted\\\" \\\\ and\\nbroken.
# TYPE stoker_requests counter
stoker_requests_total{model=\"a # {b} \\\"c\\\" \",code=\"OK\"} 3 # {trace=\"x\"} 1.0 2.5
stoker_requests_total 17
# HELP stoker_build Version.
# TYPE stoker_build info
stoker_build_info{version=\"1.0\"} 1
# HELP stoker_waiting Waiting.
# TYPE stoker_waiting gauge
stoker_waiting 4
# HELP stoker_wait_seconds Wait.
# TYPE stoker_wait_seconds histogram
# UNIT stoker_wait_seconds seconds
stoker_wait_seconds_sum 1.5
stoker_wait_seconds_count 2
stoker_wait_seconds_bucket{le=\"+Inf\"} 2 # {} 0.5
# TYPE stoker_odd unknown
stoker_odd NaN
# EOF
";
        let text = "\
# HELP stoker_requests_total Requests, \"quoted\" \\\\ and\\nbroken.
# TYPE stoker_requests_total counter
stoker_requests_total{model=\"a # {b} \\\"c\\\" \",code=\"OK\"} 3
stoker_requests_total 17
# HELP stoker_build_info Version.
# TYPE stoker_build_info gauge
stoker_build_info{version=\"1.0\"} 1
# HELP stoker_waiting Waiting.
# TYPE stoker_waiting gauge
stoker_waiting 4
# HELP stoker_wait_seconds Wait.
# TYPE stoker_wait_seconds histogram
stoker_wait_seconds_sum 1.5
stoker_wait_seconds_count 2
stoker_wait_seconds_bucket{le=\"+Inf\"} 2
# TYPE stoker_odd untyped
stoker_odd NaN
";
        assert_eq!(from_open_metrics(open_metrics), text);
        assert_eq!(from_open_metrics("# EOF\n"), "");
    }
}

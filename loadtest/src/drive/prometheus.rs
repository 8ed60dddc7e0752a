//! Reads the text format of Prometheus, as far as series of numbers need it.

/// A sample of a series.
#[derive(Debug, Clone, PartialEq)]
pub struct Metric<'a> {
    /// Name and labels as they are written: `up{job="a"}`.
    pub series: &'a str,
    /// Its value.
    pub value: f64,
    /// Whether the family is a counter, whose rate is of interest.
    pub is_counter: bool,
}

/// Returns the samples of gauges and counters. Histograms and summaries have too many series to follow
/// each of them: of these, the sum and the count are counters, and the rest is left out.
pub fn parse(text: &str) -> impl Iterator<Item = Metric<'_>> {
    let mut family = ("", "");
    text.lines().filter_map(move |line| {
        let line = line.trim();
        if let Some(comment) = line.strip_prefix('#') {
            let mut words = comment.split_whitespace();
            if words.next() == Some("TYPE") {
                family = (words.next()?, words.next()?);
            }
            return None;
        }
        let end = end_of_series(line)?;
        let (series, rest) = line.split_at(end);
        // What follows the value is a timestamp or an exemplar.
        let value = rest.split_whitespace().next()?.parse().ok()?;
        let name = series.split('{').next()?;
        let suffix = name.strip_prefix(family.0);
        let is_counter = match (suffix, family.1) {
            (Some("_bucket"), "histogram") => return None,
            (Some(""), "summary") => return None,
            (Some("_sum" | "_count"), "histogram" | "summary") => true,
            (Some(_), kind) => kind == "counter",
            (None, _) => false,
        };
        Some(Metric { series, value, is_counter })
    })
}

/// Returns the length of the name with its labels, whose values may have spaces and braces.
fn end_of_series(line: &str) -> Option<usize> {
    let (mut quoted, mut escaped, mut braces) = (false, false, false);
    for (at, byte) in line.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b'{' if !quoted => braces = true,
            b'}' if !quoted => return Some(at + 1),
            b' ' | b'\t' if !braces => return Some(at),
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gauges_and_counters_are_read_and_buckets_left_out() {
        let text = "\
# HELP up Whether it is up
# TYPE up gauge
up 1
up{job=\"a b}\\\" c\",x=\"1\"} 0.5 1700000000
# TYPE requests counter
requests_total{code=\"200\"} 7 # {trace_id=\"abc\"} 1
# TYPE latency histogram
latency_bucket{le=\"1\"} 4
latency_sum 3.5
latency_count 4
# TYPE quantiles summary
quantiles{quantile=\"0.5\"} 1
quantiles_count 9
untyped 1e3
broken{a=\"
nothing
text x
# EOF
";
        let found: Vec<_> = parse(text).map(|m| (m.series, m.value, m.is_counter)).collect();
        let expected = [
            ("up", 1.0, false),
            ("up{job=\"a b}\\\" c\",x=\"1\"}", 0.5, false),
            ("requests_total{code=\"200\"}", 7.0, true),
            ("latency_sum", 3.5, true),
            ("latency_count", 4.0, true),
            ("quantiles_count", 9.0, true),
            ("untyped", 1_000.0, false),
        ];
        assert_eq!(found, expected);
    }
}

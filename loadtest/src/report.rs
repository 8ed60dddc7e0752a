//! The readable table of results.

use std::fmt::Write;

use crate::{
    objectives::ObjectiveCounts,
    summary::{Config, Percentiles, Summary},
};

/// Maximum number of workers that are listed by name.
const MAX_WORKERS: usize = 8;
/// Width of the first column, in characters.
const NAME_WIDTH: usize = 20;
/// Width of the other columns, in characters.
const COLUMN_WIDTH: usize = 10;

/// Returns the table, which ends with a line break.
pub fn table(summary: &Summary) -> String {
    let mut out = String::new();
    // Writing to a string does not fail.
    let _ = write(summary, &mut out);
    out
}

fn write(summary: &Summary, out: &mut String) -> std::fmt::Result {
    let Summary { requests, tokens, per_second, latency_seconds, .. } = summary;
    writeln!(out, "{}\n", headline(summary))?;

    row(out, "", &["count", "per second"])?;
    let count = |out: &mut String, name, count, rate: Option<f64>| {
        row(out, name, &[&thousands(count), &rate.map(decimal).unwrap_or_default()])
    };
    count(out, "responses complete", requests.complete, Some(per_second.requests))?;
    count(out, "requests rejected", requests.refused, None)?;
    count(out, "responses lost", requests.lost, None)?;
    if requests.cut_off > 0 {
        count(out, "cut off by a signal", requests.cut_off, None)?;
    }
    count(out, "prompt tokens", tokens.prompt, Some(per_second.prompt_tokens))?;
    if tokens.cached_prompt > 0 {
        count(out, "  cached", tokens.cached_prompt, None)?;
    }
    count(out, "output tokens", tokens.completion, Some(per_second.completion_tokens))?;
    for (name, value) in [
        ("preemptions", summary.preemptions),
        ("resumes", summary.resumes),
        ("draft tokens", summary.drafted_tokens),
        ("  accepted", summary.accepted_tokens),
    ] {
        if value > 0 {
            count(out, name, value, None)?;
        }
    }

    goodput(out, summary)?;
    if requests.complete > 0 {
        writeln!(out)?;
        row(out, "latency, ms", &["mean", "p50", "p90", "p95", "p99", "p99.9", "max"])?;
        for (name, values) in [
            ("time to first token", &latency_seconds.time_to_first_token),
            ("  to second token", &latency_seconds.time_to_second_token),
            ("inter-token", &latency_seconds.inter_token),
            ("longest pause", &latency_seconds.longest_pause),
            ("  of resumed", &latency_seconds.longest_pause_resumed),
            ("time per token", &latency_seconds.time_per_output_token),
            ("end to end", &latency_seconds.end_to_end),
            ("send lag", &latency_seconds.send_lag),
        ] {
            latency(out, name, values.as_ref())?;
        }
        writeln!(out)?;
        stages(out, summary)?;
    }
    workers(out, summary)?;
    errors(out, summary)?;
    verification(out, summary)
}

fn goodput(out: &mut String, summary: &Summary) -> std::fmt::Result {
    let (Some(goodput), Some(slo)) = (&summary.goodput, &summary.config.slo) else { return Ok(()) };
    let ObjectiveCounts { met, missed_ttft, missed_itl, missed_e2e } = goodput.counts;
    writeln!(out)?;
    row(out, "objectives", &["responses", "per second", "share"])?;
    let share = format!("{:.1} %", 100.0 * goodput.share);
    row(out, "met", &[&thousands(met), &decimal(goodput.requests_per_second), &share])?;
    for (name, missed) in [("ttft", missed_ttft), ("itl", missed_itl), ("e2e", missed_e2e)] {
        if slo.split(',').any(|objective| objective.starts_with(name)) {
            row(out, &format!("  missed {name}"), &[&thousands(missed)])?;
        }
    }
    Ok(())
}

fn headline(summary: &Summary) -> String {
    let Config { endpoint, connections, concurrency, rate, seed, .. } = &summary.config;
    let model = if summary.model.is_empty() { "No model" } else { &summary.model };
    let streams = plural(*concurrency as u64, "stream");
    let load = match rate {
        Some(rate) => {
            let process = summary.config.arrivals.as_deref().unwrap_or_default();
            format!("{rate} requests per second ({process}) in at most {streams}")
        }
        None if summary.config.trace.is_some() => format!("at most {streams}"),
        None => format!("{streams} at once"),
    };
    let prompts = match (&summary.config.prompts, &summary.config.synthetic) {
        (Some(path), _) => format!("prompts of {path}"),
        (None, Some(shape)) => format!("synthetic {shape}"),
        (None, None) => summary.config.trace.as_ref().map_or_else(String::new, |path| {
            let of = |factor: Option<f64>| factor.unwrap_or(1.0);
            let (speed, length) = (of(summary.config.trace_speed), of(summary.config.trace_length));
            format!("trace {path} at {speed} times its speed and {length} of its lengths")
        }),
    };
    let interrupted = if summary.interrupted { ", ended early by a signal" } else { "" };
    format!(
        "{model} at {endpoint}: {load} over {}, {prompts}, seed {seed}; {} s{interrupted}",
        plural(*connections as u64, "connection"),
        decimal(summary.seconds)
    )
}

fn row(out: &mut String, name: &str, cells: &[&str]) -> std::fmt::Result {
    let mut line = format!("{name:<NAME_WIDTH$}");
    for cell in cells {
        write!(line, " {cell:>COLUMN_WIDTH$}")?;
    }
    writeln!(out, "{}", line.trim_end())
}

fn latency(out: &mut String, name: &str, values: Option<&Percentiles>) -> std::fmt::Result {
    let Some(v) = values else { return Ok(()) };
    // One precision per row, so that decimal points are aligned.
    let digits = if v.max < 0.1 { 2 } else { usize::from(v.max < 10.0) };
    let cells = [v.mean, v.p50, v.p90, v.p95, v.p99, v.p99_9, v.max].map(|s| millis(s, digits));
    row(out, name, &cells.each_ref().map(String::as_str))
}

fn stages(out: &mut String, summary: &Summary) -> std::fmt::Result {
    let stages = &summary.stages_mean_seconds;
    let all = [
        ("admission", stages.admission),
        ("route", stages.route),
        ("tokenize", stages.tokenize),
        ("queue", stages.queue),
        ("prefill", stages.prefill),
        ("decode", stages.decode),
        ("stream", stages.stream),
        ("resume", stages.resume),
        ("elsewhere", stages.elsewhere),
    ];
    let total: f64 = all.iter().map(|(_, seconds)| seconds).sum();
    row(out, "mean time by stage", &["ms", "share"])?;
    for (name, seconds) in all {
        if seconds > 0.0 {
            let share = format!("{:.1} %", 100.0 * seconds / total);
            row(out, name, &[&millis(seconds, 2), &share])?;
        }
    }
    Ok(())
}

fn workers(out: &mut String, summary: &Summary) -> std::fmt::Result {
    let workers = &summary.workers;
    if workers.is_empty() {
        return Ok(());
    }
    writeln!(out)?;
    row(out, "workers", &["responses"])?;
    if workers.len() <= MAX_WORKERS {
        return workers.iter().try_for_each(|(name, n)| row(out, name, &[&thousands(*n)]));
    }
    let min = workers.values().min().copied().unwrap_or_default();
    let max = workers.values().max().copied().unwrap_or_default();
    let name = format!("each of {}", workers.len());
    row(out, &name, &[&format!("{} to {}", thousands(min), thousands(max))])
}

fn errors(out: &mut String, summary: &Summary) -> std::fmt::Result {
    if summary.errors.is_empty() {
        return Ok(());
    }
    writeln!(out)?;
    row(out, "failures", &["count"])?;
    for error in &summary.errors {
        row(out, error.code, &[&thousands(error.count)])?;
        writeln!(out, "  request {}: {}", error.request, error.example)?;
    }
    Ok(())
}

fn verification(out: &mut String, summary: &Summary) -> std::fmt::Result {
    let Some(verdict) = &summary.verify else { return Ok(()) };
    writeln!(out)?;
    row(out, "verification", &["responses"])?;
    row(out, "as expected", &[&thousands(verdict.matched)])?;
    row(out, "different", &[&thousands(verdict.mismatched)])?;
    row(out, "missing", &[&thousands(verdict.missing)])?;
    for m in &verdict.mismatches {
        writeln!(out, "  request {} (seed {}, worker {}):", m.index, m.seed, m.worker)?;
        for (label, excerpt) in [("expected", &m.expected), ("got     ", &m.actual)] {
            writeln!(
                out,
                "    {label} {}, {:?}",
                plural(excerpt.tokens.into(), "token"),
                excerpt.text
            )?;
        }
    }
    let described = verdict.mismatches.len() as u64;
    if verdict.mismatched > described {
        writeln!(out, "  and {} more", thousands(verdict.mismatched - described))?;
    }
    Ok(())
}

/// Formats `1234567` as `1,234,567`.
pub(crate) fn thousands(number: u64) -> String {
    group(&number.to_string())
}

fn millis(seconds: f64, digits: usize) -> String {
    group_decimal(&format!("{:.digits$}", seconds * 1e3))
}

/// Formats a number with at least three significant digits.
fn decimal(number: f64) -> String {
    let digits = if number >= 100.0 { 0 } else { usize::from(number < 10.0) + 1 };
    group_decimal(&format!("{number:.digits$}"))
}

fn group_decimal(text: &str) -> String {
    match text.split_once('.') {
        Some((whole, rest)) => format!("{}.{rest}", group(whole)),
        None => group(text),
    }
}

fn group(digits: &str) -> String {
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

fn plural(count: u64, what: &str) -> String {
    format!("{} {what}{}", thousands(count), if count == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped_and_rounded() {
        assert_eq!([0, 999, 1_000, 1_234_567].map(thousands), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!([0.5, 12.34, 123.4, 1234.5].map(decimal), ["0.50", "12.3", "123", "1,234"]);
        assert_eq!(millis(1.234_56, 1), "1,234.6");
        assert_eq!(millis(0.001_234, 2), "1.23");
        assert_eq!([plural(1, "token"), plural(2_000, "token")], ["1 token", "2,000 tokens"]);
    }
}

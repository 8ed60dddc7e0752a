//! The readable table of results.

use std::fmt::Write;

use crate::{
    measure::objectives::ObjectiveCounts,
    report::{
        config::Config,
        format::{decimal, duration, millis, percent, plural, short, thousands},
        latency::Percentiles,
        summary::Summary,
    },
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
    let Summary { requests, tokens, .. } = summary;
    writeln!(out, "{}\n", headline(summary))?;

    row(out, "", &["count", "per second"])?;
    let count = |out: &mut String, name, count, rate: Option<f64>| {
        row(out, name, &[&thousands(count), &rate.map(decimal).unwrap_or_default()])
    };
    count(out, "responses complete", requests.complete, Some(summary.requests_per_second))?;
    count(out, "requests rejected", requests.refused, None)?;
    count(out, "responses lost", requests.lost, None)?;
    if requests.cancelled > 0 {
        count(out, "cancelled", requests.cancelled, None)?;
    }
    if requests.cut_off > 0 {
        count(out, "cut off at the end", requests.cut_off, None)?;
    }
    count(out, "prompt tokens", tokens.prompt, Some(summary.prompt_tokens_per_second))?;
    if tokens.cached_prompt > 0 {
        count(out, "  cached", tokens.cached_prompt, None)?;
    }
    count(out, "output tokens", tokens.completion, Some(summary.output_tokens_per_second))?;
    if let Some(rate) = summary.output_tokens_per_second_per_user {
        row(out, "  per user, median", &["", &decimal(rate.p50)])?;
    }
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
            ("time to first token", &summary.ttft_seconds),
            ("  to second token", &summary.second_token_seconds),
            ("inter-token", &summary.itl_seconds),
            ("longest pause", &summary.longest_pause_seconds),
            ("  of resumed", &summary.longest_pause_resumed_seconds),
            ("time per token", &summary.tpot_seconds),
            ("end to end", &summary.e2e_seconds),
            ("send lag", &summary.send_lag_seconds),
        ] {
            latency(out, name, values.as_ref())?;
        }
        stages(out, summary)?;
    }
    workers(out, summary)?;
    sweep(out, summary)?;
    faults(out, summary)?;
    errors(out, summary)?;
    verification(out, summary)?;
    driver(out, summary)
}

fn goodput(out: &mut String, summary: &Summary) -> std::fmt::Result {
    let (Some(goodput), Some(slo)) = (&summary.goodput, &summary.config.slo) else { return Ok(()) };
    let ObjectiveCounts { met, missed_ttft, missed_itl, missed_e2e } = goodput.counts;
    writeln!(out)?;
    row(out, "objectives", &["responses", "per second", "share"])?;
    let (rate, share) = (decimal(goodput.requests_per_second), percent(goodput.share));
    row(out, "met", &[&thousands(met), &rate, &share])?;
    for (name, missed) in [("ttft", missed_ttft), ("itl", missed_itl), ("e2e", missed_e2e)] {
        if slo.split(',').any(|objective| objective.starts_with(name)) {
            row(out, &format!("  missed {name}"), &[&thousands(missed)])?;
        }
    }
    Ok(())
}

pub(super) fn headline(summary: &Summary) -> String {
    let Config { target, endpoint, connections, concurrency, rate, turns, seed, .. } =
        &summary.config;
    let model = if summary.model.is_empty() { "No complete response" } else { &summary.model };
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
    let connections = match target.as_str() {
        "stoker" => format!(" over {}", plural(*connections as u64, "connection")),
        other => format!(" ({other})"),
    };
    let turns =
        if *turns > 1 { format!(" in conversations of {turns} turns") } else { String::new() };
    format!(
        "{model} at {endpoint}: {load}{connections}, {prompts}{turns}, seed {seed}; {} s{interrupted}",
        decimal(summary.duration_seconds)
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
    // Other servers than Stoker report none.
    if all.iter().all(|(name, seconds)| *name == "elsewhere" || *seconds == 0.0) {
        return Ok(());
    }
    writeln!(out)?;
    row(out, "mean time by stage", &["ms", "share"])?;
    for (name, seconds) in all {
        if seconds > 0.0 {
            row(out, name, &[&millis(seconds, 2), &percent(seconds / total)])?;
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

fn sweep(out: &mut String, summary: &Summary) -> std::fmt::Result {
    let Some(sweep) = &summary.sweep else { return Ok(()) };
    writeln!(out)?;
    row(out, "sweep", &["met", "+/-", "goodput", "tokens/s", "ttft p99", "itl p99", ""])?;
    for point in &sweep.points {
        let ms = |seconds: Option<f64>| seconds.map(|s| millis(s, 1)).unwrap_or_default();
        row(
            out,
            &format!("{} requests/s", short(point.rate)),
            &[
                &percent(point.share),
                &percent(point.share_margin),
                &decimal(point.goodput),
                &decimal(point.output_tokens_per_second),
                &ms(point.ttft_p99_seconds),
                &ms(point.itl_p99_seconds),
                point.verdict.name(),
            ],
        )?;
    }
    writeln!(out, "{}", sweep.conclusion())
}

fn faults(out: &mut String, summary: &Summary) -> std::fmt::Result {
    if summary.faults.is_empty() {
        return Ok(());
    }
    writeln!(out, "\nfaults")?;
    for fault in &summary.faults {
        let result = match (fault.ran, fault.succeeded, fault.exit_code) {
            (false, ..) => "not injected: the run was over before".into(),
            (true, true, None) => "still running at the end".into(),
            (true, true, _) => "done".into(),
            (true, false, Some(code)) => format!("failed with exit code {code}"),
            (true, false, None) => "failed".into(),
        };
        writeln!(out, "  after {}: {} ({result})", duration(fault.at_seconds), fault.command)?;
    }
    Ok(())
}

fn driver(out: &mut String, summary: &Summary) -> std::fmt::Result {
    let driver = &summary.driver;
    for (label, text) in [("SPOILED", &driver.spoiled), ("note", &driver.note)] {
        if let Some(text) = text {
            writeln!(out, "\n{label}: {text}")?;
        }
    }
    Ok(())
}

fn errors(out: &mut String, summary: &Summary) -> std::fmt::Result {
    if summary.errors.is_empty() {
        return Ok(());
    }
    writeln!(out)?;
    row(out, "failures", &["count"])?;
    for error in &summary.errors {
        row(out, &error.code, &[&thousands(error.count)])?;
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

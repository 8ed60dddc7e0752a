//! The page: one HTML file that needs nothing else, with the numbers of the JSON file, which it contains.

use std::io;

use minijinja::{Environment, context, value::Serde};
use serde::Serialize;

use crate::report::{
    format::{decimal, duration, percent, thousands},
    json,
    latency::Percentiles,
    panels,
    summary::Summary,
    table,
};

/// The template. Its name ends in `.html`, so that values are escaped.
const TEMPLATE: (&str, &str) = ("page.html", include_str!("page.html"));

/// A number, and where it is in the JSON file.
#[derive(Debug, Serialize)]
struct Figure {
    /// What it is.
    name: String,
    /// Path in the JSON file: `ttft_seconds.p50`.
    key: String,
    /// The number itself.
    value: f64,
    /// The number as people read it.
    text: String,
    /// Whether it is a failure.
    bad: bool,
}

impl Figure {
    fn new(name: &str, key: &str, value: f64, text: String) -> Self {
        Self { name: name.into(), key: key.into(), value, text, bad: false }
    }
}

/// A row of the table of latencies.
#[derive(Debug, Serialize)]
struct LatencyRow {
    name: &'static str,
    figures: Vec<Figure>,
}

/// Returns the page.
pub fn html(summary: &Summary) -> io::Result<String> {
    let mut environment = Environment::new();
    environment.add_template(TEMPLATE.0, TEMPLATE.1).map_err(io::Error::other)?;
    let template = environment.get_template(TEMPLATE.0).map_err(io::Error::other)?;
    let config = serde_json::to_value(&summary.config)?;
    let config = config.as_object().into_iter().flatten().filter(|(_, value)| !value.is_null());
    let config: Vec<_> = config.map(|(name, value)| (name, value.to_string())).collect();
    let page = template.render(context! {
        title => table::headline(summary),
        figures => Serde(&figures(summary)),
        latencies => Serde(&latencies(summary)),
        errors => Serde(&summary.errors),
        faults => Serde(&summary.faults),
        verify => Serde(&summary.verify),
        spoiled => Serde(&summary.driver.spoiled),
        note => Serde(&summary.driver.note),
        panels => Serde(&panels::all(summary)),
        metrics => Serde(&panels::metrics(summary)),
        config => Serde(&config),
        // No text of it can end the element, or begin another.
        json => json::text(summary)?.replace('<', "\\u003c").replace('&', "\\u0026"),
    });
    page.map_err(io::Error::other)
}

/// The numbers at the top.
fn figures(summary: &Summary) -> Vec<Figure> {
    let requests = &summary.requests;
    let failed = requests.refused + requests.lost;
    let count = |name, key, value: u64| Figure::new(name, key, value as f64, thousands(value));
    let rate = |name, key, value: f64| Figure::new(name, key, value, decimal(value));
    let mut all = vec![
        count("responses complete", "requests.complete", requests.complete),
        count("requests refused", "requests.refused", requests.refused),
        count("responses lost", "requests.lost", requests.lost),
        rate("requests per second", "requests_per_second", summary.requests_per_second),
        rate(
            "output tokens per second",
            "output_tokens_per_second",
            summary.output_tokens_per_second,
        ),
    ];
    for figure in &mut all[1..=2] {
        figure.bad = failed > 0 && figure.value > 0.0;
    }
    if let Some(rates) = summary.output_tokens_per_second_per_user {
        let key = "output_tokens_per_second_per_user.p50";
        all.push(rate("tokens per second of a user", key, rates.p50));
    }
    if let Some(goodput) = &summary.goodput {
        let (per_second, share) = (goodput.requests_per_second, goodput.share);
        all.push(rate("goodput, requests per second", "goodput.requests_per_second", per_second));
        all.push(Figure::new("met the objectives", "goodput.share", share, percent(share)));
    }
    if summary.resumes > 0 {
        all.push(count("resumes", "resumes", summary.resumes));
    }
    let seconds = summary.duration_seconds;
    all.push(Figure::new("duration", "duration_seconds", seconds, duration(seconds)));
    all
}

fn latencies(summary: &Summary) -> Vec<LatencyRow> {
    let rows = [
        ("time to first token", "ttft_seconds", &summary.ttft_seconds),
        (
            "time to second token, after the first",
            "second_token_seconds",
            &summary.second_token_seconds,
        ),
        ("inter-token", "itl_seconds", &summary.itl_seconds),
        ("time per output token", "tpot_seconds", &summary.tpot_seconds),
        ("longest pause", "longest_pause_seconds", &summary.longest_pause_seconds),
        (
            "longest pause of resumed",
            "longest_pause_resumed_seconds",
            &summary.longest_pause_resumed_seconds,
        ),
        ("end to end", "e2e_seconds", &summary.e2e_seconds),
        ("send lag", "send_lag_seconds", &summary.send_lag_seconds),
    ];
    let row = |(name, key, values): (&'static str, &str, &Option<Percentiles>)| {
        let v = (*values)?;
        let columns = [
            ("mean", v.mean),
            ("p50", v.p50),
            ("p90", v.p90),
            ("p95", v.p95),
            ("p99", v.p99),
            ("p99_9", v.p99_9),
            ("max", v.max),
        ];
        let figure = |(column, seconds): (&str, f64)| {
            Figure::new(column, &format!("{key}.{column}"), seconds, duration(seconds))
        };
        Some(LatencyRow { name, figures: columns.map(figure).into() })
    };
    rows.into_iter().filter_map(row).collect()
}

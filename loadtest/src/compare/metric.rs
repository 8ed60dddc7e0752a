//! What is compared.

use crate::report::{
    format::{decimal, duration, percent},
    summary::Summary,
    timeline::Slice,
};

/// A metric of a run.
pub(super) struct Metric {
    /// Its name.
    pub name: &'static str,
    /// Whether more of it is better.
    pub higher_is_better: bool,
    /// Its value in a run. `None` if the run has none.
    pub value: fn(&Summary) -> Option<f64>,
    /// How it is computed from parts of a run.
    pub parts: Parts,
    /// Formats a value.
    pub format: fn(f64) -> String,
}

/// Values of which a metric is computed, in the order of time.
pub(super) enum Parts {
    /// The mean of a value of each slice of time.
    MeanOfSlices(fn(&Slice) -> f64),
    /// A quantile of a value of each sampled request.
    QuantileOfRequests(fn(&Summary) -> Vec<f64>, f64),
    /// The mean of a value of each sampled request.
    MeanOfRequests(fn(&Summary) -> Vec<f64>),
}

fn complete(summary: &Summary, of: impl Fn(usize) -> Option<f64>) -> Vec<f64> {
    let outcomes = summary.samples.outcome.iter().enumerate();
    outcomes.filter(|(_, outcome)| *outcome == "complete").filter_map(|(i, _)| of(i)).collect()
}

fn ttft(summary: &Summary) -> Vec<f64> {
    complete(summary, |i| summary.samples.ttft_seconds.get(i).copied().flatten())
}

fn per_token(summary: &Summary) -> Vec<f64> {
    complete(summary, |i| summary.samples.itl_seconds.get(i).copied().flatten())
}

fn end_to_end(summary: &Summary) -> Vec<f64> {
    complete(summary, |i| summary.samples.e2e_seconds.get(i).copied())
}

fn served(summary: &Summary) -> Vec<f64> {
    let asked = summary.samples.outcome.iter().filter(|outcome| *outcome != "cancelled");
    asked.map(|outcome| f64::from(u8::from(outcome == "complete"))).collect()
}

/// All metrics, in the order of the table.
pub(super) const METRICS: [Metric; 10] = [
    Metric {
        name: "output tokens per second",
        higher_is_better: true,
        value: |run| Some(run.output_tokens_per_second).filter(|rate| *rate > 0.0),
        parts: Parts::MeanOfSlices(|slice| slice.output_tokens as f64),
        format: decimal,
    },
    Metric {
        name: "requests per second",
        higher_is_better: true,
        value: |run| Some(run.requests_per_second).filter(|rate| *rate > 0.0),
        parts: Parts::MeanOfSlices(|slice| slice.complete as f64),
        format: decimal,
    },
    Metric {
        name: "goodput",
        higher_is_better: true,
        value: |run| run.goodput.as_ref().map(|goodput| goodput.requests_per_second),
        parts: Parts::MeanOfSlices(|slice| slice.met as f64),
        format: decimal,
    },
    Metric {
        name: "requests served",
        higher_is_better: true,
        value: |run| {
            let asked = run.requests.sent - run.requests.cancelled - run.requests.cut_off;
            (asked > 0).then(|| run.requests.complete as f64 / asked as f64)
        },
        parts: Parts::MeanOfRequests(served),
        format: percent,
    },
    Metric {
        name: "time to first token, p50",
        higher_is_better: false,
        value: |run| run.ttft_seconds.map(|ttft| ttft.p50),
        parts: Parts::QuantileOfRequests(ttft, 0.5),
        format: duration,
    },
    Metric {
        name: "time to first token, p99",
        higher_is_better: false,
        value: |run| run.ttft_seconds.map(|ttft| ttft.p99),
        parts: Parts::QuantileOfRequests(ttft, 0.99),
        format: duration,
    },
    Metric {
        name: "time per output token, p50",
        higher_is_better: false,
        value: |run| run.tpot_seconds.map(|time| time.p50),
        parts: Parts::QuantileOfRequests(per_token, 0.5),
        format: duration,
    },
    Metric {
        name: "time per output token, p99",
        higher_is_better: false,
        value: |run| run.tpot_seconds.map(|time| time.p99),
        parts: Parts::QuantileOfRequests(per_token, 0.99),
        format: duration,
    },
    Metric {
        name: "end to end, p50",
        higher_is_better: false,
        value: |run| run.e2e_seconds.map(|time| time.p50),
        parts: Parts::QuantileOfRequests(end_to_end, 0.5),
        format: duration,
    },
    Metric {
        name: "end to end, p99",
        higher_is_better: false,
        value: |run| run.e2e_seconds.map(|time| time.p99),
        parts: Parts::QuantileOfRequests(end_to_end, 0.99),
        format: duration,
    },
];

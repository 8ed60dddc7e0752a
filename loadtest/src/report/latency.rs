//! Distributions of latencies, in seconds.

use serde::{Deserialize, Serialize};

use crate::measure::{latency::Latency, results::Results};

/// A distribution. All values except the count are in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "described by their names")]
pub struct Percentiles {
    pub count: u64,
    pub mean: f64,
    pub stdev: f64,
    pub min: f64,
    pub p50: f64,
    pub p90: f64,
    pub p95: f64,
    pub p99: f64,
    pub p99_9: f64,
    pub max: f64,
}

impl Percentiles {
    /// Returns the distribution of a histogram; `None` without values.
    pub fn of(latency: &Latency) -> Option<Self> {
        let histogram = latency.histogram();
        if histogram.is_empty() {
            return None;
        }
        let seconds = |micros: f64| micros / 1e6;
        let at = |quantile| seconds(histogram.value_at_quantile(quantile) as f64);
        Some(Self {
            count: histogram.len(),
            mean: seconds(histogram.mean()),
            stdev: seconds(histogram.stdev()),
            min: seconds(histogram.min() as f64),
            p50: at(0.5),
            p90: at(0.9),
            p95: at(0.95),
            p99: at(0.99),
            p99_9: at(0.999),
            max: seconds(histogram.max() as f64),
        })
    }
}

/// Tokens per second that the users of complete responses see after their first token.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct UserRate {
    /// Mean over responses.
    pub mean: f64,
    /// What half of them exceed.
    pub p50: f64,
    /// What 90 % of them exceed.
    pub p10: f64,
    /// What 99 % of them exceed.
    pub p1: f64,
}

impl UserRate {
    /// Returns the rates of complete responses; `None` if none has two tokens.
    pub fn of(results: &Results) -> Option<Self> {
        let times = &results.latency.per_token;
        let rate = |quantile| Some(times.quantile(quantile)?.max(1e-6).recip());
        Some(Self {
            mean: results.user_rates / times.count().max(1) as f64,
            p50: rate(0.5)?,
            p10: rate(0.9)?,
            p1: rate(0.99)?,
        })
    }
}

/// Cumulative distributions: below `seconds[i]` is the share `share[i]` of all values.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Cdfs {
    /// Shares, from 0 to 1.
    pub share: Vec<f64>,
    /// Time to the first token.
    pub ttft_seconds: Vec<f64>,
    /// Time between consecutive events with tokens.
    pub itl_seconds: Vec<f64>,
    /// Time to the last event.
    pub e2e_seconds: Vec<f64>,
}

impl Cdfs {
    /// Returns the distributions, of which those without values are empty.
    pub fn of(results: &Results) -> Self {
        let hundredths = (0..100).map(|i| f64::from(i) / 100.0);
        let thousandths = (1..10).map(|i| 0.99 + f64::from(i) / 1_000.0);
        let share: Vec<f64> = hundredths.chain(thousandths).chain([0.9999, 1.0]).collect();
        let of = |latency: &Latency| share.iter().map_while(|q| latency.quantile(*q)).collect();
        let latency = &results.latency;
        Self {
            ttft_seconds: of(&latency.first_token),
            itl_seconds: of(&latency.inter_token),
            e2e_seconds: of(&latency.end_to_end),
            share,
        }
    }
}

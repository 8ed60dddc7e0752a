//! The result of a search for the highest rate that meets the objectives.

use serde::{Deserialize, Serialize};

use crate::report::format::{percent, short};

/// All rates that were tried, and what they say.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SweepReport {
    /// Share of requests that must meet the objectives, from 0 to 1.
    pub required_share: f64,
    /// The highest rate that meets them with confidence, in requests per second. Null if none does.
    pub highest_rate: Option<f64>,
    /// The lowest rate above it that was not seen to meet them. Null if all of the range does.
    pub next_rate: Option<f64>,
    /// The rates, from the lowest.
    pub points: Vec<SweepPoint>,
}

/// The runs at one rate.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SweepPoint {
    /// Requests per second that were scheduled.
    pub rate: f64,
    /// Number of runs.
    pub runs: u32,
    /// Whether the objectives are met.
    pub verdict: SweepVerdict,
    /// Mean share of requests that met them, over runs.
    pub share: f64,
    /// Half of the 95 % confidence interval of this mean.
    pub share_margin: f64,
    /// Whether runs were ended early, since too many requests had missed the objectives.
    pub ended_early: bool,
    /// Complete responses per second that met the objectives, mean over runs.
    pub goodput: f64,
    /// Complete responses per second, mean over runs.
    pub requests_per_second: f64,
    /// Generated tokens per second, mean over runs.
    pub output_tokens_per_second: f64,
    /// Generated tokens per second that half of the users exceed, median over runs.
    pub output_tokens_per_second_per_user: Option<f64>,
    /// Times to the first token, over all runs.
    pub ttft_p50_seconds: Option<f64>,
    /// 99th percentile of it.
    pub ttft_p99_seconds: Option<f64>,
    /// Times between tokens, over all runs.
    pub itl_p50_seconds: Option<f64>,
    /// 99th percentile of it.
    pub itl_p99_seconds: Option<f64>,
}

/// Whether a rate meets the objectives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SweepVerdict {
    /// The whole confidence interval is at least the required share.
    Meets,
    /// The whole interval is below it.
    Misses,
    /// Runs differ too much to say.
    Undecided,
}

impl SweepVerdict {
    /// Returns the verdict as a word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Meets => "meets",
            Self::Misses => "misses",
            Self::Undecided => "undecided",
        }
    }
}

impl SweepReport {
    /// Returns the result in one sentence.
    pub fn conclusion(&self) -> String {
        let share = percent(self.required_share);
        match (self.highest_rate, self.next_rate) {
            (Some(rate), Some(next)) => format!(
                "{} requests per second is the highest rate at which {share} of requests meet the \
                 objectives; {} is not seen to",
                short(rate),
                short(next)
            ),
            (Some(rate), None) => format!(
                "{} requests per second, the highest rate of the sweep, still meets the objectives for \
                 {share} of requests: sweep further up",
                short(rate)
            ),
            (None, _) => format!(
                "no rate of the sweep is seen to meet the objectives for {share} of requests: sweep \
                 further down"
            ),
        }
    }
}

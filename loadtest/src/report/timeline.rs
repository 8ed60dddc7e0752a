//! What happened when: slices of time, a sample of requests, injected faults, and the target's own
//! metrics. All times are seconds from the start of the pass.

use serde::{Deserialize, Serialize};

use crate::{
    drive::{faults::FaultResult, scrape},
    measure::{
        latency::Latency,
        samples::{Sample, Samples},
        slices,
    },
    targets::outcome::Resume,
};

/// Maximum number of series that are reported of a target.
const MAX_SERIES: usize = 200;

/// A slice of time.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Slice {
    /// Its begin.
    pub start_seconds: f64,
    /// Requests that were scheduled in it.
    pub scheduled: u64,
    /// Responses that were completed.
    pub complete: u64,
    /// Complete responses that met the objectives.
    pub met: u64,
    /// Requests that failed.
    pub failed: u64,
    /// Responses that another worker resumed.
    pub resumes: u64,
    /// Tokens that arrived, of complete and other responses.
    pub output_tokens: u64,
    /// Mean number of open calls.
    pub concurrency: f64,
    /// Median time to the first tokens that arrived.
    pub ttft_p50_seconds: Option<f64>,
    /// 99th percentile of it.
    pub ttft_p99_seconds: Option<f64>,
    /// Median time between tokens.
    pub itl_p50_seconds: Option<f64>,
    /// 99th percentile of it.
    pub itl_p99_seconds: Option<f64>,
}

/// Returns the slices, and their width in seconds.
pub fn slices(slices: &slices::Slices) -> (f64, Vec<Slice>) {
    let width = slices.width().as_secs_f64();
    let quantile = |latency: &Latency, q| latency.quantile(q);
    let slice = |(index, slice): (usize, &slices::Slice)| Slice {
        start_seconds: index as f64 * width,
        scheduled: slice.scheduled,
        complete: slice.complete,
        met: slice.met,
        failed: slice.failed,
        resumes: slice.resumes,
        output_tokens: slice.tokens,
        concurrency: rounded(slice.open.as_secs_f64() / width),
        ttft_p50_seconds: quantile(&slice.first_token, 0.5),
        ttft_p99_seconds: quantile(&slice.first_token, 0.99),
        itl_p50_seconds: quantile(&slice.inter_token, 0.5),
        itl_p99_seconds: quantile(&slice.inter_token, 0.99),
    };
    (width, slices.iter().enumerate().map(slice).collect())
}

/// A sample of requests, a column for each property: at most 2,000, each with the same probability.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct SampledRequests {
    /// Index of the request.
    pub index: Vec<u64>,
    /// Scheduled time.
    pub start_seconds: Vec<f64>,
    /// `complete`, `cancelled`, or the code of the failure.
    pub outcome: Vec<String>,
    /// The worker that accepted it; empty if none did.
    pub worker: Vec<String>,
    /// Number of received tokens.
    pub output_tokens: Vec<u32>,
    /// Time to the first token.
    pub ttft_seconds: Vec<Option<f64>>,
    /// Mean time between tokens.
    pub itl_seconds: Vec<Option<f64>>,
    /// Time to the last event.
    pub e2e_seconds: Vec<f64>,
    /// For each resume by another worker the times of the last event before it, and of the first after.
    pub resumed_seconds: Vec<Vec<[f64; 2]>>,
}

impl From<Samples> for SampledRequests {
    fn from(samples: Samples) -> Self {
        let mut all = Self::default();
        for Sample {
            index,
            at,
            outcome,
            worker,
            tokens,
            first_token,
            per_token,
            end_to_end,
            resumes,
            ..
        } in samples.sorted()
        {
            let seconds = |time: std::time::Duration| rounded(time.as_secs_f64());
            all.index.push(index);
            all.start_seconds.push(seconds(at));
            all.outcome.push(outcome);
            all.worker.push(worker);
            all.output_tokens.push(tokens);
            all.ttft_seconds.push(first_token.map(seconds));
            all.itl_seconds.push(per_token.map(seconds));
            all.e2e_seconds.push(seconds(end_to_end));
            let pause = |resume: Resume| [seconds(at + resume.last_token), seconds(at + resume.at)];
            all.resumed_seconds.push(resumes.into_iter().map(pause).collect());
        }
        all
    }
}

/// A fault that was injected, or was to be.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct InjectedFault {
    /// When.
    pub at_seconds: f64,
    /// The shell command.
    pub command: String,
    /// Whether it ran: false if the pass was over before.
    pub ran: bool,
    /// Exit code; null if the command was ended by a signal, or not before the end of the pass.
    pub exit_code: Option<i32>,
    /// Whether it succeeded, or was still running at the end.
    pub succeeded: bool,
}

impl From<FaultResult> for InjectedFault {
    fn from(FaultResult { fault, began, exit_code, succeeded }: FaultResult) -> Self {
        Self {
            at_seconds: fault.at.as_secs_f64(),
            command: fault.command,
            ran: began.is_some(),
            exit_code,
            succeeded,
        }
    }
}

/// The metrics of one target.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ScrapedMetrics {
    /// Where they were read.
    pub url: String,
    /// Number of reads that failed.
    pub failed: u64,
    /// Times of the others.
    pub at_seconds: Vec<f64>,
    /// The series that changed.
    pub series: Vec<MetricSeries>,
    /// Number of other series, which are left out: those that did not change, and those beyond 200.
    pub left_out: usize,
}

/// A series over time.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct MetricSeries {
    /// Name and labels.
    pub name: String,
    /// Whether it is a counter, whose rate is of interest.
    pub is_counter: bool,
    /// Values at `at_seconds`; null where it was missing.
    pub values: Vec<Option<f64>>,
}

impl From<scrape::Scraped> for ScrapedMetrics {
    fn from(scraped: scrape::Scraped) -> Self {
        let all = scraped.series.len();
        let changed = scraped.series.into_iter().filter(|(_, series)| {
            let mut known = series.values.iter().filter(|value| value.is_finite());
            let first = known.next();
            known.any(|value| Some(value) != first)
        });
        let series: Vec<_> = changed
            .take(MAX_SERIES)
            .map(|(name, series)| MetricSeries {
                name,
                is_counter: series.is_counter,
                values: series.values.into_iter().map(|v| v.is_finite().then_some(v)).collect(),
            })
            .collect();
        Self {
            url: scraped.url,
            failed: scraped.failed,
            at_seconds: scraped.at.iter().map(|at| rounded(at.as_secs_f64())).collect(),
            left_out: all - series.len(),
            series,
        }
    }
}

/// Rounds to microseconds.
fn rounded(seconds: f64) -> f64 {
    (seconds * 1e6).round() / 1e6
}

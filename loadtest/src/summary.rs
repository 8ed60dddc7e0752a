//! The results of a load test in base units: the JSON file, and the input of the table.
//! loadtest/README.md describes the fields.

use std::{collections::BTreeMap, time::Duration};

use serde::Serialize;

use crate::{
    objectives::ObjectiveCounts,
    results::{Latency, Results, Stages},
    run::PassResult,
    verify::Verdict,
};

/// Version of the format. Increased when a field changes its meaning or is removed.
const VERSION: u32 = 2;

/// All results.
#[derive(Debug, Serialize)]
pub struct Summary {
    /// Version of this format.
    pub version: u32,
    /// The configuration, with defaults filled in.
    pub config: Config,
    /// The model that served the requests.
    pub model: String,
    /// Time from the first request to the end of the last response.
    pub seconds: f64,
    /// Whether a signal ended the run.
    pub interrupted: bool,
    /// Number of requests by result.
    pub requests: Requests,
    /// Token counts.
    pub tokens: Tokens,
    /// Rates of complete responses.
    pub per_second: PerSecond,
    /// How many responses met the objectives, if there are any.
    pub goodput: Option<Goodput>,
    /// Latencies of complete responses.
    pub latency_seconds: Latencies,
    /// Mean time by stage that complete responses report.
    pub stages_mean_seconds: StagesMean,
    /// Finish reasons of complete responses.
    pub finish_reasons: FinishReasons,
    /// Number of preemptions.
    pub preemptions: u64,
    /// Number of resumes on another worker.
    pub resumes: u64,
    /// Number of draft tokens.
    pub drafted_tokens: u64,
    /// Number of accepted draft tokens.
    pub accepted_tokens: u64,
    /// Complete responses by worker.
    pub workers: BTreeMap<String, u64>,
    /// Failures by code.
    pub errors: Vec<Errors>,
    /// The comparison of responses, if there was one.
    pub verify: Option<Verdict>,
}

/// The configuration, with defaults filled in.
#[derive(Debug, Clone, Serialize)]
#[allow(missing_docs, reason = "named as the flags are")]
pub struct Config {
    pub endpoint: String,
    pub connections: usize,
    pub concurrency: usize,
    pub rate: Option<String>,
    pub arrivals: Option<String>,
    pub trace: Option<String>,
    pub trace_speed: Option<f64>,
    pub trace_length: Option<f64>,
    pub slo: Option<String>,
    pub requests: Option<u64>,
    pub warm_up: Option<u64>,
    pub duration_seconds: Option<f64>,
    pub deadline_seconds: Option<f64>,
    pub prompts: Option<String>,
    pub synthetic: Option<String>,
    pub max_tokens: Option<u32>,
    pub ignore_eos: bool,
    pub temperature: Option<f32>,
    pub seed: u64,
    pub verify: bool,
    pub expect: Option<String>,
}

/// Number of requests by result. `sent` is the sum of the others.
#[derive(Debug, Serialize)]
pub struct Requests {
    /// All sent requests.
    pub sent: u64,
    /// Requests with a complete response.
    pub complete: u64,
    /// Requests that failed before they were accepted.
    pub refused: u64,
    /// Requests that were accepted and failed later.
    pub lost: u64,
    /// Requests that a signal cut off.
    pub cut_off: u64,
}

/// Token counts.
#[derive(Debug, Serialize)]
pub struct Tokens {
    /// Prompt tokens of complete responses.
    pub prompt: u64,
    /// Prompt tokens that were in the prefix cache.
    pub cached_prompt: u64,
    /// Generated tokens of complete responses.
    pub completion: u64,
    /// Generated tokens of incomplete responses.
    pub lost: u64,
}

/// Rates over the whole run.
#[derive(Debug, Serialize)]
pub struct PerSecond {
    /// Complete responses.
    pub requests: f64,
    /// Prompt tokens of complete responses.
    pub prompt_tokens: f64,
    /// Generated tokens of complete responses.
    pub completion_tokens: f64,
}

/// How many responses met all objectives.
#[derive(Debug, Serialize)]
pub struct Goodput {
    /// Responses per second that met all of them.
    pub requests_per_second: f64,
    /// Their share of all requests that have ended, failures included, from 0 to 1.
    pub share: f64,
    /// Counts of complete responses.
    #[serde(flatten)]
    pub counts: ObjectiveCounts,
}

/// Latencies. `None` without any values.
#[derive(Debug, Serialize)]
pub struct Latencies {
    /// Time from the scheduled time to the first token.
    pub time_to_first_token: Option<Percentiles>,
    /// Time from the first event with tokens to the second.
    pub time_to_second_token: Option<Percentiles>,
    /// Time between consecutive events with tokens.
    pub inter_token: Option<Percentiles>,
    /// Longest time between consecutive events with tokens; one value per response.
    pub longest_pause: Option<Percentiles>,
    /// The same for responses that another worker resumed.
    pub longest_pause_resumed: Option<Percentiles>,
    /// Time from the first token to the end, divided by the number of tokens after the first; one
    /// value per response.
    pub time_per_output_token: Option<Percentiles>,
    /// Time from the scheduled time to the last event.
    pub end_to_end: Option<Percentiles>,
    /// Time from the scheduled time to when the request was sent; only with `--rate` or `--trace`.
    pub send_lag: Option<Percentiles>,
}

/// A distribution. All values except the count are in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
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

/// Mean time per response by stage, in seconds.
#[derive(Debug, Serialize)]
#[allow(missing_docs, reason = "named as in `Timings` of the API")]
pub struct StagesMean {
    pub admission: f64,
    pub route: f64,
    pub tokenize: f64,
    pub queue: f64,
    pub prefill: f64,
    pub decode: f64,
    pub stream: f64,
    pub resume: f64,
    /// Remaining time that the client measured: the network, the router's own work, and the client.
    pub elsewhere: f64,
}

/// Number of responses by finish reason.
#[derive(Debug, Serialize)]
#[allow(missing_docs, reason = "named as in the API")]
pub struct FinishReasons {
    pub stop: u64,
    pub length: u64,
}

/// Failures of one code.
#[derive(Debug, Serialize)]
pub struct Errors {
    /// Name of the gRPC code, for instance `UNAVAILABLE`.
    pub code: &'static str,
    /// Number of failures.
    pub count: u64,
    /// Message of the first failure.
    pub example: String,
    /// Index of the request that failed first.
    pub request: u64,
}

impl Summary {
    /// Creates a summary of a pass.
    pub fn new(config: Config, pass: PassResult, verify: Option<Verdict>) -> Self {
        let sent = pass.sent();
        let PassResult { results, duration, cut_off, interrupted } = pass;
        let open_loop = config.rate.is_some() || config.trace.is_some();
        let ended = results.count();
        let Results {
            complete,
            refused,
            lost,
            errors,
            tokens,
            latency,
            reported,
            workers,
            model,
            objectives,
            objective_counts: counts,
        } = results;
        let seconds = duration.as_secs_f64();
        let per_second = |count: u64| if seconds > 0.0 { count as f64 / seconds } else { 0.0 };
        Self {
            version: VERSION,
            config,
            model,
            seconds,
            interrupted,
            requests: Requests { sent, complete, refused, lost, cut_off },
            per_second: PerSecond {
                requests: per_second(complete),
                prompt_tokens: per_second(tokens.prompt),
                completion_tokens: per_second(tokens.completion),
            },
            tokens: Tokens {
                prompt: tokens.prompt,
                cached_prompt: tokens.cached_prompt,
                completion: tokens.completion,
                lost: tokens.lost,
            },
            goodput: objectives.map(|_| Goodput {
                requests_per_second: per_second(counts.met),
                share: counts.met as f64 / ended.max(1) as f64,
                counts,
            }),
            latency_seconds: Latencies {
                time_to_first_token: percentiles(&latency.first_token),
                time_to_second_token: percentiles(&latency.second_token),
                inter_token: percentiles(&latency.inter_token),
                longest_pause: percentiles(&latency.longest_pause),
                longest_pause_resumed: percentiles(&latency.longest_pause_resumed),
                time_per_output_token: percentiles(&latency.per_token),
                end_to_end: percentiles(&latency.end_to_end),
                send_lag: percentiles(&latency.send_lag).filter(|_| open_loop),
            },
            stages_mean_seconds: StagesMean::new(&reported.stages, complete),
            finish_reasons: FinishReasons { stop: reported.stopped, length: reported.length },
            preemptions: reported.preemptions,
            resumes: reported.resumes,
            drafted_tokens: reported.drafted_tokens,
            accepted_tokens: reported.accepted_tokens,
            workers,
            errors: errors
                .into_iter()
                .map(|(code, errors)| Errors {
                    code,
                    count: errors.count,
                    example: errors.example,
                    request: errors.index,
                })
                .collect(),
            verify,
        }
    }

    /// Returns whether all responses are complete and as expected.
    pub fn is_good(&self) -> bool {
        !self.interrupted
            && self.requests.complete == self.requests.sent
            && self.verify.as_ref().is_none_or(Verdict::is_good)
    }
}

impl StagesMean {
    fn new(stages: &Stages, responses: u64) -> Self {
        let mean = |sum: Duration| sum.as_secs_f64() / responses.max(1) as f64;
        Self {
            admission: mean(stages.admission),
            route: mean(stages.route),
            tokenize: mean(stages.tokenize),
            queue: mean(stages.queue),
            prefill: mean(stages.prefill),
            decode: mean(stages.decode),
            stream: mean(stages.stream),
            resume: mean(stages.resume),
            elsewhere: mean(stages.elsewhere),
        }
    }
}

fn percentiles(latency: &Latency) -> Option<Percentiles> {
    let histogram = latency.histogram();
    if histogram.is_empty() {
        return None;
    }
    let seconds = |micros: f64| micros / 1e6;
    let at = |quantile| seconds(histogram.value_at_quantile(quantile) as f64);
    Some(Percentiles {
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

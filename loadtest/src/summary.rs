//! What a load test came to, in base units: the JSON file, and what the table is made of. The fields are
//! described in loadtest/README.md.

use std::{collections::BTreeMap, time::Duration};

use serde::Serialize;

use crate::{
    results::{Latency, Results, Stages},
    run::Pass,
    verify::Verdict,
};

/// Raised when a field changes its meaning or goes away.
const VERSION: u32 = 1;

/// Everything.
#[derive(Debug, Serialize)]
pub struct Summary {
    /// Of this format.
    pub version: u32,
    /// What was asked for.
    pub config: Config,
    /// The model that answered.
    pub model: String,
    /// From the first request to the end of the last answer.
    pub seconds: f64,
    /// Whether a signal ended it.
    pub interrupted: bool,
    /// What became of requests.
    pub requests: Requests,
    /// What came.
    pub tokens: Tokens,
    /// Of complete answers.
    pub per_second: PerSecond,
    /// Of complete answers.
    pub latency_seconds: Latencies,
    /// Of complete answers: where they say that the time went.
    pub stages_mean_seconds: StagesMean,
    /// Of complete answers: what ended them.
    pub finish_reasons: FinishReasons,
    /// Times that a sequence was computed again for want of memory.
    pub preemptions: u64,
    /// Times that another worker took over.
    pub resumes: u64,
    /// Tokens that drafters proposed.
    pub drafted_tokens: u64,
    /// Of those, what held.
    pub accepted_tokens: u64,
    /// Complete answers by worker.
    pub workers: BTreeMap<String, u64>,
    /// Failures by code.
    pub errors: Vec<Errors>,
    /// The comparison, if there was one.
    pub verify: Option<Verdict>,
}

/// What was asked for, defaults filled in.
#[derive(Debug, Clone, Serialize)]
#[allow(missing_docs, reason = "named as the flags are")]
pub struct Config {
    pub endpoint: String,
    pub connections: usize,
    pub concurrency: usize,
    pub rate: Option<f64>,
    pub requests: Option<u64>,
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

/// What became of requests. `sent` is the sum of the others.
#[derive(Debug, Serialize)]
pub struct Requests {
    /// All of them.
    pub sent: u64,
    /// Answered to the end.
    pub complete: u64,
    /// Failed before they were accepted.
    pub refused: u64,
    /// Accepted, and not answered to the end.
    pub lost: u64,
    /// Running when a signal came.
    pub cut_off: u64,
}

/// Tokens.
#[derive(Debug, Serialize)]
pub struct Tokens {
    /// Of prompts, where the answer is complete.
    pub prompt: u64,
    /// Of those, what the prefix cache had.
    pub cached_prompt: u64,
    /// Of complete answers.
    pub completion: u64,
    /// Of others.
    pub lost: u64,
}

/// Rates over the whole time.
#[derive(Debug, Serialize)]
pub struct PerSecond {
    /// Complete answers.
    pub requests: f64,
    /// Tokens of their prompts.
    pub prompt_tokens: f64,
    /// Tokens of theirs.
    pub completion_tokens: f64,
}

/// Latencies; `None` where there is nothing to measure.
#[derive(Debug, Serialize)]
pub struct Latencies {
    /// From when the request was meant to begin to the first token.
    pub time_to_first_token: Option<Percentiles>,
    /// From one event with tokens to the next.
    pub inter_token: Option<Percentiles>,
    /// The longest time from one event with tokens to the next; one value an answer.
    pub longest_pause: Option<Percentiles>,
    /// The same, of answers that another worker took over.
    pub longest_pause_resumed: Option<Percentiles>,
    /// From the first token to the end, by tokens after the first; one value an answer.
    pub time_per_output_token: Option<Percentiles>,
    /// From when the request was meant to begin to the last event.
    pub end_to_end: Option<Percentiles>,
    /// From when the request was meant to begin to when it was sent; with `--rate` alone.
    pub send_lag: Option<Percentiles>,
}

/// A distribution, in seconds but for the count.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[allow(missing_docs, reason = "the names say it")]
pub struct Percentiles {
    pub count: u64,
    pub mean: f64,
    pub stdev: f64,
    pub min: f64,
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
    pub p99_9: f64,
    pub max: f64,
}

/// Seconds an answer, on average.
#[derive(Debug, Serialize)]
#[allow(missing_docs, reason = "named as in `Timings` of the contract")]
pub struct StagesMean {
    pub admission: f64,
    pub route: f64,
    pub tokenize: f64,
    pub queue: f64,
    pub prefill: f64,
    pub decode: f64,
    pub resume: f64,
    /// What the client saw beside these: the network, the router's own work, and the client.
    pub elsewhere: f64,
}

/// What ended answers.
#[derive(Debug, Serialize)]
#[allow(missing_docs, reason = "named as in the contract")]
pub struct FinishReasons {
    pub stop: u64,
    pub length: u64,
}

/// Failures of one code.
#[derive(Debug, Serialize)]
pub struct Errors {
    /// As gRPC spells it, for instance `UNAVAILABLE`.
    pub code: &'static str,
    /// How many.
    pub count: u64,
    /// What the first one said.
    pub example: String,
    /// The number of the request that it was.
    pub request: u64,
}

impl Summary {
    /// Sums up a pass.
    pub fn new(config: Config, pass: Pass, verify: Option<Verdict>) -> Self {
        let sent = pass.sent();
        let Pass { results, took, cut_off, interrupted } = pass;
        let open = config.rate.is_some();
        let Results { complete, refused, lost, errors, tokens, latency, told, workers, model } =
            results;
        let seconds = took.as_secs_f64();
        let a_second = |count: u64| if seconds > 0.0 { count as f64 / seconds } else { 0.0 };
        Self {
            version: VERSION,
            config,
            model,
            seconds,
            interrupted,
            requests: Requests { sent, complete, refused, lost, cut_off },
            per_second: PerSecond {
                requests: a_second(complete),
                prompt_tokens: a_second(tokens.prompt),
                completion_tokens: a_second(tokens.completion),
            },
            tokens: Tokens {
                prompt: tokens.prompt,
                cached_prompt: tokens.cached_prompt,
                completion: tokens.completion,
                lost: tokens.lost,
            },
            latency_seconds: Latencies {
                time_to_first_token: percentiles(&latency.first_token),
                inter_token: percentiles(&latency.between_tokens),
                longest_pause: percentiles(&latency.longest_pause),
                longest_pause_resumed: percentiles(&latency.longest_pause_resumed),
                time_per_output_token: percentiles(&latency.per_token),
                end_to_end: percentiles(&latency.whole),
                send_lag: percentiles(&latency.lag).filter(|_| open),
            },
            stages_mean_seconds: StagesMean::new(&told.stages, complete),
            finish_reasons: FinishReasons { stop: told.stopped, length: told.length },
            preemptions: told.preemptions,
            resumes: told.resumes,
            drafted_tokens: told.drafted_tokens,
            accepted_tokens: told.accepted_tokens,
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

    /// Whether every answer came, complete and as expected.
    pub fn is_good(&self) -> bool {
        !self.interrupted
            && self.requests.complete == self.requests.sent
            && self.verify.as_ref().is_none_or(Verdict::is_good)
    }
}

impl StagesMean {
    fn new(stages: &Stages, answers: u64) -> Self {
        let mean = |sum: Duration| sum.as_secs_f64() / answers.max(1) as f64;
        Self {
            admission: mean(stages.admission),
            route: mean(stages.route),
            tokenize: mean(stages.tokenize),
            queue: mean(stages.queue),
            prefill: mean(stages.prefill),
            decode: mean(stages.decode),
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
        p99: at(0.99),
        p99_9: at(0.999),
        max: seconds(histogram.max() as f64),
    })
}

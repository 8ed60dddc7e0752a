//! The results of a load test in base units: the JSON file, and the input of the table and the page.
//! loadtest/README.md describes the fields.

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{
    drive::{faults::FaultResult, pass::PassResult, scrape::Scraped},
    measure::{
        objectives::ObjectiveCounts,
        results::{Results, Stages},
    },
    report::{
        config::Config,
        driver::{self, DriverReport},
        latency::{Cdfs, Percentiles, UserRate},
        sweep::SweepReport,
        timeline::{self, InjectedFault, SampledRequests, ScrapedMetrics, Slice},
    },
    verify::Verdict,
};

/// Version of the format. Increased when a field changes its meaning or is removed.
pub const VERSION: u32 = 3;

/// All results.
#[derive(Debug, Serialize, Deserialize)]
pub struct Summary {
    /// Version of this format.
    pub version: u32,
    /// The configuration, with defaults filled in.
    pub config: Config,
    /// The model that served the requests.
    pub model: String,
    /// When the pass started: seconds since 1970.
    pub started_unix_seconds: f64,
    /// Time from the first request to the end of the last response.
    pub duration_seconds: f64,
    /// Whether a signal ended the run.
    pub interrupted: bool,
    /// Number of requests by result.
    pub requests: Requests,
    /// Failures by code.
    pub errors: Vec<Errors>,
    /// Complete responses per second.
    pub requests_per_second: f64,
    /// Prompt tokens of complete responses per second.
    pub prompt_tokens_per_second: f64,
    /// Generated tokens of complete responses per second.
    pub output_tokens_per_second: f64,
    /// Generated tokens per second that single users see.
    pub output_tokens_per_second_per_user: Option<UserRate>,
    /// Token counts.
    pub tokens: Tokens,
    /// How many responses met the objectives, if there are any.
    pub goodput: Option<Goodput>,
    /// Time from the scheduled time to the first token.
    pub ttft_seconds: Option<Percentiles>,
    /// Time from the first event with tokens to the second.
    pub second_token_seconds: Option<Percentiles>,
    /// Time between consecutive events with tokens.
    pub itl_seconds: Option<Percentiles>,
    /// Mean time between two tokens, one value per response: the longer of what the client saw and
    /// what the target took.
    pub tpot_seconds: Option<Percentiles>,
    /// Longest time between consecutive events with tokens; one value per response.
    pub longest_pause_seconds: Option<Percentiles>,
    /// The same for responses that another worker resumed.
    pub longest_pause_resumed_seconds: Option<Percentiles>,
    /// Time from the scheduled time to the last event.
    pub e2e_seconds: Option<Percentiles>,
    /// Time from the scheduled time to when the request was sent; only with `--rate` or `--trace`.
    pub send_lag_seconds: Option<Percentiles>,
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
    /// How the load test itself did.
    pub driver: DriverReport,
    /// The comparison of responses, if there was one.
    pub verify: Option<Verdict>,
    /// The search for the highest rate, if there was one. Everything else is then of the last run at
    /// that rate.
    pub sweep: Option<SweepReport>,
    /// Faults that were injected.
    pub faults: Vec<InjectedFault>,
    /// The target's own metrics.
    pub metrics: Vec<ScrapedMetrics>,
    /// Cumulative distributions.
    pub cdf: Cdfs,
    /// Width of a slice of time.
    pub slice_seconds: f64,
    /// Slices of time.
    pub slices: Vec<Slice>,
    /// A sample of requests.
    pub samples: SampledRequests,
}

/// Number of requests by result. `sent` is the sum of the others.
#[derive(Debug, Serialize, Deserialize)]
pub struct Requests {
    /// All sent requests.
    pub sent: u64,
    /// Requests with a complete response.
    pub complete: u64,
    /// Requests that failed before they were accepted.
    pub refused: u64,
    /// Requests that were accepted and failed later.
    pub lost: u64,
    /// Requests that the client cancelled, as it was to.
    pub cancelled: u64,
    /// Requests that the end of the run cut off: a signal, or a sweep that had seen enough.
    pub cut_off: u64,
}

/// Token counts.
#[derive(Debug, Serialize, Deserialize)]
pub struct Tokens {
    /// Prompt tokens of complete responses.
    pub prompt: u64,
    /// Prompt tokens that were in the prefix cache.
    pub cached_prompt: u64,
    /// Generated tokens of complete responses.
    pub completion: u64,
    /// Received tokens of cancelled requests.
    pub cancelled: u64,
    /// Received tokens of responses that failed.
    pub lost: u64,
}

/// How many responses met all objectives.
#[derive(Debug, Serialize, Deserialize)]
pub struct Goodput {
    /// Responses per second that met all of them.
    pub requests_per_second: f64,
    /// Their share of all requests that have ended and were not cancelled, failures included, from 0
    /// to 1.
    pub share: f64,
    /// Counts of complete responses.
    #[serde(flatten)]
    pub counts: ObjectiveCounts,
}

/// Mean time per response by stage, in seconds.
#[derive(Debug, Serialize, Deserialize)]
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
#[derive(Debug, Serialize, Deserialize)]
#[allow(missing_docs, reason = "named as in the API")]
pub struct FinishReasons {
    pub stop: u64,
    pub length: u64,
}

/// Failures of one code.
#[derive(Debug, Serialize, Deserialize)]
pub struct Errors {
    /// Name of the gRPC code, for instance `UNAVAILABLE`, or the HTTP status, for instance `HTTP 429`.
    pub code: String,
    /// Number of failures.
    pub count: u64,
    /// Message of the first failure.
    pub example: String,
    /// Index of the request that failed first.
    pub request: u64,
}

/// What was done beside the pass.
#[derive(Debug, Default)]
pub struct PassContext {
    /// The comparison of responses.
    pub verify: Option<Verdict>,
    /// Faults that were injected.
    pub faults: Vec<FaultResult>,
    /// Metrics that were read.
    pub metrics: Vec<Scraped>,
    /// How late the driver may be.
    pub max_lateness: Option<Duration>,
    /// When the pass started, since 1970.
    pub started: Duration,
}

impl Summary {
    /// Creates a summary of a pass.
    pub fn new(config: Config, pass: PassResult, beside: PassContext) -> Self {
        let sent = pass.sent();
        let PassResult { results, duration, cut_off, interrupted, driver, .. } = pass;
        let open_loop = config.rate.is_some() || config.trace.is_some();
        let ended = results.count() - results.cancelled;
        let user_rate = UserRate::of(&results);
        let cdf = Cdfs::of(&results);
        let Results {
            complete,
            refused,
            lost,
            cancelled,
            errors,
            tokens,
            latency,
            reported,
            workers,
            model,
            objectives,
            objective_counts: counts,
            slices,
            samples,
            ..
        } = results;
        let seconds = duration.as_secs_f64();
        let per_second = |count: u64| if seconds > 0.0 { count as f64 / seconds } else { 0.0 };
        let (slice_seconds, slices) = timeline::slices(&slices);
        let of_driver = driver::Pass {
            stats: &driver,
            seconds,
            sent,
            tokens: tokens.completion,
            ttft: latency.first_token.quantile(0.5),
            streams: config.concurrency,
        };
        Self {
            version: VERSION,
            driver: DriverReport::new(&of_driver, beside.max_lateness),
            config,
            model,
            started_unix_seconds: beside.started.as_secs_f64(),
            duration_seconds: seconds,
            interrupted,
            requests: Requests { sent, complete, refused, lost, cancelled, cut_off },
            requests_per_second: per_second(complete),
            prompt_tokens_per_second: per_second(tokens.prompt),
            output_tokens_per_second: per_second(tokens.completion),
            output_tokens_per_second_per_user: user_rate,
            tokens: Tokens {
                prompt: tokens.prompt,
                cached_prompt: tokens.cached_prompt,
                completion: tokens.completion,
                cancelled: tokens.cancelled,
                lost: tokens.lost,
            },
            goodput: objectives.map(|_| Goodput {
                requests_per_second: per_second(counts.met),
                share: counts.met as f64 / ended.max(1) as f64,
                counts,
            }),
            ttft_seconds: Percentiles::of(&latency.first_token),
            second_token_seconds: Percentiles::of(&latency.second_token),
            itl_seconds: Percentiles::of(&latency.inter_token),
            tpot_seconds: Percentiles::of(&latency.per_token),
            longest_pause_seconds: Percentiles::of(&latency.longest_pause),
            longest_pause_resumed_seconds: Percentiles::of(&latency.longest_pause_resumed),
            e2e_seconds: Percentiles::of(&latency.end_to_end),
            send_lag_seconds: Percentiles::of(&latency.send_lag).filter(|_| open_loop),
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
                    code: code.into_owned(),
                    count: errors.count,
                    example: errors.example,
                    request: errors.index,
                })
                .collect(),
            verify: beside.verify,
            sweep: None,
            faults: beside.faults.into_iter().map(InjectedFault::from).collect(),
            metrics: beside.metrics.into_iter().map(ScrapedMetrics::from).collect(),
            cdf,
            slice_seconds,
            slices,
            samples: samples.into(),
        }
    }

    /// Returns whether all responses are complete, except for cancelled ones, and as expected, every
    /// fault was injected, and the driver has not spoiled the results.
    ///
    /// A sweep is good if it has found a rate: that requests fail at higher ones is what it looks for.
    pub fn is_good(&self) -> bool {
        if let Some(sweep) = &self.sweep {
            let found = sweep.highest_rate.is_some();
            return found && !self.interrupted && self.driver.spoiled.is_none();
        }
        !self.interrupted
            && self.requests.complete + self.requests.cancelled == self.requests.sent
            && self.verify.as_ref().is_none_or(Verdict::is_good)
            && self.faults.iter().all(|fault| fault.succeeded)
            && self.driver.spoiled.is_none()
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

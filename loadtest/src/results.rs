//! Measurements in constant memory: counts, sums and histograms.

use std::{collections::BTreeMap, time::Duration};

use hdrhistogram::Histogram;
use stoker_proto::duration::from_wire;
use stoker_proto::v1::{FinishReason, Finished, Timings};
use stoker_shared::{client::CallError, error::code_name};

use crate::{
    call::{CallOutcome, ReceivedResponse},
    objectives::{ObjectiveCounts, Objectives},
};

/// Maximum of the histograms, in microseconds: one hour. Larger values are recorded as this.
const MAX_MICROS: u64 = 3_600_000_000;
/// Significant decimal digits of percentiles.
const SIGNIFICANT_DIGITS: u8 = 3;
/// Maximum number of distinct worker names, which peers choose.
const MAX_WORKERS: usize = 4_096;

/// All measurements so far.
#[derive(Debug, Default)]
pub struct Results {
    /// Number of complete responses.
    pub complete: u64,
    /// Number of requests that failed before they were accepted.
    pub refused: u64,
    /// Number of responses that were accepted and did not complete.
    pub lost: u64,
    /// Failures by code.
    pub errors: BTreeMap<&'static str, ErrorGroup>,
    /// Tokens of complete responses.
    pub tokens: Tokens,
    /// Latencies of complete responses.
    pub latency: Latencies,
    /// Statistics that complete responses report.
    pub reported: ReportedStats,
    /// Complete responses by worker.
    pub workers: BTreeMap<String, u64>,
    /// Model of the last response.
    pub model: String,
    /// Objectives of latency.
    pub objectives: Option<Objectives>,
    /// How many complete responses met them.
    pub objective_counts: ObjectiveCounts,
}

/// Failures of one code.
#[derive(Debug)]
pub struct ErrorGroup {
    /// Number of failures.
    pub count: u64,
    /// Message of the first failure.
    pub example: String,
    /// Index of the request that failed first.
    pub index: u64,
}

/// Token counts.
#[derive(Debug, Default)]
pub struct Tokens {
    /// Prompt tokens.
    pub prompt: u64,
    /// Prompt tokens that were in the prefix cache.
    pub cached_prompt: u64,
    /// Generated tokens.
    pub completion: u64,
    /// Tokens of incomplete responses, which are not counted elsewhere.
    pub lost: u64,
}

/// Latencies, relative to the scheduled time of a request.
#[derive(Debug)]
pub struct Latencies {
    /// Time to the first token.
    pub first_token: Latency,
    /// Time from the first event with tokens to the second.
    pub second_token: Latency,
    /// Time between consecutive events with tokens.
    pub inter_token: Latency,
    /// Longest time between consecutive events with tokens: one value per response.
    pub longest_pause: Latency,
    /// The same for responses that another worker resumed.
    pub longest_pause_resumed: Latency,
    /// Time from the first token to the last event, divided by the number of tokens after the
    /// first: one value per response.
    pub per_token: Latency,
    /// Time to the last event.
    pub end_to_end: Latency,
    /// Time from the scheduled time to when the request was sent.
    pub send_lag: Latency,
}

impl Default for Latencies {
    fn default() -> Self {
        Self {
            first_token: Latency::new(),
            second_token: Latency::new(),
            inter_token: Latency::new(),
            longest_pause: Latency::new(),
            longest_pause_resumed: Latency::new(),
            per_token: Latency::new(),
            end_to_end: Latency::new(),
            send_lag: Latency::new(),
        }
    }
}

/// A histogram of microseconds.
#[derive(Debug)]
pub struct Latency(Histogram<u64>);

impl Latency {
    fn new() -> Self {
        // Fails only on invalid bounds.
        Self(
            Histogram::new_with_bounds(1, MAX_MICROS, SIGNIFICANT_DIGITS)
                .expect("the bounds are constants"),
        )
    }

    fn add(&mut self, time: Duration) {
        self.add_micros(u64::try_from(time.as_micros()).unwrap_or(MAX_MICROS));
    }

    fn add_micros(&mut self, micros: u64) {
        self.0.saturating_record(micros);
    }

    /// Returns the histogram, in microseconds.
    pub fn histogram(&self) -> &Histogram<u64> {
        &self.0
    }
}

/// Sums of the statistics that complete responses report.
#[derive(Debug, Default)]
pub struct ReportedStats {
    /// Number of responses with the finish reason `stop`.
    pub stopped: u64,
    /// Number of responses with the finish reason `length`.
    pub length: u64,
    /// Time by stage, summed over responses.
    pub stages: Stages,
    /// Number of preemptions.
    pub preemptions: u64,
    /// Number of resumes on another worker.
    pub resumes: u64,
    /// Number of draft tokens.
    pub drafted_tokens: u64,
    /// Number of accepted draft tokens.
    pub accepted_tokens: u64,
}

/// Time by stage.
#[derive(Debug, Default)]
pub struct Stages {
    /// Router: validation and the admission queue.
    pub admission: Duration,
    /// Router: worker selection.
    pub route: Duration,
    /// Worker: chat template, tokenization and validation.
    pub tokenize: Duration,
    /// Worker: time in the queue of the engine.
    pub queue: Duration,
    /// Worker: from the first scheduled step to the first token.
    pub prefill: Duration,
    /// Worker: from the first token to the last.
    pub decode: Duration,
    /// Worker: from the last token until the last message was taken for sending.
    pub stream: Duration,
    /// Router: resumes on another worker.
    pub resume: Duration,
    /// Remaining time that the client measured: the network, the router's own work, and the client.
    pub elsewhere: Duration,
}

impl Results {
    /// Returns empty results, which count the responses that meet `objectives`.
    pub fn new(objectives: Option<Objectives>) -> Self {
        Self { objectives, ..Self::default() }
    }

    /// Returns the number of requests that have ended.
    pub fn count(&self) -> u64 {
        self.complete + self.failed()
    }

    /// Returns the number of requests without a complete response.
    pub fn failed(&self) -> u64 {
        self.refused + self.lost
    }

    /// Adds the outcome of a request.
    pub fn add(&mut self, outcome: &CallOutcome) {
        match &outcome.end {
            Ok(end) => self.add_complete(outcome, end),
            Err(error) => self.add_failure(outcome, error),
        }
    }

    fn add_complete(&mut self, outcome: &CallOutcome, end: &Finished) {
        self.complete += 1;
        let usage = end.usage.unwrap_or_default();
        self.tokens.prompt += u64::from(usage.prompt_tokens);
        self.tokens.cached_prompt += u64::from(usage.cached_prompt_tokens);
        self.tokens.completion += u64::from(usage.completion_tokens);
        if let Some(objectives) = &self.objectives {
            let ReceivedResponse { first_token, end_to_end, .. } = outcome.response;
            let itl = mean_inter_token(&outcome.response);
            self.objective_counts.add(objectives, first_token, itl, end_to_end);
        }
        self.latency.add(outcome, end.timings.as_ref().is_some_and(|timings| timings.resumes > 0));
        self.reported.add(end, outcome.response.end_to_end.saturating_sub(outcome.send_lag));
        let Some(accepted) = &outcome.response.accepted else { return };
        if let Some(count) = self.workers.get_mut(&accepted.worker) {
            *count += 1;
        } else if self.workers.len() < MAX_WORKERS {
            self.workers.insert(accepted.worker.clone(), 1);
        }
        if self.model != accepted.model {
            self.model.clone_from(&accepted.model);
        }
    }

    fn add_failure(
        &mut self,
        CallOutcome { index, response, .. }: &CallOutcome,
        error: &CallError,
    ) {
        let message = match &response.accepted {
            None => {
                self.refused += 1;
                error.message().to_owned()
            }
            Some(accepted) => {
                self.lost += 1;
                let received = response.ids.len();
                format!(
                    "{} (after {received} tokens, request id {})",
                    error.message(),
                    accepted.request_id
                )
            }
        };
        self.tokens.lost += response.ids.len() as u64;
        self.errors
            .entry(code_name(error.code()))
            .or_insert(ErrorGroup { count: 0, example: message, index: *index })
            .count += 1;
    }
}

impl Latencies {
    fn add(&mut self, CallOutcome { send_lag, response, .. }: &CallOutcome, resumed: bool) {
        let ReceivedResponse { first_token, inter_token, end_to_end, .. } = response;
        self.send_lag.add(*send_lag);
        self.end_to_end.add(*end_to_end);
        let Some(first) = *first_token else { return };
        self.first_token.add(first);
        for time in inter_token {
            self.inter_token.add_micros(u64::from(*time));
        }
        if let Some(second) = inter_token.first() {
            self.second_token.add_micros(u64::from(*second));
        }
        if let Some(longest) = inter_token.iter().max() {
            self.longest_pause.add_micros(u64::from(*longest));
            if resumed {
                self.longest_pause_resumed.add_micros(u64::from(*longest));
            }
        }
        if let Some(mean) = mean_inter_token(response) {
            self.per_token.add(mean);
        }
    }
}

/// Returns the time from the first token to the end, divided by the number of tokens after the
/// first. `None` if there are none.
fn mean_inter_token(response: &ReceivedResponse) -> Option<Duration> {
    let rest = u32::try_from(response.ids.len().saturating_sub(1)).ok().filter(|n| *n > 0)?;
    Some(response.end_to_end.saturating_sub(response.first_token?) / rest)
}

impl ReportedStats {
    /// Adds a complete response. `measured` is the duration of the call as measured by the client.
    fn add(&mut self, end: &Finished, measured: Duration) {
        match end.reason() {
            FinishReason::Stop => self.stopped += 1,
            _ => self.length += 1,
        }
        let Some(timings) = &end.timings else { return };
        self.stages.add(timings, measured);
        self.preemptions += u64::from(timings.preemptions);
        self.resumes += u64::from(timings.resumes);
        self.drafted_tokens += u64::from(timings.drafted_tokens);
        self.accepted_tokens += u64::from(timings.accepted_tokens);
    }
}

impl Stages {
    fn add(&mut self, timings: &Timings, measured: Duration) {
        let mut known = Duration::ZERO;
        for (sum, stage) in [
            (&mut self.admission, timings.admission),
            (&mut self.route, timings.route),
            (&mut self.tokenize, timings.tokenize),
            (&mut self.queue, timings.queue),
            (&mut self.prefill, timings.prefill),
            (&mut self.decode, timings.decode),
            (&mut self.stream, timings.stream),
            (&mut self.resume, timings.resume),
        ] {
            let time = from_wire(stage).unwrap_or_default();
            *sum = sum.saturating_add(time);
            known = known.saturating_add(time);
        }
        self.elsewhere = self.elsewhere.saturating_add(measured.saturating_sub(known));
    }
}

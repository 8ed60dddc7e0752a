//! Everything that is measured in a pass: counts, sums, histograms, slices of time and a sample.

use std::{borrow::Cow, collections::BTreeMap, time::Duration};

use stoker_proto::{duration::or_zero, v1::Timings};
use tokio::time::Instant;

use crate::{
    measure::{
        latency::Latency,
        objectives::{ObjectiveCounts, Objectives},
        samples::Samples,
        slices::Slices,
    },
    targets::outcome::{CallEnd, CallOutcome, Completion, Failure, Finish},
};

/// Maximum number of distinct worker names, which peers choose.
const MAX_WORKERS: usize = 4_096;

/// All measurements so far.
#[derive(Debug)]
pub struct Results {
    started: Instant,
    /// Number of complete responses.
    pub complete: u64,
    /// Number of requests that failed before they were accepted.
    pub refused: u64,
    /// Number of responses that were accepted and did not complete.
    pub lost: u64,
    /// Number of requests that the client cancelled.
    pub cancelled: u64,
    /// Failures by code.
    pub errors: BTreeMap<Cow<'static, str>, ErrorGroup>,
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
    /// Sum over complete responses of the tokens per second that their user sees.
    pub user_rates: f64,
    /// Measurements over time.
    pub slices: Slices,
    /// A sample of requests.
    pub samples: Samples,
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
    /// Tokens of cancelled responses, which are not counted elsewhere.
    pub cancelled: u64,
    /// Tokens of failed responses, which are not counted elsewhere.
    pub lost: u64,
}

/// Latencies, relative to the scheduled time of a request.
#[derive(Debug, Default)]
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
    /// Mean time between two tokens (`ReceivedResponse::time_per_token`): one value per response.
    pub per_token: Latency,
    /// Time to the last event.
    pub end_to_end: Latency,
    /// Time from the scheduled time to when the request was sent.
    pub send_lag: Latency,
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
    /// Returns empty results of a pass that began at `started`, which count the responses that meet
    /// `objectives`.
    pub fn new(started: Instant, objectives: Option<Objectives>) -> Self {
        Self {
            started,
            complete: 0,
            refused: 0,
            lost: 0,
            cancelled: 0,
            errors: BTreeMap::new(),
            tokens: Tokens::default(),
            latency: Latencies::default(),
            reported: ReportedStats::default(),
            workers: BTreeMap::new(),
            model: String::new(),
            objectives,
            objective_counts: ObjectiveCounts::default(),
            user_rates: 0.0,
            slices: Slices::default(),
            samples: Samples::default(),
        }
    }

    /// Returns the number of requests that have ended.
    pub fn count(&self) -> u64 {
        self.complete + self.cancelled + self.failed()
    }

    /// Returns the number of requests without a complete response, except for cancelled ones.
    pub fn failed(&self) -> u64 {
        self.refused + self.lost
    }

    /// Returns the number of requests that failed or did not meet the objectives.
    pub fn missed(&self) -> u64 {
        let met = if self.objectives.is_some() { self.objective_counts.met } else { self.complete };
        self.failed() + self.complete - met
    }

    /// Adds the outcome of a request.
    pub fn add(&mut self, outcome: &CallOutcome) {
        let mut met = false;
        match &outcome.end {
            CallEnd::Complete(completion) => met = self.add_complete(outcome, completion),
            CallEnd::Cancelled => {
                self.cancelled += 1;
                self.tokens.cancelled += u64::from(outcome.response.tokens);
            }
            CallEnd::Failed(failure) => self.add_failure(outcome, failure),
        }
        let at = outcome.scheduled.saturating_duration_since(self.started);
        self.slices.add(outcome, at, met);
        self.samples.add(outcome, at);
    }

    /// Returns whether the response met the objectives.
    fn add_complete(&mut self, outcome: &CallOutcome, completion: &Completion) -> bool {
        let CallOutcome { response, send_lag, .. } = outcome;
        self.complete += 1;
        self.tokens.completion += u64::from(response.tokens);
        let usage = completion.usage.unwrap_or_default();
        self.tokens.prompt += u64::from(usage.prompt_tokens);
        self.tokens.cached_prompt += u64::from(usage.cached_prompt_tokens);
        let per_token = response.time_per_token();
        let met = self.objectives.is_none_or(|objectives| {
            let missed = objectives.misses(response.first_token, per_token, response.end_to_end);
            self.objective_counts.add(missed)
        });
        if let Some(time) = per_token.filter(|time| !time.is_zero()) {
            self.user_rates += 1.0 / time.as_secs_f64();
        }
        let timings = completion.timings.as_ref();
        let resumed = timings.is_some_and(|timings| timings.resumes > 0);
        self.latency.add(outcome, resumed);
        self.reported.add(completion, response.end_to_end.saturating_sub(*send_lag));
        let Some(accepted) = &response.accepted else { return met };
        if let Some(count) = self.workers.get_mut(&accepted.worker) {
            *count += 1;
        } else if !accepted.worker.is_empty() && self.workers.len() < MAX_WORKERS {
            self.workers.insert(accepted.worker.clone(), 1);
        }
        if self.model != accepted.model {
            self.model.clone_from(&accepted.model);
        }
        met
    }

    fn add_failure(
        &mut self,
        CallOutcome { index, response, .. }: &CallOutcome,
        failure: &Failure,
    ) {
        let message = match &response.accepted {
            None => {
                self.refused += 1;
                failure.message.clone()
            }
            Some(accepted) => {
                self.lost += 1;
                let (message, received) = (&failure.message, response.tokens);
                match accepted.request_id.as_str() {
                    "" => format!("{message} (after {received} tokens)"),
                    id => format!("{message} (after {received} tokens, request id {id})"),
                }
            }
        };
        self.tokens.lost += u64::from(response.tokens);
        self.errors
            .entry(failure.code.clone())
            .or_insert(ErrorGroup { count: 0, example: message, index: *index })
            .count += 1;
    }
}

impl Latencies {
    fn add(&mut self, CallOutcome { send_lag, response, .. }: &CallOutcome, resumed: bool) {
        self.send_lag.add(*send_lag);
        self.end_to_end.add(response.end_to_end);
        let Some(first) = response.first_token else { return };
        self.first_token.add(first);
        for event in &response.events {
            self.inter_token.add_micros(event.after_micros.into());
        }
        if let Some(second) = response.events.first() {
            self.second_token.add_micros(second.after_micros.into());
        }
        if let Some(longest) = response.longest_pause() {
            self.longest_pause.add(longest);
            if resumed {
                self.longest_pause_resumed.add(longest);
            }
        }
        if let Some(mean) = response.time_per_token() {
            self.per_token.add(mean);
        }
    }
}

impl ReportedStats {
    /// Adds a complete response. `measured` is the duration of the call as measured by the client.
    fn add(&mut self, completion: &Completion, measured: Duration) {
        match completion.finish {
            Finish::Stop => self.stopped += 1,
            Finish::Length => self.length += 1,
        }
        let Some(timings) = &completion.timings else { return };
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
            let time = or_zero(stage);
            *sum = sum.saturating_add(time);
            known = known.saturating_add(time);
        }
        self.elsewhere = self.elsewhere.saturating_add(measured.saturating_sub(known));
    }
}

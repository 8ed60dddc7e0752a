//! What came, in constant memory: counts, sums and histograms.

use std::{collections::BTreeMap, time::Duration};

use hdrhistogram::Histogram;
use stoker_proto::duration::from_wire;
use stoker_proto::v1::{FinishReason, Finished, Timings};
use stoker_shared::{client::CallError, error::code_name};

use crate::call::{Outcome, Partial};

/// Values above an hour count as one; the highest bin must have an end. In microseconds.
const LONGEST: u64 = 3_600_000_000;
/// Percentiles are right to three digits.
const DIGITS: u8 = 3;
/// Names of workers that are told apart; a peer chooses them.
const MAX_WORKERS: usize = 4_096;

/// Everything that is known about the answers so far.
#[derive(Debug, Default)]
pub struct Results {
    /// Answers that came to their end.
    pub complete: u64,
    /// Requests that failed before they were accepted.
    pub refused: u64,
    /// Answers that had begun and did not come to their end.
    pub lost: u64,
    /// Failures by their code.
    pub errors: BTreeMap<&'static str, Errors>,
    /// Tokens of complete answers.
    pub tokens: Tokens,
    /// Latencies of complete answers.
    pub latency: Latencies,
    /// What complete answers say about themselves.
    pub told: Told,
    /// Complete answers by worker.
    pub workers: BTreeMap<String, u64>,
    /// The model that answered last.
    pub model: String,
}

/// Failures of one code.
#[derive(Debug)]
pub struct Errors {
    /// How many.
    pub count: u64,
    /// What the first one said.
    pub example: String,
    /// The number of the request that it was.
    pub index: u64,
}

/// Tokens.
#[derive(Debug, Default)]
pub struct Tokens {
    /// Of prompts.
    pub prompt: u64,
    /// Of those, what the prefix cache had.
    pub cached_prompt: u64,
    /// Of answers.
    pub completion: u64,
    /// Of answers that did not come to their end; nowhere else.
    pub lost: u64,
}

/// Latencies, from the moment a request was meant to begin.
#[derive(Debug)]
pub struct Latencies {
    /// To the first token.
    pub first_token: Latency,
    /// From one event with tokens to the next.
    pub between_tokens: Latency,
    /// The longest time between two events with tokens: one value an answer.
    pub longest_pause: Latency,
    /// The same, of answers that another worker took over.
    pub longest_pause_resumed: Latency,
    /// From the first token to the last, divided by the tokens after the first: one value an answer.
    pub per_token: Latency,
    /// To the last event.
    pub whole: Latency,
    /// From when a request was meant to begin to when it was sent.
    pub lag: Latency,
}

impl Default for Latencies {
    fn default() -> Self {
        Self {
            first_token: Latency::new(),
            between_tokens: Latency::new(),
            longest_pause: Latency::new(),
            longest_pause_resumed: Latency::new(),
            per_token: Latency::new(),
            whole: Latency::new(),
            lag: Latency::new(),
        }
    }
}

/// A histogram of microseconds.
#[derive(Debug)]
pub struct Latency(Histogram<u64>);

impl Latency {
    fn new() -> Self {
        // Fails on bounds that make no sense.
        Self(Histogram::new_with_bounds(1, LONGEST, DIGITS).expect("the bounds are constants"))
    }

    fn add(&mut self, time: Duration) {
        self.add_micros(u64::try_from(time.as_micros()).unwrap_or(LONGEST));
    }

    fn add_micros(&mut self, micros: u64) {
        self.0.saturating_record(micros);
    }

    /// The histogram, in microseconds.
    pub fn histogram(&self) -> &Histogram<u64> {
        &self.0
    }
}

/// Sums of what answers say about themselves.
#[derive(Debug, Default)]
pub struct Told {
    /// By what ended them.
    pub stopped: u64,
    /// By what ended them.
    pub length: u64,
    /// Where the time went, summed over answers.
    pub stages: Stages,
    /// Times that a sequence was computed again.
    pub preemptions: u64,
    /// Times that another worker took over.
    pub resumes: u64,
    /// Tokens that drafters proposed.
    pub drafted_tokens: u64,
    /// Of those, what held.
    pub accepted_tokens: u64,
}

/// Time by stage.
#[derive(Debug, Default)]
pub struct Stages {
    /// Router: waiting for admission.
    pub admission: Duration,
    /// Router: choosing a worker, and attempts that failed.
    pub route: Duration,
    /// Worker: template, tokenising, checks.
    pub tokenize: Duration,
    /// Worker: waiting for a place in the batch.
    pub queue: Duration,
    /// Worker: to the first token.
    pub prefill: Duration,
    /// Worker: to the last.
    pub decode: Duration,
    /// Another worker taking over.
    pub resume: Duration,
    /// What the client saw beside all of these: the network, the router's own work, and the client itself.
    pub elsewhere: Duration,
}

impl Results {
    /// Requests that came to any end.
    pub fn count(&self) -> u64 {
        self.complete + self.failed()
    }

    /// Requests without a complete answer.
    pub fn failed(&self) -> u64 {
        self.refused + self.lost
    }

    /// Counts one more.
    pub fn add(&mut self, outcome: &Outcome) {
        match &outcome.end {
            Ok(end) => self.complete(outcome, end),
            Err(error) => self.failure(outcome, error),
        }
    }

    fn complete(&mut self, outcome: &Outcome, end: &Finished) {
        self.complete += 1;
        let usage = end.usage.unwrap_or_default();
        self.tokens.prompt += u64::from(usage.prompt_tokens);
        self.tokens.cached_prompt += u64::from(usage.cached_prompt_tokens);
        self.tokens.completion += u64::from(usage.completion_tokens);
        self.latency.add(outcome, end.timings.as_ref().is_some_and(|timings| timings.resumes > 0));
        self.told.add(end, outcome.answer.whole.saturating_sub(outcome.lag));
        let Some(accepted) = &outcome.answer.accepted else { return };
        if let Some(count) = self.workers.get_mut(&accepted.worker) {
            *count += 1;
        } else if self.workers.len() < MAX_WORKERS {
            self.workers.insert(accepted.worker.clone(), 1);
        }
        if self.model != accepted.model {
            self.model.clone_from(&accepted.model);
        }
    }

    fn failure(&mut self, Outcome { index, answer, .. }: &Outcome, error: &CallError) {
        let message = match &answer.accepted {
            None => {
                self.refused += 1;
                error.message().to_owned()
            }
            Some(accepted) => {
                self.lost += 1;
                let came = answer.ids.len();
                format!(
                    "{} (after {came} tokens, request id {})",
                    error.message(),
                    accepted.request_id
                )
            }
        };
        self.tokens.lost += answer.ids.len() as u64;
        self.errors
            .entry(code_name(error.code()))
            .or_insert(Errors { count: 0, example: message, index: *index })
            .count += 1;
    }
}

impl Latencies {
    fn add(&mut self, Outcome { lag, answer, .. }: &Outcome, resumed: bool) {
        let Partial { ids, first_token, gaps, whole, .. } = answer;
        self.lag.add(*lag);
        self.whole.add(*whole);
        let Some(first) = *first_token else { return };
        self.first_token.add(first);
        for gap in gaps {
            self.between_tokens.add_micros(u64::from(*gap));
        }
        if let Some(longest) = gaps.iter().max() {
            self.longest_pause.add_micros(u64::from(*longest));
            if resumed {
                self.longest_pause_resumed.add_micros(u64::from(*longest));
            }
        }
        if let Some(rest) = u32::try_from(ids.len().saturating_sub(1)).ok().filter(|n| *n > 0) {
            self.per_token.add(whole.saturating_sub(first) / rest);
        }
    }
}

impl Told {
    /// `seen` is how long the call took here.
    fn add(&mut self, end: &Finished, seen: Duration) {
        match end.reason() {
            FinishReason::Stop => self.stopped += 1,
            _ => self.length += 1,
        }
        let Some(timings) = &end.timings else { return };
        self.stages.add(timings, seen);
        self.preemptions += u64::from(timings.preemptions);
        self.resumes += u64::from(timings.resumes);
        self.drafted_tokens += u64::from(timings.drafted_tokens);
        self.accepted_tokens += u64::from(timings.accepted_tokens);
    }
}

impl Stages {
    fn add(&mut self, timings: &Timings, seen: Duration) {
        let mut known = Duration::ZERO;
        for (sum, stage) in [
            (&mut self.admission, timings.admission),
            (&mut self.route, timings.route),
            (&mut self.tokenize, timings.tokenize),
            (&mut self.queue, timings.queue),
            (&mut self.prefill, timings.prefill),
            (&mut self.decode, timings.decode),
            (&mut self.resume, timings.resume),
        ] {
            let time = from_wire(stage).unwrap_or_default();
            *sum = sum.saturating_add(time);
            known = known.saturating_add(time);
        }
        self.elsewhere = self.elsewhere.saturating_add(seen.saturating_sub(known));
    }
}

//! What a client received of a response, and when.

use std::{
    borrow::Cow,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use stoker_proto::{
    duration::from_wire,
    v1::{Timings, Usage},
};
use tokio::time::Instant;

/// Counters of a running load test, for its progress.
#[derive(Debug, Default)]
pub struct LiveCounters {
    sent: AtomicU64,
    tokens: AtomicU64,
}

impl LiveCounters {
    /// Counts a request as sent.
    pub fn start(&self) {
        self.sent.fetch_add(1, Ordering::Relaxed);
    }

    /// Returns the number of sent requests.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Returns the number of received tokens.
    pub fn tokens(&self) -> u64 {
        self.tokens.load(Ordering::Relaxed)
    }
}

/// The result of a request.
#[derive(Debug)]
pub struct CallOutcome {
    /// Index of the request.
    pub index: u64,
    /// The scheduled time of the request. Latencies are measured from it.
    pub scheduled: Instant,
    /// Delay between the scheduled time and the time when the request was sent.
    pub send_lag: Duration,
    /// The received part of the response; the whole response if `end` is `Complete`.
    pub response: ReceivedResponse,
    /// How it ended.
    pub end: CallEnd,
}

/// How a call ended.
#[derive(Debug)]
pub enum CallEnd {
    /// With a complete response.
    Complete(Completion),
    /// The client cancelled it, as it was to.
    Cancelled,
    /// With an error.
    Failed(Failure),
}

/// Finish reason of a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Finish {
    /// A stop string, a stop token or an end-of-text token.
    Stop,
    /// The maximum number of tokens.
    Length,
}

/// What the last event of a response reports.
#[derive(Debug)]
pub struct Completion {
    /// Finish reason.
    pub finish: Finish,
    /// Token counts. `None` if the server does not report them.
    pub usage: Option<Usage>,
    /// Times and counts of a Stoker cluster.
    pub timings: Option<Box<Timings>>,
}

/// Why a response is not complete.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Name of a gRPC code, for instance `UNAVAILABLE`, or an HTTP status, for instance `HTTP 429`.
    pub code: Cow<'static, str>,
    /// What happened.
    pub message: String,
}

impl Failure {
    /// A response that breaks the protocol.
    pub fn invalid_response(message: impl Into<String>) -> Self {
        Self { code: "INTERNAL".into(), message: message.into() }
    }
}

impl From<Failure> for CallEnd {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

/// Who serves a request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Accepted {
    /// Id of the request.
    pub request_id: String,
    /// Name of the model.
    pub model: String,
    /// Name of the worker. Empty if the server does not tell.
    pub worker: String,
}

/// An event with tokens after the first one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TokenEvent {
    /// Time after the event before, in microseconds.
    pub after_micros: u32,
    /// Number of its tokens.
    pub tokens: u32,
}

/// A resume by another worker, as the client sees it: a pause. Times are relative to the scheduled time of
/// the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resume {
    /// Time of the last event with tokens before.
    pub last_token: Duration,
    /// Time of the first event after.
    pub at: Duration,
}

/// The received part of a response. All times are relative to the scheduled time of the request.
#[derive(Debug)]
pub struct ReceivedResponse {
    /// `None` if the request was rejected.
    pub accepted: Option<Accepted>,
    /// Received token ids. Empty if the server does not send them.
    pub ids: Vec<u32>,
    /// Received text.
    pub text: String,
    /// Number of received tokens.
    pub tokens: u32,
    /// Time of the first token.
    pub first_token: Option<Duration>,
    /// Tokens of the first event.
    pub first_tokens: u32,
    /// The events with tokens after the first one.
    pub events: Vec<TokenEvent>,
    /// When other workers resumed the response.
    pub resumes: Vec<Resume>,
    /// Time of the last event, or of the error.
    pub end_to_end: Duration,
    /// Time in which the target generated the tokens after the first, as it reports.
    pub generated_in: Option<Duration>,
    scheduled: Instant,
    last_event: Option<Instant>,
    cancel_after: Option<u32>,
}

impl ReceivedResponse {
    /// Creates an empty response, which is cancelled after `cancel_after` tokens.
    pub fn new(scheduled: Instant, cancel_after: Option<u32>) -> Self {
        Self {
            accepted: None,
            ids: Vec::new(),
            text: String::new(),
            tokens: 0,
            first_token: None,
            first_tokens: 0,
            events: Vec::new(),
            resumes: Vec::new(),
            end_to_end: Duration::ZERO,
            generated_in: None,
            scheduled,
            last_event: None,
            cancel_after,
        }
    }

    /// Adds an event with `tokens` tokens and their text, which has just arrived.
    pub fn add(&mut self, tokens: u32, text: &str, live: &LiveCounters) {
        let now = Instant::now();
        match self.last_event {
            None => {
                self.first_token = Some(now - self.scheduled);
                self.first_tokens = tokens;
            }
            Some(last) => {
                let after_micros = u32::try_from((now - last).as_micros()).unwrap_or(u32::MAX);
                self.events.push(TokenEvent { after_micros, tokens });
            }
        }
        self.last_event = Some(now);
        self.tokens = self.tokens.saturating_add(tokens);
        self.text.push_str(text);
        live.tokens.fetch_add(tokens.into(), Ordering::Relaxed);
    }

    /// Notes that the first event of another worker has arrived, which has resumed the response.
    pub fn resumed(&mut self) {
        let last = self.last_event.map_or(Duration::ZERO, |last| last - self.scheduled);
        self.resumes.push(Resume { last_token: last, at: self.scheduled.elapsed() });
    }

    /// Returns whether the client cancels the call now.
    pub fn is_cancelled(&self) -> bool {
        self.cancel_after.is_some_and(|after| self.tokens >= after)
    }

    /// Notes the time of the last event.
    pub fn finished(&mut self) {
        self.end_to_end = self.scheduled.elapsed();
    }

    /// Checks that a finished response has as many tokens as it reports. Without ids, the reported
    /// number replaces that of events, which may have several.
    pub fn check(&mut self, completion: Completion) -> Result<Completion, Failure> {
        let timings = completion.timings.as_ref();
        self.generated_in = timings.and_then(|timings| from_wire(timings.decode));
        let Some(usage) = &completion.usage else { return Ok(completion) };
        let reported = usage.completion_tokens;
        if self.ids.is_empty() {
            self.tokens = reported;
        } else if self.ids.len() as u64 != u64::from(reported) {
            let received = self.ids.len();
            return Err(Failure::invalid_response(format!(
                "received {received} tokens of the {reported} that were generated"
            )));
        }
        Ok(completion)
    }

    /// Ends the response.
    pub fn end(&mut self, end: &CallEnd) {
        if !matches!(end, CallEnd::Complete(_)) {
            self.finished();
        }
    }

    /// Returns the mean time between two tokens. `None` without a second one.
    ///
    /// It is the time from the first event with tokens to the last event, for each token after those of
    /// the first event. Where tokens arrived together that were not generated together, it is the time
    /// in which the target generated them: a speed that no user sees is none.
    pub fn time_per_token(&self) -> Option<Duration> {
        let seen = Some(self.tokens.saturating_sub(self.first_tokens.max(1)))
            .filter(|n| *n > 0)
            .zip(self.first_token)
            .map(|(rest, first)| self.end_to_end.saturating_sub(first) / rest);
        let generated = Some(self.tokens.saturating_sub(1))
            .filter(|n| *n > 0)
            .zip(self.generated_in)
            .map(|(rest, time)| time / rest);
        seen.max(generated)
    }

    /// Returns the longest time between two events with tokens.
    pub fn longest_pause(&self) -> Option<Duration> {
        let longest = self.events.iter().map(|event| event.after_micros).max()?;
        Some(Duration::from_micros(longest.into()))
    }
}

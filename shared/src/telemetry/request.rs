//! What routers and workers record of a request: its identity, its tokens, how it ended. Each of
//! them adds what only it knows.

use std::time::Duration;

use stoker_proto::{
    duration::from_wire,
    v1::{
        FinishReason, GenerateRequest, GenerateResponse, Timings, Usage, generate_request::Input,
        generate_response::Event,
    },
};
use tokio::time::Instant;
use tracing::Span;

use super::trace::TraceSpan;
use crate::{
    ServiceError,
    names::{attribute, label::OK, operation},
    validate::{MAX_REQUEST_ID, MAX_SEQUENCES},
};

/// Returns the id of a request for logs and traces. They begin before the request is validated, so
/// an invalid id is replaced.
pub fn loggable_id(request: &GenerateRequest) -> &str {
    let id = request.request_id.as_str();
    let valid = id.len() <= MAX_REQUEST_ID && id.bytes().all(|b| b.is_ascii_graphic());
    if valid { id } else { "(invalid)" }
}

/// Returns the name of the operation in traces.
pub fn operation(request: &GenerateRequest) -> &'static str {
    match request.input {
        Some(Input::Chat(_)) => operation::CHAT,
        _ => operation::TEXT_COMPLETION,
    }
}

/// Records one request from its events.
#[derive(Debug)]
pub struct RequestRecorder {
    log: Span,
    trace: TraceSpan,
    prompt_tokens: u32,
    tokens: u64,
    reason: FinishReason,
    usage: Option<Usage>,
    timings: Option<Timings>,
    outcome: &'static str,
    code: &'static str,
    /// When the last event with tokens of each choice came.
    last_tokens: Vec<Option<Instant>>,
}

impl RequestRecorder {
    /// Starts to record `request`, with the log span `log`, in `trace`. Until another end is
    /// recorded, the request counts as cancelled.
    pub fn begin(request: &GenerateRequest, log: Span, trace: TraceSpan) -> Self {
        if trace.is_exported() {
            trace.set(attribute::OPERATION_NAME, operation(request));
            trace.set(attribute::PROVIDER_NAME, "stoker");
            trace.set(attribute::REQUEST_ID, loggable_id(request).to_owned());
            trace.set(attribute::RPC_SYSTEM, "grpc");
            trace.set(attribute::RPC_METHOD, "stoker.v1.Inference/Generate");
        }
        Self {
            log,
            trace,
            prompt_tokens: 0,
            tokens: 0,
            reason: FinishReason::Unspecified,
            usage: None,
            timings: None,
            outcome: ServiceError::Cancelled.reason(),
            code: ServiceError::Cancelled.code_name(),
            last_tokens: Vec::new(),
        }
    }

    /// Records an event that came at `now`. Returns the time since the last event with tokens of the
    /// same choice, if both have some.
    pub fn event(&mut self, event: &GenerateResponse, now: Instant) -> Option<Duration> {
        match &event.event {
            Some(Event::Accepted(accepted)) => self.prompt_tokens = accepted.prompt_tokens,
            Some(Event::Token(delta)) => {
                self.tokens += delta.ids.len() as u64;
                return self.gap(event.choice, now);
            }
            Some(Event::Finished(finished)) => {
                self.reason = finished.reason();
                if let Some(timings) = finished.timings.as_deref() {
                    self.timings = Some(*timings);
                }
                // Only the last choice to finish has usage.
                if finished.usage.is_some() {
                    self.usage = finished.usage;
                    self.ended();
                }
            }
            Some(Event::Prompt(_) | Event::Preempted(_)) | None => {}
        }
        None
    }

    fn gap(&mut self, choice: u32, now: Instant) -> Option<Duration> {
        let choice = choice as usize;
        // A worker sends no higher ones than were asked for, which are few.
        if choice >= MAX_SEQUENCES as usize {
            return None;
        }
        if self.last_tokens.len() <= choice {
            self.last_tokens.resize(choice + 1, None);
        }
        self.last_tokens[choice].replace(now).map(|last| now - last)
    }

    /// Records that the request was refused, or that its stream failed.
    pub fn failed(&mut self, error: &ServiceError) {
        (self.outcome, self.code) = (error.reason(), error.code_name());
        // Debug escapes text of clients and workers, so that it cannot forge a log line.
        self.log.record("error", tracing::field::debug(error.to_string()));
        if self.trace.is_exported() {
            self.trace.set(attribute::ERROR_TYPE, error.reason());
            self.trace.fail(error.to_string());
        }
    }

    /// Records the end of the stream without an error.
    pub fn ended(&mut self) {
        self.code = OK;
        self.outcome = match self.reason {
            FinishReason::Stop => "stop",
            FinishReason::Length => "length",
            FinishReason::Unspecified => "unspecified",
        };
    }

    /// Sets the attributes of the trace that follow from the events. `first_token` and `total` are
    /// times from the arrival.
    pub fn finish_trace(&self, first_token: Option<Duration>, total: Duration) {
        let trace = &self.trace;
        if !trace.is_exported() {
            return;
        }
        trace.set(attribute::RPC_STATUS, self.code);
        trace.set(attribute::INPUT_TOKENS, i64::from(self.prompt_tokens));
        trace.set(attribute::OUTPUT_TOKENS, i64::try_from(self.tokens()).unwrap_or(i64::MAX));
        if let Some(usage) = self.usage {
            trace.set(attribute::CACHED_TOKENS, i64::from(usage.cached_prompt_tokens));
        }
        if self.code == OK {
            trace.set_list(attribute::FINISH_REASONS, [self.outcome]);
        }
        if let Some(first) = first_token {
            trace.set(attribute::TIME_TO_FIRST_TOKEN, first.as_secs_f64());
        }
        trace.set(attribute::TIME_END_TO_END, total.as_secs_f64());
        let stages = self.timings.unwrap_or_default();
        for (key, took) in [
            (attribute::TIME_IN_QUEUE, stages.queue),
            (attribute::TIME_IN_PREFILL, stages.prefill),
            (attribute::TIME_IN_DECODE, stages.decode),
        ] {
            if let Some(took) = from_wire(took) {
                trace.set(key, took.as_secs_f64());
            }
        }
    }

    /// Log span of the request.
    pub fn log(&self) -> &Span {
        &self.log
    }

    /// Trace span of the request.
    pub fn trace(&self) -> &TraceSpan {
        &self.trace
    }

    /// Id of the trace, if it is exported.
    pub fn exported_trace_id(&self) -> Option<String> {
        if self.trace.is_sampled() { self.trace.trace_id() } else { None }
    }

    /// Number of prompt tokens; 0 before a worker has counted them.
    pub fn prompt_tokens(&self) -> u32 {
        self.prompt_tokens
    }

    /// Number of generated tokens of all choices.
    pub fn tokens(&self) -> u64 {
        self.usage.map_or(self.tokens, |usage| usage.completion_tokens.into())
    }

    /// Number of prompt tokens that were cached.
    pub fn cached_tokens(&self) -> u32 {
        self.usage.map_or(0, |usage| usage.cached_prompt_tokens)
    }

    /// What the response is made of, once it is complete.
    pub fn usage(&self) -> Option<Usage> {
        self.usage
    }

    /// Timings of the response, once it is complete.
    pub fn timings(&self) -> Option<Timings> {
        self.timings
    }

    /// How the request ended, as a label.
    pub fn outcome(&self) -> &'static str {
        self.outcome
    }

    /// Name of its gRPC status code.
    pub fn code(&self) -> &'static str {
        self.code
    }
}

#[cfg(test)]
mod tests {
    use stoker_proto::v1::{Accepted, Finished, TokenDelta};

    use super::*;

    fn recorder() -> RequestRecorder {
        RequestRecorder::begin(&GenerateRequest::default(), Span::none(), TraceSpan::default())
    }

    fn event(choice: u32, event: Event) -> GenerateResponse {
        GenerateResponse { choice, event: Some(event), ..GenerateResponse::default() }
    }

    fn tokens(choice: u32, count: usize) -> GenerateResponse {
        event(choice, Event::Token(TokenDelta { ids: vec![1; count], ..TokenDelta::default() }))
    }

    #[test]
    fn a_request_that_is_dropped_counts_as_cancelled() {
        let mut recorder = recorder();
        recorder.event(&tokens(0, 2), Instant::now());
        assert_eq!((recorder.outcome(), recorder.code()), ("CANCELLED", "CANCELLED"));
        assert_eq!(recorder.tokens(), 2);
    }

    #[test]
    fn times_between_tokens_are_those_of_a_choice() {
        let (mut recorder, start) = (recorder(), Instant::now());
        let at = |millis| start + Duration::from_millis(millis);
        assert_eq!(recorder.event(&tokens(0, 1), at(0)), None);
        assert_eq!(recorder.event(&tokens(1, 1), at(10)), None);
        assert_eq!(recorder.event(&tokens(0, 1), at(30)), Some(Duration::from_millis(30)));
        assert_eq!(recorder.event(&tokens(1, 3), at(50)), Some(Duration::from_millis(40)));
        assert_eq!(recorder.event(&tokens(u32::MAX, 1), at(60)), None);
    }

    #[test]
    fn the_last_choice_to_finish_completes_the_request() {
        let mut recorder = recorder();
        let accepted = Accepted { prompt_tokens: 5, ..Accepted::default() };
        recorder.event(&event(0, Event::Accepted(accepted)), Instant::now());
        let finished = |reason: FinishReason, usage| {
            let finished = Finished { reason: reason.into(), usage, ..Finished::default() };
            event(0, Event::Finished(finished))
        };
        recorder.event(&finished(FinishReason::Stop, None), Instant::now());
        assert_eq!(recorder.outcome(), "CANCELLED", "another choice is still running");
        let usage = Usage { completion_tokens: 9, cached_prompt_tokens: 4, ..Usage::default() };
        recorder.event(&finished(FinishReason::Length, Some(usage)), Instant::now());
        assert_eq!((recorder.outcome(), recorder.code()), ("length", OK));
        assert_eq!(
            (recorder.prompt_tokens(), recorder.tokens(), recorder.cached_tokens()),
            (5, 9, 4)
        );
        recorder.failed(&ServiceError::unavailable("late"));
        assert_eq!(recorder.code(), "UNAVAILABLE");
    }

    #[test]
    fn an_invalid_id_does_not_reach_logs() {
        let id = |id: &str| {
            let request = GenerateRequest { request_id: id.into(), ..GenerateRequest::default() };
            loggable_id(&request).to_owned()
        };
        assert_eq!(id("a-1"), "a-1");
        assert_eq!(id("a\nb"), "(invalid)");
        assert_eq!(id(&"a".repeat(MAX_REQUEST_ID + 1)), "(invalid)");
    }
}

//! Result of one request, written to the log, its trace and the metrics when the request is over.

use std::{
    sync::{Arc, OnceLock},
    time::{Duration, SystemTime},
};

use stoker_proto::duration::from_wire;
use stoker_proto::v1::{
    FinishReason, GenerateRequest, GenerateResponse, Timings, Usage, generate_request::Input,
    generate_response::Event,
};
use stoker_shared::{
    ServiceError,
    telemetry::{
        names::{attribute, operation},
        trace::{SpanKind, TraceSpan},
    },
    validate::MAX_REQUEST_ID,
};
use tokio::time::Instant;
use tracing::{Span, field::Empty, info, info_span};

use super::complete;
use crate::{
    call::{Call, Observe, last_timings},
    metrics::{GaugeGuard, Metrics, OK, RequestSummary},
};

/// Collects the result of a request. Written on drop, so that a request that its client cancels is
/// logged too.
pub(super) struct RequestLog {
    arrived: Instant,
    log: Span,
    trace: TraceSpan,
    metrics: Metrics,
    _in_flight: GaugeGuard,
    operation: &'static str,
    served: Arc<OnceLock<Arc<str>>>,
    prompt_tokens: u32,
    tokens: usize,
    first_token: Option<Duration>,
    /// Finish reason of the last event.
    reason: Option<FinishReason>,
    usage: Option<Usage>,
    timings: Option<Timings>,
    /// Result as a label, and as a gRPC status code.
    outcome: &'static str,
    code: &'static str,
}

impl RequestLog {
    /// Starts the log of `call`, and sets the call's spans.
    pub(super) fn start(call: &mut Call, metrics: &Metrics) -> Self {
        let id = loggable_id(&call.request.request_id);
        let operation = operation(&call.request);
        let began = SystemTime::now() - call.arrived.elapsed();
        call.span = log_span(id);
        call.trace = call.trace.child(operation, SpanKind::Server, began);
        if !call.tenant.is_empty() {
            call.span.record("tenant", &*call.tenant);
        }
        if let Some(trace) = call.trace.trace_id() {
            call.span.record("trace_id", trace);
        }
        if call.trace.is_recording() {
            call.trace.set(attribute::OPERATION_NAME, operation);
            call.trace.set(attribute::PROVIDER_NAME, "stoker");
            call.trace.set(attribute::REQUEST_ID, id.to_owned());
            call.trace.set(attribute::RPC_SYSTEM, "grpc");
            call.trace.set(attribute::RPC_METHOD, "stoker.v1.Inference/Generate");
        }
        Self {
            arrived: call.arrived,
            log: call.span.clone(),
            trace: call.trace.clone(),
            metrics: metrics.clone(),
            _in_flight: metrics.in_flight(),
            operation,
            served: Arc::clone(&call.served),
            prompt_tokens: 0,
            tokens: 0,
            first_token: None,
            reason: None,
            usage: None,
            timings: None,
            // Result of a log that is dropped before the stream ends.
            outcome: ServiceError::Cancelled.reason(),
            code: ServiceError::Cancelled.code_name(),
        }
    }

    /// Records that the request failed before a worker accepted it.
    pub(super) fn refused(&mut self, error: &ServiceError) {
        self.metrics.rejected(error);
        self.failed(error);
    }

    fn log(&self, tokens: u64, total: Duration) {
        let log = &self.log;
        log.record("tokens", tokens);
        log.record("outcome", self.outcome);
        if let Some(first) = self.first_token {
            log.record("first_token_ms", millis(first));
        }
        log.record("total_ms", millis(total));
        info!(parent: log, "request over");
    }

    fn trace(&self, tokens: u64, total: Duration) {
        let trace = &self.trace;
        if !trace.is_recording() {
            return;
        }
        if let Some(model) = self.served.get() {
            trace.rename(format!("{} {model}", self.operation));
            trace.set(attribute::REQUEST_MODEL, model.to_string());
        }
        trace.set(attribute::RPC_STATUS, self.code);
        trace.set(attribute::INPUT_TOKENS, i64::from(self.prompt_tokens));
        trace.set(attribute::OUTPUT_TOKENS, i64::try_from(tokens).unwrap_or(i64::MAX));
        if let Some(usage) = self.usage {
            trace.set(attribute::CACHED_TOKENS, i64::from(usage.cached_prompt_tokens));
        }
        if self.code == OK {
            trace.set_list(attribute::FINISH_REASONS, [self.outcome]);
        }
        if let Some(first) = self.first_token {
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
        trace.end();
    }
}

impl Observe for RequestLog {
    fn event(&mut self, event: &mut GenerateResponse) {
        if let Some(timings) = last_timings(event) {
            complete(timings, self.arrived.elapsed());
            self.timings = Some(*timings);
            if let Some(admission) = from_wire(timings.admission) {
                self.log.record("admission_ms", millis(admission));
            }
        }
        match &event.event {
            Some(Event::Token(delta)) => {
                self.tokens += delta.ids.len();
                self.first_token.get_or_insert_with(|| self.arrived.elapsed());
            }
            Some(Event::Accepted(accepted)) => {
                self.prompt_tokens = accepted.prompt_tokens;
                self.log.record("prompt_tokens", accepted.prompt_tokens);
            }
            Some(Event::Finished(finished)) => {
                self.reason = Some(finished.reason());
                self.usage = finished.usage;
            }
            Some(Event::Prompt(_) | Event::Preempted(_)) | None => {}
        }
    }

    fn failed(&mut self, error: &ServiceError) {
        self.outcome = error.reason();
        self.code = error.code_name();
        // Debug escapes text of clients and workers, so that it cannot forge a log line.
        self.log.record("error", tracing::field::debug(error.to_string()));
        if self.trace.is_recording() {
            self.trace.set(attribute::ERROR_TYPE, error.reason());
            self.trace.fail(error.to_string());
        }
    }

    fn ended(&mut self) {
        self.code = OK;
        self.outcome = match self.reason {
            Some(FinishReason::Stop) => "stop",
            Some(FinishReason::Length) => "length",
            _ => "cancelled by the worker",
        };
    }
}

impl Drop for RequestLog {
    fn drop(&mut self) {
        let tokens = self.usage.map_or(self.tokens as u64, |usage| usage.completion_tokens.into());
        let total = self.arrived.elapsed();
        self.log(tokens, total);
        self.trace(tokens, total);
        self.metrics.finished(RequestSummary {
            model: self.served.get().cloned(),
            code: self.code,
            prompt_tokens: self.prompt_tokens.into(),
            tokens,
            first_token: self.first_token,
            total,
        });
    }
}

/// Creates the log span of a request. Empty fields are recorded later, by the layer that knows
/// them.
fn log_span(request_id: &str) -> Span {
    info_span!(
        "generate",
        request_id,
        trace_id = Empty,
        tenant = Empty,
        model = Empty,
        worker = Empty,
        attempts = Empty,
        resumes = Empty,
        prompt_tokens = Empty,
        tokens = Empty,
        outcome = Empty,
        error = Empty,
        admission_ms = Empty,
        first_token_ms = Empty,
        total_ms = Empty,
    )
}

/// Returns the id for logs and traces. They run before validation, so an invalid id is replaced.
fn loggable_id(request_id: &str) -> &str {
    let valid = request_id.len() <= MAX_REQUEST_ID;
    let valid = valid && request_id.bytes().all(|b| b.is_ascii_graphic());
    if valid { request_id } else { "(invalid)" }
}

fn operation(request: &GenerateRequest) -> &'static str {
    match request.input {
        Some(Input::Chat(_)) => operation::CHAT,
        _ => operation::TEXT_COMPLETION,
    }
}

fn millis(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

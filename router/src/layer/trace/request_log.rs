//! Result of one request, written to the log, its trace and the metrics when the request is over.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use prometheus_client::metrics::histogram::Histogram;
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
    validate::{MAX_REQUEST_ID, MAX_SEQUENCES},
};
use tokio::time::Instant;
use tracing::{Span, field::Empty, info, info_span, warn};

use crate::{
    call::{Call, Observe, Stage, StageTimes, Timeline, last_timings},
    metrics::{GaugeGuard, OK, RequestSummary},
    requests::{Ending, RunningRequest},
};

use super::{RequestLogContext, content::Content};

/// Collects the result of a request. Written on drop, so that a request that its client cancels is
/// logged too.
pub(super) struct RequestLog {
    arrived: Instant,
    log: Span,
    trace: TraceSpan,
    timeline: Timeline,
    context: Arc<RequestLogContext>,
    running: RunningRequest,
    content: Option<Content>,
    _in_flight: GaugeGuard,
    operation: &'static str,
    served: Arc<OnceLock<Arc<str>>>,
    inter_token: InterToken,
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
    pub(super) fn start(call: &mut Call, context: &Arc<RequestLogContext>) -> Self {
        let id = loggable_id(&call.request.request_id);
        let operation = operation(&call.request);
        let began = call.timeline.time_of(call.arrived);
        call.span = log_span(id);
        call.trace = call.trace.child(operation, SpanKind::Server, began);
        call.timeline.set_trace(call.trace.clone());
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
        let with_content = context.content && call.trace.is_recording();
        Self {
            arrived: call.arrived,
            log: call.span.clone(),
            trace: call.trace.clone(),
            timeline: call.timeline.clone(),
            context: Arc::clone(context),
            running: context.requests.begin(call, id),
            content: with_content.then(|| Content::begin(&call.request, &call.trace)),
            _in_flight: context.metrics.in_flight(),
            operation,
            served: Arc::clone(&call.served),
            inter_token: InterToken::default(),
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
        self.context.metrics.rejected(error);
        self.failed(error);
    }

    fn log(&self, tokens: u64, stages: &StageTimes) {
        let total = stages.total();
        let log = &self.log;
        log.record("tokens", tokens);
        log.record("outcome", self.outcome);
        if let Some(first) = self.running.first_token() {
            log.record("first_token_ms", millis(first));
        }
        log.record("total_ms", millis(total));
        info!(parent: log, "request over");
        if self.context.slow.is_some_and(|slow| total >= slow) {
            self.slow(stages);
        }
    }

    /// Logs where the time of a slow request went. What a worker measured is there if the response
    /// is complete.
    fn slow(&self, stages: &StageTimes) {
        let timings = self.timings.unwrap_or_default();
        let ms = |stage| from_wire(stage).map(millis);
        warn!(
            parent: &self.log,
            admission_ms = millis(stages.of(Stage::Admission)),
            route_ms = millis(stages.of(Stage::Route)),
            attempts_ms = millis(stages.of(Stage::Attempt)),
            resume_ms = millis(stages.of(Stage::Resume)),
            tokenize_ms = ms(timings.tokenize),
            queue_ms = ms(timings.queue),
            prefill_ms = ms(timings.prefill),
            decode_ms = ms(timings.decode),
            stream_ms = ms(timings.stream),
            worker_ms = ms(timings.worker_total),
            steps = timings.steps,
            preemptions = timings.preemptions,
            cached_prompt_tokens = self.usage.map(|usage| usage.cached_prompt_tokens),
            "slow request"
        );
    }

    fn trace(&mut self, tokens: u64, total: Duration) {
        let trace = &self.trace;
        if let Some(content) = self.content.take() {
            content.end(trace);
        }
        if !trace.is_recording() {
            return;
        }
        if let Some(model) = self.served.get() {
            trace.rename(format!("{} {model}", self.operation));
            trace.set(attribute::REQUEST_MODEL, model.to_string());
        }
        trace.set(attribute::RPC_STATUS, self.code);
        trace.set(attribute::INPUT_TOKENS, i64::from(self.running.prompt_tokens()));
        trace.set(attribute::OUTPUT_TOKENS, i64::try_from(tokens).unwrap_or(i64::MAX));
        if let Some(usage) = self.usage {
            trace.set(attribute::CACHED_TOKENS, i64::from(usage.cached_prompt_tokens));
        }
        if self.code == OK {
            trace.set_list(attribute::FINISH_REASONS, [self.outcome]);
        }
        if let Some(first) = self.running.first_token() {
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
        trace.end_at(self.timeline.time_of(self.arrived + total));
    }
}

/// Times between the events with tokens of each choice.
#[derive(Default)]
struct InterToken {
    last: Vec<Option<Instant>>,
    histogram: Option<Histogram>,
}

impl InterToken {
    /// Observes an event of `choice` at `now`. `histogram` is looked up once.
    fn observe(
        &mut self,
        choice: u32,
        now: Instant,
        histogram: impl FnOnce() -> Option<Histogram>,
    ) {
        let choice = choice as usize;
        // A worker sends no higher ones than were asked for, which are few.
        if choice >= MAX_SEQUENCES as usize {
            return;
        }
        if self.last.len() <= choice {
            self.last.resize(choice + 1, None);
        }
        if let Some(last) = self.last[choice].replace(now) {
            if self.histogram.is_none() {
                self.histogram = histogram();
            }
            if let Some(histogram) = &self.histogram {
                histogram.observe((now - last).as_secs_f64());
            }
        }
    }
}

impl Observe for RequestLog {
    fn event(&mut self, event: &mut GenerateResponse) {
        if let Some(timings) = last_timings(event) {
            self.timeline.end().fill(timings);
            self.timings = Some(*timings);
        }
        if let Some(content) = &mut self.content {
            content.event(event);
        }
        match &event.event {
            Some(Event::Token(delta)) => {
                let now = Instant::now();
                self.running.add_tokens(delta.ids.len(), now);
                self.inter_token.observe(event.choice, now, || {
                    self.served.get().map(|model| self.context.metrics.inter_token(model))
                });
            }
            Some(Event::Accepted(accepted)) => {
                self.running.accepted(accepted.prompt_tokens);
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
        let tokens = self.running.tokens();
        let tokens = self.usage.map_or(tokens, |usage| usage.completion_tokens.into());
        let stages = self.timeline.end();
        let total = stages.total();
        self.log.record("admission_ms", millis(stages.of(Stage::Admission)));
        self.log(tokens, &stages);
        self.trace(tokens, total);
        let ending = Ending {
            outcome: self.outcome,
            code: self.code,
            tokens,
            cached_prompt_tokens: self.usage.map_or(0, |usage| usage.cached_prompt_tokens),
            timings: self.timings,
        };
        self.running.end(total, ending);
        self.context.metrics.finished(RequestSummary {
            model: self.served.get().cloned(),
            code: self.code,
            prompt_tokens: self.running.prompt_tokens().into(),
            tokens,
            first_token: self.running.first_token(),
            total,
            trace: if self.trace.is_sampled() { self.trace.trace_id() } else { None },
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

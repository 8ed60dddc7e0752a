//! Result of one request, written to the log, its trace and the metrics when the request is over.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use prometheus_client::metrics::histogram::Histogram;
use stoker_proto::{
    duration::from_wire,
    v1::{GenerateResponse, generate_response::Event},
};
use stoker_shared::{
    ServiceError,
    names::attribute,
    observed::Observe,
    telemetry::{
        request::{RequestRecorder, loggable_id, operation},
        trace::SpanKind,
    },
};
use tokio::time::Instant;
use tracing::{Span, field::Empty, info, info_span, warn};

use super::{RequestLogContext, content::Content};
use crate::{
    call::{Call, Stage, StageTimes, Timeline, last_timings},
    metrics::{GaugeGuard, RequestSummary},
    requests::{Ending, RunningRequest},
};

/// Collects the result of a request. Written on drop, so that a request that its client cancels is
/// logged too.
pub(super) struct RequestLog {
    arrived: Instant,
    recorder: RequestRecorder,
    timeline: Timeline,
    context: Arc<RequestLogContext>,
    running: RunningRequest,
    content: Option<Content>,
    _in_flight: GaugeGuard,
    operation: &'static str,
    served: Arc<OnceLock<Arc<str>>>,
    /// Looked up once.
    inter_token: Option<Histogram>,
}

impl RequestLog {
    /// Starts the log of `call`, and sets the call's spans.
    pub(super) fn start(call: &mut Call, context: &Arc<RequestLogContext>) -> Self {
        let id = loggable_id(&call.request);
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
        let with_content = context.content && call.trace.is_exported();
        Self {
            arrived: call.arrived,
            recorder: RequestRecorder::begin(&call.request, call.span.clone(), call.trace.clone()),
            timeline: call.timeline.clone(),
            context: Arc::clone(context),
            running: context.requests.begin(call, id),
            content: with_content.then(|| Content::begin(&call.request, &call.trace)),
            _in_flight: context.metrics.in_flight(),
            operation,
            served: Arc::clone(&call.served),
            inter_token: None,
        }
    }

    /// Records that the request failed before a worker accepted it.
    pub(super) fn refused(&mut self, error: &ServiceError) {
        self.context.metrics.rejected(error);
        self.failed(error);
    }

    fn log(&self, stages: &StageTimes) {
        let total = stages.total();
        let log = self.recorder.log();
        log.record("tokens", self.recorder.tokens());
        log.record("outcome", self.recorder.outcome());
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
        let timings = self.recorder.timings().unwrap_or_default();
        let ms = |stage| from_wire(stage).map(millis);
        warn!(
            parent: self.recorder.log(),
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
            cached_prompt_tokens = self.recorder.usage().map(|usage| usage.cached_prompt_tokens),
            "slow request"
        );
    }

    fn trace(&mut self, total: Duration) {
        let trace = self.recorder.trace();
        if let Some(content) = self.content.take() {
            content.end(trace);
        }
        if let Some(model) = self.served.get().filter(|_| trace.is_exported()) {
            trace.rename(format!("{} {model}", self.operation));
            trace.set(attribute::REQUEST_MODEL, model.to_string());
        }
        self.recorder.finish_trace(self.running.first_token(), total);
        trace.end_at(self.timeline.time_of(self.arrived + total));
    }
}

impl Observe for RequestLog {
    fn event(&mut self, event: &mut GenerateResponse) {
        if let Some(timings) = last_timings(event) {
            self.timeline.end().fill(timings);
        }
        if let Some(content) = &mut self.content {
            content.event(event);
        }
        let now = Instant::now();
        match &event.event {
            Some(Event::Token(delta)) => self.running.add_tokens(delta.ids.len(), now),
            Some(Event::Accepted(accepted)) => {
                self.running.accepted(accepted.prompt_tokens);
                self.recorder.log().record("prompt_tokens", accepted.prompt_tokens);
            }
            _ => {}
        }
        if let Some(gap) = self.recorder.event(event, now) {
            if self.inter_token.is_none() {
                let histogram = |model| self.context.metrics.inter_token(model);
                self.inter_token = self.served.get().map(histogram);
            }
            if let Some(histogram) = &self.inter_token {
                histogram.observe(gap.as_secs_f64());
            }
        }
    }

    fn failed(&mut self, error: &ServiceError) {
        self.recorder.failed(error);
    }

    fn ended(&mut self) {
        self.recorder.ended();
    }
}

impl Drop for RequestLog {
    fn drop(&mut self) {
        let stages = self.timeline.end();
        let total = stages.total();
        self.recorder.log().record("admission_ms", millis(stages.of(Stage::Admission)));
        self.log(&stages);
        self.trace(total);
        let recorder = &self.recorder;
        let ending = Ending {
            outcome: recorder.outcome(),
            code: recorder.code(),
            tokens: recorder.tokens(),
            cached_prompt_tokens: recorder.cached_tokens(),
            timings: recorder.timings(),
        };
        self.running.end(total, ending);
        self.context.metrics.finished(RequestSummary {
            model: self.served.get().cloned(),
            code: recorder.code(),
            prompt_tokens: recorder.prompt_tokens().into(),
            tokens: recorder.tokens(),
            first_token: self.running.first_token(),
            total,
            trace: recorder.exported_trace_id(),
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

fn millis(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

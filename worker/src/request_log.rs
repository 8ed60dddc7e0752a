//! The log line, trace span and metrics of one call, written when it ends.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use stoker_proto::{
    duration::or_zero,
    v1::{GenerateRequest, GenerateResponse, Timings},
};
use stoker_shared::{
    ServiceError, deadline,
    names::attribute,
    observed::Observe,
    telemetry::{
        request::{RequestRecorder, loggable_id, operation},
        trace::TraceSpan,
    },
};
use tokio::time::Instant;
use tonic::Request;
use tracing::{Span, debug, field::Empty, info_span};

use crate::{
    metrics::{Metrics, Stages},
    request_trace::{RequestTrace, StageAttributes, StageEnds},
    worker::Worker,
};

/// Observes a call from its arrival to its last event. It reports when it is dropped, so that calls
/// that the client cancels at any time are reported too.
pub struct RequestLog {
    arrived: Instant,
    recorder: RequestRecorder,
    trace: Arc<RequestTrace>,
    ends: Arc<OnceLock<StageEnds>>,
    metrics: Metrics,
}

impl RequestLog {
    /// Starts to observe a call to `worker`.
    pub fn begin(call: &Request<GenerateRequest>, worker: &Worker) -> Self {
        let arrived = deadline::arrival_time(call);
        let request = call.get_ref();
        let caller = TraceSpan::of_caller(call.metadata());
        let name = format!("{} {}", operation(request), worker.model_name);
        let trace = RequestTrace::start(&caller, name, arrived.into_std());
        let span = trace.span();
        let log = info_span!(
            "generate",
            request_id = loggable_id(request),
            trace_id = span.trace_id(),
            model = &*worker.model_name,
            worker = &*worker.id,
            attempt = request.routing.as_ref().map(|routing| routing.attempt),
            error = Empty,
        );
        let recorder = RequestRecorder::begin(request, log, span.clone());
        if span.is_exported() {
            span.set(attribute::REQUEST_MODEL, worker.model_name.to_string());
            span.set(attribute::WORKER, worker.id.to_string());
        }
        Self {
            arrived,
            recorder,
            trace: Arc::new(trace),
            ends: Arc::default(),
            metrics: worker.metrics.clone(),
        }
    }

    /// Returns the log span of the call.
    pub fn span(&self) -> &Span {
        self.recorder.log()
    }

    /// Returns the trace of the call if it is exported.
    pub fn exported_trace(&self) -> Option<Arc<RequestTrace>> {
        self.trace.span().is_exported().then(|| Arc::clone(&self.trace))
    }

    /// Returns the cell for the ends of the stages of the call.
    pub fn stage_ends(&self) -> Arc<OnceLock<StageEnds>> {
        Arc::clone(&self.ends)
    }

    fn end_trace(&self, total: Duration, stages: Option<Stages>) {
        let trace = self.trace.span();
        if !trace.is_exported() {
            return;
        }
        self.recorder.finish_trace(stages.map(|stages| stages.first_token()), total);
        let arrived = self.arrived.into_std();
        match (self.recorder.timings(), self.ends.get()) {
            (Some(timings), Some(ends)) => {
                trace.set(attribute::STEPS, i64::from(timings.steps));
                trace.set(attribute::PREEMPTIONS, i64::from(timings.preemptions));
                let attributes = StageAttributes {
                    cached_tokens: self.recorder.cached_tokens(),
                    drafted_tokens: timings.drafted_tokens,
                    accepted_tokens: timings.accepted_tokens,
                    detokenize_seconds: or_zero(timings.detokenize).as_secs_f64(),
                };
                self.trace.end_with(arrived, ends, &attributes);
            }
            _ => self.trace.end(arrived + total),
        }
    }
}

impl Observe for RequestLog {
    fn event(&mut self, event: &mut GenerateResponse) {
        if let Some(gap) = self.recorder.event(event, Instant::now()) {
            self.metrics.observe_inter_token(gap);
        }
    }

    fn failed(&mut self, error: &ServiceError) {
        self.recorder.failed(error);
    }
}

impl Drop for RequestLog {
    fn drop(&mut self) {
        let recorder = &self.recorder;
        let stages = recorder.timings().map(|timings| stages(&timings));
        let total = stages.map_or_else(|| self.arrived.elapsed(), |stages| stages.total);
        self.end_trace(total, stages);
        let (prompt_tokens, tokens) = (recorder.prompt_tokens(), recorder.tokens());
        let (outcome, trace) = (recorder.outcome(), recorder.exported_trace_id());
        self.metrics.observe_request(
            outcome,
            prompt_tokens.into(),
            tokens,
            stages,
            trace.as_deref(),
        );
        debug!(parent: recorder.log(), outcome, prompt_tokens, tokens, ?total, "call ended");
    }
}

fn stages(timings: &Timings) -> Stages {
    Stages {
        tokenize: or_zero(timings.tokenize),
        queue: or_zero(timings.queue),
        prefill: or_zero(timings.prefill),
        decode: or_zero(timings.decode),
        stream: or_zero(timings.stream),
        total: or_zero(timings.worker_total),
    }
}

//! What one call has come to, told when it is over: to the log, to its trace and to the metrics.

use std::time::{Duration, SystemTime};

use stoker_proto::duration::from_wire;
use stoker_proto::v1::{
    FinishReason, Finished, GenerateRequest, GenerateResponse, Timings, generate_request::Input,
    generate_response::Event,
};
use stoker_shared::{
    ServiceError, deadline,
    telemetry::{
        names::{attribute, operation, span},
        trace::{SpanKind, TraceSpan},
    },
    validate::MAX_REQUEST_ID,
};
use tokio::time::Instant;
use tonic::Request;
use tracing::{Span, debug, field::Empty, info_span};

use crate::{
    metrics::{Metrics, Stages},
    service::Worker,
};

/// Follows a call from its arrival to its last event. Tells when it is dropped, so that a caller that goes
/// away at any moment is told of too.
pub struct RequestLog {
    arrived: Instant,
    began: SystemTime,
    log: Span,
    trace: TraceSpan,
    metrics: Metrics,
    prompt_tokens: u32,
    cached_tokens: u32,
    tokens: usize,
    timings: Option<Timings>,
    outcome: &'static str,
    code: &'static str,
}

impl RequestLog {
    /// Begins with a call to `worker`.
    pub fn begin(call: &Request<GenerateRequest>, worker: &Worker) -> Self {
        let arrived = deadline::arrived(call);
        let began = SystemTime::now() - arrived.elapsed();
        let request = call.get_ref();
        let operation = match request.input {
            Some(Input::Chat(_)) => operation::CHAT,
            _ => operation::TEXT_COMPLETION,
        };
        // Not checked yet: an id that will be refused is not shown.
        let valid = request.request_id.len() <= MAX_REQUEST_ID
            && request.request_id.bytes().all(|b| b.is_ascii_graphic());
        let id = if valid { request.request_id.as_str() } else { "(invalid)" };
        let caller = TraceSpan::of_caller(call.metadata());
        let name = format!("{operation} {}", worker.model_name);
        let trace = caller.child(name, SpanKind::Server, began);
        if trace.is_recording() {
            trace.set(attribute::OPERATION_NAME, operation);
            trace.set(attribute::PROVIDER_NAME, "stoker");
            trace.set(attribute::REQUEST_ID, id.to_owned());
            trace.set(attribute::REQUEST_MODEL, worker.model_name.to_string());
            trace.set(attribute::WORKER, worker.id.to_string());
            trace.set(attribute::RPC_SYSTEM, "grpc");
            trace.set(attribute::RPC_METHOD, "stoker.v1.Inference/Generate");
        }
        let log = info_span!(
            "answer",
            request_id = id,
            trace_id = trace.trace_id(),
            model = &*worker.model_name,
            worker = &*worker.id,
            attempt = request.routing.as_ref().map(|routing| routing.attempt),
            error = Empty,
        );
        Self {
            arrived,
            began,
            log,
            trace,
            metrics: worker.metrics.clone(),
            prompt_tokens: 0,
            cached_tokens: 0,
            tokens: 0,
            timings: None,
            // Unless something else happens first.
            outcome: ServiceError::Cancelled.reason(),
            code: ServiceError::Cancelled.code_name(),
        }
    }

    /// The call in the log.
    pub fn log(&self) -> &Span {
        &self.log
    }

    /// Takes note of an event before it is sent. True if it is the last one.
    pub fn event(&mut self, event: &Result<GenerateResponse, ServiceError>) -> bool {
        match event.as_ref().map(|response| &response.event) {
            Ok(Some(Event::Accepted(accepted))) => self.prompt_tokens = accepted.prompt_tokens,
            Ok(Some(Event::Token(delta))) => self.tokens += delta.ids.len(),
            // The last one of several continuations.
            Ok(Some(Event::Finished(finished))) if finished.usage.is_some() => {
                self.finished(finished);
                return true;
            }
            Ok(_) => {}
            Err(error) => {
                self.failed(error);
                return true;
            }
        }
        false
    }

    /// The call was refused, or its stream failed.
    pub fn failed(&mut self, error: &ServiceError) {
        (self.outcome, self.code) = (error.reason(), error.code_name());
        // Debug quotes what a client wrote, so that it cannot forge a line.
        self.log.record("error", tracing::field::debug(error.to_string()));
        if self.trace.is_recording() {
            self.trace.set(attribute::ERROR_TYPE, error.reason());
            self.trace.fail(error.to_string());
        }
    }

    fn finished(&mut self, finished: &Finished) {
        self.code = "OK";
        self.cached_tokens = finished.usage.as_ref().map_or(0, |usage| usage.cached_prompt_tokens);
        self.timings = finished.timings.as_deref().copied();
        self.outcome = match finished.reason() {
            FinishReason::Stop => "stop",
            FinishReason::Length => "length",
            FinishReason::Cancelled | FinishReason::Unspecified => "cancelled",
        };
    }

    fn trace(&self, total: Duration, stages: Option<Stages>) {
        let trace = &self.trace;
        if !trace.is_recording() {
            return;
        }
        trace.set(attribute::RPC_STATUS, self.code);
        trace.set(attribute::INPUT_TOKENS, i64::from(self.prompt_tokens));
        trace.set(attribute::CACHED_TOKENS, i64::from(self.cached_tokens));
        trace.set(attribute::OUTPUT_TOKENS, i64::try_from(self.tokens).unwrap_or(i64::MAX));
        trace.set(attribute::TIME_END_TO_END, total.as_secs_f64());
        if let Some(stages) = stages {
            let first = stages.tokenize + stages.queue + stages.prefill;
            trace.set_list(attribute::FINISH_REASONS, [self.outcome]);
            trace.set(attribute::TIME_IN_QUEUE, stages.queue.as_secs_f64());
            trace.set(attribute::TIME_TO_FIRST_TOKEN, first.as_secs_f64());
            trace.set(attribute::TIME_IN_PREFILL, stages.prefill.as_secs_f64());
            trace.set(attribute::TIME_IN_DECODE, stages.decode.as_secs_f64());
            let tokenized = trace.stage(span::TOKENIZE, self.began, stages.tokenize);
            let scheduled = trace.stage(span::QUEUE, tokenized, stages.queue);
            let prefilled = trace.stage(span::PREFILL, scheduled, stages.prefill);
            trace.stage(span::DECODE, prefilled, stages.decode);
        }
        if let Some(timings) = self.timings {
            trace.set(attribute::STEPS, i64::from(timings.steps));
            trace.set(attribute::PREEMPTIONS, i64::from(timings.preemptions));
        }
        trace.end();
    }
}

impl Drop for RequestLog {
    fn drop(&mut self) {
        let total = self.arrived.elapsed();
        let stages = self.timings.map(|timings| stages(&timings));
        self.trace(total, stages);
        let (prompt, tokens) = (self.prompt_tokens, self.tokens);
        self.metrics.over(self.outcome, prompt.into(), tokens as u64, stages);
        let outcome = self.outcome;
        debug!(parent: &self.log, outcome, prompt_tokens = prompt, tokens, ?total, "call over");
    }
}

fn stages(timings: &Timings) -> Stages {
    let of = |stage| from_wire(stage).unwrap_or_default();
    Stages {
        tokenize: of(timings.tokenize),
        queue: of(timings.queue),
        prefill: of(timings.prefill),
        decode: of(timings.decode),
        total: of(timings.worker_total),
    }
}

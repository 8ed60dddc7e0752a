//! The log line, trace span and metrics of one call, written when it ends.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use stoker_proto::duration::from_wire;
use stoker_proto::v1::{
    FinishReason, Finished, GenerateRequest, GenerateResponse, Timings, generate_request::Input,
    generate_response::Event,
};
use stoker_shared::{
    ServiceError, deadline,
    telemetry::{
        names::{attribute, operation},
        trace::TraceSpan,
    },
    validate::MAX_REQUEST_ID,
};
use tokio::time::Instant;
use tonic::Request;
use tracing::{Span, debug, field::Empty, info_span};

use crate::{
    metrics::{Metrics, Stages},
    request_trace::{RequestTrace, StageAttributes, StageEnds},
    service::Worker,
};

/// Observes a call from its arrival to its last event. It reports when it is dropped, so that calls
/// that the client cancels at any time are reported too.
pub struct RequestLog {
    arrived: Instant,
    log: Span,
    trace: Arc<RequestTrace>,
    ends: Arc<OnceLock<StageEnds>>,
    metrics: Metrics,
    prompt_tokens: u32,
    cached_tokens: u32,
    tokens: usize,
    timings: Option<Timings>,
    /// When the last event with tokens of each choice was sent.
    last_tokens: Vec<Option<Instant>>,
    outcome: &'static str,
    code: &'static str,
}

impl RequestLog {
    /// Starts to observe a call to `worker`.
    pub fn begin(call: &Request<GenerateRequest>, worker: &Worker) -> Self {
        let arrived = deadline::arrival_time(call);
        let request = call.get_ref();
        let operation = match request.input {
            Some(Input::Chat(_)) => operation::CHAT,
            _ => operation::TEXT_COMPLETION,
        };
        // The request is not validated yet, and an invalid id must not reach the log.
        let valid = request.request_id.len() <= MAX_REQUEST_ID
            && request.request_id.bytes().all(|b| b.is_ascii_graphic());
        let id = if valid { request.request_id.as_str() } else { "(invalid)" };
        let caller = TraceSpan::of_caller(call.metadata());
        let name = format!("{operation} {}", worker.model_name);
        let request_trace = RequestTrace::start(&caller, name, arrived.into_std());
        let trace = request_trace.span();
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
            "generate",
            request_id = id,
            trace_id = trace.trace_id(),
            model = &*worker.model_name,
            worker = &*worker.id,
            attempt = request.routing.as_ref().map(|routing| routing.attempt),
            error = Empty,
        );
        Self {
            arrived,
            log,
            trace: Arc::new(request_trace),
            ends: Arc::default(),
            metrics: worker.metrics.clone(),
            prompt_tokens: 0,
            cached_tokens: 0,
            tokens: 0,
            timings: None,
            last_tokens: Vec::new(),
            // The outcome if the stream is dropped before its last event.
            outcome: ServiceError::Cancelled.reason(),
            code: ServiceError::Cancelled.code_name(),
        }
    }

    /// Returns the log span of the call.
    pub fn span(&self) -> &Span {
        &self.log
    }

    /// Returns the trace of the call if it is exported.
    pub fn exported_trace(&self) -> Option<Arc<RequestTrace>> {
        self.trace.span().is_recording().then(|| Arc::clone(&self.trace))
    }

    /// Returns the cell for the ends of the stages of the call.
    pub fn stage_ends(&self) -> Arc<OnceLock<StageEnds>> {
        Arc::clone(&self.ends)
    }

    /// Observes an event before it is sent. Returns true if it is the last one.
    pub fn observe(&mut self, event: &Result<GenerateResponse, ServiceError>) -> bool {
        let choice = event.as_ref().map_or(0, |response| response.choice);
        match event.as_ref().map(|response| &response.event) {
            Ok(Some(Event::Accepted(accepted))) => self.prompt_tokens = accepted.prompt_tokens,
            Ok(Some(Event::Token(delta))) => {
                self.tokens += delta.ids.len();
                self.inter_token(choice);
            }
            // Only the last choice to finish has usage.
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

    fn inter_token(&mut self, choice: u32) {
        let choice = choice as usize;
        if self.last_tokens.len() <= choice {
            self.last_tokens.resize(choice + 1, None);
        }
        let now = Instant::now();
        if let Some(last) = self.last_tokens[choice].replace(now) {
            self.metrics.observe_inter_token(now - last);
        }
    }

    /// Records that the call was rejected, or that its stream failed.
    pub fn failed(&mut self, error: &ServiceError) {
        (self.outcome, self.code) = (error.reason(), error.code_name());
        // Debug escapes text of the client, so that it cannot forge a log line.
        self.log.record("error", tracing::field::debug(error.to_string()));
        let trace = self.trace.span();
        if trace.is_recording() {
            trace.set(attribute::ERROR_TYPE, error.reason());
            trace.fail(error.to_string());
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

    fn end_trace(&self, total: Duration, stages: Option<Stages>) {
        let trace = self.trace.span();
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
        }
        let arrived = self.arrived.into_std();
        match (self.timings, self.ends.get()) {
            (Some(timings), Some(ends)) => {
                trace.set(attribute::STEPS, i64::from(timings.steps));
                trace.set(attribute::PREEMPTIONS, i64::from(timings.preemptions));
                let detokenize = from_wire(timings.detokenize).unwrap_or_default();
                let attributes = StageAttributes {
                    cached_tokens: self.cached_tokens,
                    drafted_tokens: timings.drafted_tokens,
                    accepted_tokens: timings.accepted_tokens,
                    detokenize_seconds: detokenize.as_secs_f64(),
                };
                self.trace.end_with(arrived, ends, &attributes);
            }
            _ => self.trace.end(arrived + total),
        }
    }
}

impl Drop for RequestLog {
    fn drop(&mut self) {
        let stages = self.timings.map(|timings| stages(&timings));
        let total = stages.map_or_else(|| self.arrived.elapsed(), |stages| stages.total);
        self.end_trace(total, stages);
        let (prompt, tokens) = (self.prompt_tokens, self.tokens);
        let trace = self.trace.span();
        let trace = if trace.is_sampled() { trace.trace_id() } else { None };
        let generated = tokens as u64;
        self.metrics.observe_request(
            self.outcome,
            prompt.into(),
            generated,
            stages,
            trace.as_deref(),
        );
        let outcome = self.outcome;
        debug!(parent: &self.log, outcome, prompt_tokens = prompt, tokens, ?total, "call ended");
    }
}

fn stages(timings: &Timings) -> Stages {
    let duration = |stage| from_wire(stage).unwrap_or_default();
    Stages {
        tokenize: duration(timings.tokenize),
        queue: duration(timings.queue),
        prefill: duration(timings.prefill),
        decode: duration(timings.decode),
        stream: duration(timings.stream),
        total: duration(timings.worker_total),
    }
}

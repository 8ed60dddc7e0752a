//! Requests as JSON.

use serde::Serialize;
use stoker_proto::{
    duration::{from_wire, or_zero},
    v1::RequestStage,
};

use super::{Found, longest_stage};
use crate::{clock, error::Error, output::Timings};

/// One request of `--json`. Times are in seconds, and begin at the arrival.
#[derive(Serialize)]
struct Request<'a> {
    router: String,
    request_id: &'a str,
    trace_id: Option<&'a str>,
    tenant: Option<&'a str>,
    model: Option<&'a str>,
    arrived: String,
    duration_seconds: f64,
    running: bool,
    outcome: Option<&'a str>,
    code: Option<&'a str>,
    prompt_tokens: u32,
    cached_prompt_tokens: u32,
    generated_tokens: u64,
    time_to_first_token_seconds: Option<f64>,
    longest_stage: &'static str,
    stages: Vec<Stage>,
    attempts: Vec<Attempt<'a>>,
    timings: Option<Timings>,
}

#[derive(Serialize)]
struct Stage {
    stage: &'static str,
    start_seconds: f64,
    duration_seconds: f64,
}

#[derive(Serialize)]
struct Attempt<'a> {
    attempt: u32,
    worker: &'a str,
    cause: Option<&'a str>,
    start_seconds: f64,
    duration_seconds: f64,
    running: bool,
    error: Option<&'a str>,
}

/// Returns the requests as one array.
pub(super) fn requests(found: &[Found]) -> Result<String, Error> {
    let requests: Vec<_> = found.iter().map(request).collect();
    let text =
        serde_json::to_string(&requests).map_err(|error| Error::Failed(error.to_string()))?;
    Ok(text + "\n")
}

fn request(found: &Found) -> Request<'_> {
    fn present(text: &str) -> Option<&str> {
        (!text.is_empty()).then_some(text)
    }
    let record = &found.record;
    let seconds = |value| or_zero(value).as_secs_f64();
    let stages = record.stages.iter().map(|stage| Stage {
        stage: match stage.stage() {
            RequestStage::Admission => "admission",
            RequestStage::Route => "route",
            RequestStage::Attempt => "attempt",
            RequestStage::Resume => "resume",
            RequestStage::Unspecified => "unknown",
        },
        start_seconds: seconds(stage.start),
        duration_seconds: seconds(stage.duration),
    });
    let attempts = record.attempts.iter().map(|attempt| Attempt {
        attempt: attempt.attempt,
        worker: &attempt.worker,
        cause: present(&attempt.cause),
        start_seconds: seconds(attempt.start),
        duration_seconds: seconds(attempt.duration),
        running: attempt.running,
        error: present(&attempt.error),
    });
    Request {
        router: found.router.to_string(),
        request_id: &record.request_id,
        trace_id: present(&record.trace_id),
        tenant: present(&record.tenant),
        model: present(&record.model),
        arrived: clock::date_time(record.arrived),
        duration_seconds: seconds(record.duration),
        running: record.code.is_empty(),
        outcome: present(&record.outcome),
        code: present(&record.code),
        prompt_tokens: record.prompt_tokens,
        cached_prompt_tokens: record.cached_prompt_tokens,
        generated_tokens: record.generated_tokens,
        time_to_first_token_seconds: from_wire(record.time_to_first_token)
            .map(|first| first.as_secs_f64()),
        longest_stage: longest_stage(record),
        stages: stages.collect(),
        attempts: attempts.collect(),
        timings: record.timings.as_ref().map(Timings::of),
    }
}

//! Metrics of the router.

use super::*;

/// `stoker_router_requests_total`
pub const REQUESTS: Metric = metric(
    "stoker_router_requests",
    Kind::Counter,
    &[label::MODEL, label::CODE],
    "Requests that are over, by how they ended",
);
/// `stoker_router_rejections_total`
pub const REJECTIONS: Metric = metric(
    "stoker_router_rejections",
    Kind::Counter,
    &[label::REASON],
    "Requests that were refused before any worker accepted them",
);
/// `stoker_router_retries_total`
pub const RETRIES: Metric = metric(
    "stoker_router_retries",
    Kind::Counter,
    &[label::REASON],
    "Attempts at another worker, by why the one before failed",
);
/// `stoker_router_resumes_total`
pub const RESUMES: Metric = metric(
    "stoker_router_resumes",
    Kind::Counter,
    &[label::REASON],
    "Accepted streams that went on at another worker, by why they left the one before",
);
/// `stoker_router_resume_duration_seconds`
pub const RESUME_TIME: Metric = seconds(
    "stoker_router_resume_duration",
    FIRST_TOKEN,
    &[],
    "From the last event of a lost worker until another one has taken the stream over",
);
/// `stoker_router_unresumable_streams_total`
pub const UNRESUMABLE_STREAMS: Metric = metric(
    "stoker_router_unresumable_streams",
    Kind::Counter,
    &[],
    "Streams that could not be resumed any more, since the memory for answers was full",
);
/// `stoker_router_hedges_total`
pub const HEDGES: Metric = metric(
    "stoker_router_hedges",
    Kind::Counter,
    &[label::OUTCOME],
    "Second attempts beside a slow first one, by whose token came first",
);
/// `stoker_router_requests_in_flight`
pub const IN_FLIGHT: Metric = metric(
    "stoker_router_requests_in_flight",
    Kind::Gauge,
    &[],
    "Requests between their arrival and their last event",
);
/// `stoker_router_requests_queued`
pub const QUEUED: Metric =
    metric("stoker_router_requests_queued", Kind::Gauge, &[], "Requests that wait for a place");
/// `stoker_router_shed_total`
pub const SHED: Metric = metric(
    "stoker_router_shed",
    Kind::Counter,
    &[label::LIMIT],
    "Requests that admission refused, by the limit that they met",
);
/// `stoker_router_request_memory_bytes`
pub const REQUEST_MEMORY: Metric = Metric {
    unit: Some("bytes"),
    ..metric(
        "stoker_router_request_memory",
        Kind::Gauge,
        &[],
        "Memory that requests hold, waiting or running",
    )
};
/// `stoker_router_ejections_total`
pub const EJECTIONS: Metric = metric(
    "stoker_router_ejections",
    Kind::Counter,
    &[label::REASON],
    "Times that a worker was left alone for a while, by why",
);
/// `stoker_router_workers`
pub const WORKERS: Metric = metric(
    "stoker_router_workers",
    Kind::Gauge,
    &[label::STATE],
    "Workers that are known; live ones take requests, ejected ones none or a few to see how they go",
);
/// `stoker_router_prompt_tokens_total`
pub const PROMPT_TOKENS: Metric = metric(
    "stoker_router_prompt_tokens",
    Kind::Counter,
    &[label::MODEL],
    "Tokens of prompts that a worker accepted",
);
/// `stoker_router_generated_tokens_total`
pub const GENERATED_TOKENS: Metric = metric(
    "stoker_router_generated_tokens",
    Kind::Counter,
    &[label::MODEL],
    "Tokens that were sent to clients",
);
/// `stoker_router_request_duration_seconds`
pub const DURATION: Metric = seconds(
    "stoker_router_request_duration",
    super::DURATION,
    &[label::MODEL],
    "From arrival to the last event, of requests that were answered",
);
/// `stoker_router_admission_wait_seconds`
pub const ADMISSION_WAIT: Metric = seconds(
    "stoker_router_admission_wait",
    FIRST_TOKEN,
    &[],
    "What admitted requests waited for a place",
);
/// `stoker_router_time_to_first_token_seconds`
pub const FIRST_TOKEN_TIME: Metric = seconds(
    "stoker_router_time_to_first_token",
    FIRST_TOKEN,
    &[label::MODEL],
    "From arrival to the first token",
);
/// `stoker_router_time_per_output_token_seconds`
pub const TOKEN_TIME: Metric = seconds(
    "stoker_router_time_per_output_token",
    NEXT_TOKEN,
    &[label::MODEL],
    "Between two tokens after the first, on average over one answer",
);

/// All of them.
pub const ALL: &[Metric] = &[
    REQUESTS,
    REJECTIONS,
    RETRIES,
    RESUMES,
    RESUME_TIME,
    UNRESUMABLE_STREAMS,
    HEDGES,
    IN_FLIGHT,
    QUEUED,
    SHED,
    REQUEST_MEMORY,
    EJECTIONS,
    WORKERS,
    PROMPT_TOKENS,
    GENERATED_TOKENS,
    DURATION,
    ADMISSION_WAIT,
    FIRST_TOKEN_TIME,
    TOKEN_TIME,
];

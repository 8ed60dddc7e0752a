//! Metrics of the router.

use super::*;

/// `stoker_router_requests_total`
pub const REQUESTS: Metric = metric(
    "stoker_router_requests",
    Kind::Counter,
    &[label::MODEL, label::CODE],
    "Completed and failed requests, by result",
);
/// `stoker_router_rejections_total`
pub const REJECTIONS: Metric = metric(
    "stoker_router_rejections",
    Kind::Counter,
    &[label::REASON],
    "Requests that were rejected before a worker accepted them",
);
/// `stoker_router_retries_total`
pub const RETRIES: Metric = metric(
    "stoker_router_retries",
    Kind::Counter,
    &[label::REASON],
    "Retries on another worker, by the reason for which the previous attempt failed",
);
/// `stoker_router_resumes_total`
pub const RESUMES: Metric = metric(
    "stoker_router_resumes",
    Kind::Counter,
    &[label::REASON],
    "Accepted streams that were resumed on another worker, by the reason for which they left the previous one",
);
/// `stoker_router_resume_duration_seconds`
pub const RESUME_TIME: Metric = seconds(
    "stoker_router_resume_duration",
    FIRST_TOKEN,
    &[],
    "Time from the last event of a lost worker until another worker resumed the stream",
);
/// `stoker_router_unresumable_streams_total`
pub const UNRESUMABLE_STREAMS: Metric = metric(
    "stoker_router_unresumable_streams",
    Kind::Counter,
    &[],
    "Streams that became unresumable because the memory for resumable responses was exhausted",
);
/// `stoker_router_hedges_total`
pub const HEDGES: Metric = metric(
    "stoker_router_hedges",
    Kind::Counter,
    &[label::OUTCOME],
    "Hedged attempts in addition to a slow first one, by the attempt that produced the first token",
);
/// `stoker_router_requests_in_flight`
pub const IN_FLIGHT: Metric = metric(
    "stoker_router_requests_in_flight",
    Kind::Gauge,
    &[],
    "Requests in flight, from their arrival to their last event",
);
/// `stoker_router_requests_queued`
pub const QUEUED: Metric =
    metric("stoker_router_requests_queued", Kind::Gauge, &[], "Requests in the admission queue");
/// `stoker_router_shed_total`
pub const SHED: Metric = metric(
    "stoker_router_shed",
    Kind::Counter,
    &[label::LIMIT],
    "Requests that admission control rejected, by the limit that was reached",
);
/// `stoker_router_request_memory_bytes`
pub const REQUEST_MEMORY: Metric = Metric {
    unit: Some("bytes"),
    ..metric(
        "stoker_router_request_memory",
        Kind::Gauge,
        &[],
        "Memory used by queued and running requests",
    )
};
/// `stoker_router_ejections_total`
pub const EJECTIONS: Metric = metric(
    "stoker_router_ejections",
    Kind::Counter,
    &[label::REASON],
    "Ejections of workers, by reason",
);
/// `stoker_router_workers`
pub const WORKERS: Metric = metric(
    "stoker_router_workers",
    Kind::Gauge,
    &[label::STATE],
    "Known workers, by state; an ejected worker receives no requests, or a few as a probe when half-open",
);
/// `stoker_router_prompt_tokens_total`
pub const PROMPT_TOKENS: Metric = metric(
    "stoker_router_prompt_tokens",
    Kind::Counter,
    &[label::MODEL],
    "Prompt tokens of requests that a worker accepted",
);
/// `stoker_router_generated_tokens_total`
pub const GENERATED_TOKENS: Metric = metric(
    "stoker_router_generated_tokens",
    Kind::Counter,
    &[label::MODEL],
    "Generated tokens that were sent to clients",
);
/// `stoker_router_request_duration_seconds`
pub const DURATION: Metric = seconds(
    "stoker_router_request_duration",
    super::DURATION,
    &[label::MODEL],
    "Time from arrival to the last event of completed requests",
);
/// `stoker_router_admission_wait_seconds`
pub const ADMISSION_WAIT: Metric = seconds(
    "stoker_router_admission_wait",
    FIRST_TOKEN,
    &[],
    "Time of admitted requests in the admission queue",
);
/// `stoker_router_time_to_first_token_seconds`
pub const FIRST_TOKEN_TIME: Metric = seconds(
    "stoker_router_time_to_first_token",
    FIRST_TOKEN,
    &[label::MODEL],
    "Time from arrival to the first token",
);
/// `stoker_router_inter_token_latency_seconds`
pub const INTER_TOKEN: Metric = seconds(
    "stoker_router_inter_token_latency",
    NEXT_TOKEN,
    &[label::MODEL],
    "Time between two events with tokens of a choice, as they are passed to the client",
);
/// `stoker_router_worker_outstanding_tokens`
pub const OUTSTANDING: Metric = metric(
    "stoker_router_worker_outstanding_tokens",
    Kind::Gauge,
    &[label::WORKER],
    "Estimated tokens that this router's requests still need of a worker",
);
/// `stoker_router_model_sequences_running`
pub const RUNNING: Metric = metric(
    "stoker_router_model_sequences_running",
    Kind::Gauge,
    &[label::MODEL],
    "Sequences that run at the live workers of a model, as they last reported",
);
/// `stoker_router_model_sequences_waiting`
pub const WAITING: Metric = metric(
    "stoker_router_model_sequences_waiting",
    Kind::Gauge,
    &[label::MODEL],
    "Sequences that wait at the live workers of a model, as they last reported",
);
/// `stoker_router_model_kv_cache_usage_ratio`
pub const KV_USAGE: Metric = Metric {
    unit: Some("ratio"),
    ..metric(
        "stoker_router_model_kv_cache_usage",
        Kind::Gauge,
        &[label::MODEL],
        "Fraction of the KV caches of the live workers of a model that is in use, from 0 to 1",
    )
};
/// `stoker_router_model_cache_config_info`
pub const CACHE_CONFIG: Metric = metric(
    // A gauge of 1, since infos of prometheus-client do not change.
    "stoker_router_model_cache_config_info",
    Kind::Gauge,
    &[label::MODEL, label::BLOCK_SIZE, label::NUM_BLOCKS],
    "Configuration of the KV caches of the live workers of a model together",
);
/// `stoker_router_time_per_output_token_seconds`
pub const TOKEN_TIME: Metric = seconds(
    "stoker_router_time_per_output_token",
    NEXT_TOKEN,
    &[label::MODEL],
    "Mean time between two output tokens of a response",
);

/// `stoker_router_tenant_requests_total`
pub const TENANT_REQUESTS: Metric = metric(
    "stoker_router_tenant_requests",
    Kind::Counter,
    &[label::TENANT],
    "Requests of a tenant of `--api-keys` that were within its limits",
);
/// `stoker_router_tenant_limited_total`
pub const TENANT_LIMITED: Metric = metric(
    "stoker_router_tenant_limited",
    Kind::Counter,
    &[label::TENANT, label::LIMIT],
    "Requests of a tenant that were refused because of a limit of its own",
);
/// `stoker_router_tenant_prompt_tokens_total`
pub const TENANT_PROMPT_TOKENS: Metric = metric(
    "stoker_router_tenant_prompt_tokens",
    Kind::Counter,
    &[label::TENANT],
    "Prompt tokens of a tenant's requests that a worker accepted",
);
/// `stoker_router_tenant_generated_tokens_total`
pub const TENANT_GENERATED_TOKENS: Metric = metric(
    "stoker_router_tenant_generated_tokens",
    Kind::Counter,
    &[label::TENANT],
    "Generated tokens of a tenant's requests",
);

/// All metrics of this module.
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
    INTER_TOKEN,
    TENANT_REQUESTS,
    TENANT_LIMITED,
    TENANT_PROMPT_TOKENS,
    TENANT_GENERATED_TOKENS,
    OUTSTANDING,
    RUNNING,
    WAITING,
    KV_USAGE,
    CACHE_CONFIG,
];

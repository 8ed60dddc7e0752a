//! Metrics of a worker. All of them have the labels `model` and `worker` too.

use super::*;

/// `stoker_worker_sequences_running`
pub const RUNNING: Metric =
    metric("stoker_worker_sequences_running", Kind::Gauge, &[], "Sequences in the batch");
/// `stoker_worker_sequences_waiting`
pub const WAITING: Metric = metric(
    "stoker_worker_sequences_waiting",
    Kind::Gauge,
    &[],
    "Sequences that wait for a place in the batch",
);
/// `stoker_worker_tokens_queued`
pub const TOKENS_QUEUED: Metric = metric(
    "stoker_worker_tokens_queued",
    Kind::Gauge,
    &[],
    "Tokens that are known and still to be computed",
);
/// `stoker_worker_kv_cache_usage_ratio`
pub const KV_USAGE: Metric = Metric {
    unit: Some("ratio"),
    ..metric(
        "stoker_worker_kv_cache_usage",
        Kind::Gauge,
        &[],
        "The part of the KV cache that is in use, from 0 to 1",
    )
};
/// `stoker_worker_kv_blocks`
pub const KV_BLOCKS: Metric =
    metric("stoker_worker_kv_blocks", Kind::Gauge, &[], "Blocks of the KV cache");
/// `stoker_worker_kv_blocks_free`
pub const KV_BLOCKS_FREE: Metric = metric(
    "stoker_worker_kv_blocks_free",
    Kind::Gauge,
    &[],
    "Blocks of the KV cache that nobody holds",
);
/// `stoker_worker_kv_blocks_cached`
pub const KV_BLOCKS_CACHED: Metric = metric(
    "stoker_worker_kv_blocks_cached",
    Kind::Gauge,
    &[],
    "Free blocks of the KV cache whose content can still be found",
);
/// `stoker_worker_prefix_cache_queried_tokens_total`
pub const PREFIX_QUERIED: Metric = metric(
    "stoker_worker_prefix_cache_queried_tokens",
    Kind::Counter,
    &[],
    "Tokens of prompts that were looked for in the prefix cache",
);
/// `stoker_worker_prefix_cache_hit_tokens_total`
pub const PREFIX_HIT: Metric = metric(
    "stoker_worker_prefix_cache_hit_tokens",
    Kind::Counter,
    &[],
    "Tokens of prompts that were there, and need not be computed",
);
/// `stoker_worker_steps_total`
pub const STEPS: Metric = metric("stoker_worker_steps", Kind::Counter, &[], "Steps of the engine");
/// `stoker_worker_preemptions_total`
pub const PREEMPTIONS: Metric = metric(
    "stoker_worker_preemptions",
    Kind::Counter,
    &[],
    "Times that a sequence gave its blocks back to be computed again later",
);
/// `stoker_worker_draft_tokens_total`
pub const DRAFT_TOKENS: Metric = metric(
    "stoker_worker_draft_tokens",
    Kind::Counter,
    &[],
    "Tokens that were guessed ahead and looked at",
);
/// `stoker_worker_draft_tokens_accepted_total`
pub const DRAFT_TOKENS_ACCEPTED: Metric = metric(
    "stoker_worker_draft_tokens_accepted",
    Kind::Counter,
    &[],
    "Guessed tokens that were right: each spared its sequence a step",
);
/// `stoker_worker_deadline_rejections_total`
pub const DEADLINE_REJECTIONS: Metric = metric(
    "stoker_worker_deadline_rejections",
    Kind::Counter,
    &[],
    "Requests that were refused, or given up while they waited, since they could not meet their deadline",
);
/// `stoker_worker_step_duration_seconds`
pub const STEP_DURATION: Metric =
    seconds("stoker_worker_step_duration", NEXT_TOKEN, &[], "One step of the engine");
/// `stoker_worker_requests_total`
pub const REQUESTS: Metric = metric(
    "stoker_worker_requests",
    Kind::Counter,
    &[label::OUTCOME],
    "Requests that are over, by how they ended",
);
/// `stoker_worker_prompt_tokens_total`
pub const PROMPT_TOKENS: Metric = metric(
    "stoker_worker_prompt_tokens",
    Kind::Counter,
    &[],
    "Tokens of the prompts of requests that are over",
);
/// `stoker_worker_generated_tokens_total`
pub const GENERATED_TOKENS: Metric = metric(
    "stoker_worker_generated_tokens",
    Kind::Counter,
    &[],
    "Tokens of the answers of requests that are over",
);
/// `stoker_worker_request_duration_seconds`
pub const DURATION: Metric = seconds(
    "stoker_worker_request_duration",
    super::DURATION,
    &[],
    "From arrival to the last event, of requests that were answered",
);
/// `stoker_worker_time_to_first_token_seconds`
pub const FIRST_TOKEN_TIME: Metric = seconds(
    "stoker_worker_time_to_first_token",
    FIRST_TOKEN,
    &[],
    "From arrival to the first token",
);
/// `stoker_worker_tokenize_time_seconds`
pub const TOKENIZE_TIME: Metric = seconds(
    "stoker_worker_tokenize_time",
    FIRST_TOKEN,
    &[],
    "Checking and tokenising of one request",
);
/// `stoker_worker_queue_time_seconds`
pub const QUEUE_TIME: Metric = seconds(
    "stoker_worker_queue_time",
    FIRST_TOKEN,
    &[],
    "Waiting of one request for a place in the batch",
);
/// `stoker_worker_prefill_time_seconds`
pub const PREFILL_TIME: Metric = seconds(
    "stoker_worker_prefill_time",
    FIRST_TOKEN,
    &[],
    "From the first step of one request to its first token",
);
/// `stoker_worker_decode_time_seconds`
pub const DECODE_TIME: Metric = seconds(
    "stoker_worker_decode_time",
    super::DURATION,
    &[],
    "From the first token of one request to its last",
);

/// All of them.
pub const ALL: &[Metric] = &[
    RUNNING,
    WAITING,
    TOKENS_QUEUED,
    KV_USAGE,
    KV_BLOCKS,
    KV_BLOCKS_FREE,
    KV_BLOCKS_CACHED,
    PREFIX_QUERIED,
    PREFIX_HIT,
    STEPS,
    PREEMPTIONS,
    DRAFT_TOKENS,
    DRAFT_TOKENS_ACCEPTED,
    DEADLINE_REJECTIONS,
    STEP_DURATION,
    REQUESTS,
    PROMPT_TOKENS,
    GENERATED_TOKENS,
    DURATION,
    FIRST_TOKEN_TIME,
    TOKENIZE_TIME,
    QUEUE_TIME,
    PREFILL_TIME,
    DECODE_TIME,
];

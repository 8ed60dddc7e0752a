//! Metrics of a worker. All of them also have the labels `model` and `worker`.

use super::*;

/// `stoker_worker_sequences_running`
pub const RUNNING: Metric = metric(
    "stoker_worker_sequences_running",
    Kind::Gauge,
    &[],
    "Running sequences, which are in the batch",
);
/// `stoker_worker_sequences_waiting`
pub const WAITING: Metric = metric(
    "stoker_worker_sequences_waiting",
    Kind::Gauge,
    &[],
    "Waiting sequences, which are not in the batch yet",
);
/// `stoker_worker_tokens_queued`
pub const TOKENS_QUEUED: Metric = metric(
    "stoker_worker_tokens_queued",
    Kind::Gauge,
    &[],
    "Known tokens of running and waiting sequences that are still to be computed",
);
/// `stoker_worker_kv_cache_usage_ratio`
pub const KV_USAGE: Metric = Metric {
    unit: Some("ratio"),
    ..metric(
        "stoker_worker_kv_cache_usage",
        Kind::Gauge,
        &[],
        "Fraction of the KV cache that is in use, from 0 to 1",
    )
};
/// `stoker_worker_kv_blocks`
pub const KV_BLOCKS: Metric =
    metric("stoker_worker_kv_blocks", Kind::Gauge, &[], "KV cache blocks in total");
/// `stoker_worker_kv_blocks_free`
pub const KV_BLOCKS_FREE: Metric = metric(
    "stoker_worker_kv_blocks_free",
    Kind::Gauge,
    &[],
    "KV cache blocks that no sequence uses",
);
/// `stoker_worker_kv_blocks_cached`
pub const KV_BLOCKS_CACHED: Metric = metric(
    "stoker_worker_kv_blocks_cached",
    Kind::Gauge,
    &[],
    "Free KV cache blocks whose content is still cached",
);
/// `stoker_worker_prefix_cache_queried_tokens_total`
pub const PREFIX_QUERIED: Metric = metric(
    "stoker_worker_prefix_cache_queried_tokens",
    Kind::Counter,
    &[],
    "Prompt tokens that were looked up in the prefix cache",
);
/// `stoker_worker_prefix_cache_hit_tokens_total`
pub const PREFIX_HIT: Metric = metric(
    "stoker_worker_prefix_cache_hit_tokens",
    Kind::Counter,
    &[],
    "Prompt tokens that were found in the prefix cache",
);
/// `stoker_worker_steps_total`
pub const STEPS: Metric = metric("stoker_worker_steps", Kind::Counter, &[], "Engine steps");
/// `stoker_worker_preemptions_total`
pub const PREEMPTIONS: Metric = metric(
    "stoker_worker_preemptions",
    Kind::Counter,
    &[],
    "Preemptions: sequences that lost their KV blocks and were recomputed later",
);
/// `stoker_worker_draft_tokens_total`
pub const DRAFT_TOKENS: Metric = metric(
    "stoker_worker_draft_tokens",
    Kind::Counter,
    &[],
    "Draft tokens that were verified (speculative decoding)",
);
/// `stoker_worker_draft_tokens_accepted_total`
pub const DRAFT_TOKENS_ACCEPTED: Metric = metric(
    "stoker_worker_draft_tokens_accepted",
    Kind::Counter,
    &[],
    "Draft tokens that were accepted (speculative decoding)",
);
/// `stoker_worker_deadline_rejections_total`
pub const DEADLINE_REJECTIONS: Metric = metric(
    "stoker_worker_deadline_rejections",
    Kind::Counter,
    &[],
    "Requests that were rejected, or dropped from the queue, because they could not meet their deadline",
);
/// `stoker_worker_step_duration_seconds`
pub const STEP_DURATION: Metric =
    seconds("stoker_worker_step_duration", NEXT_TOKEN, &[], "Duration of an engine step");
/// `stoker_worker_step_sequences`
pub const STEP_SEQUENCES: Metric = metric(
    "stoker_worker_step_sequences",
    Kind::Histogram { buckets: super::SEQUENCES },
    &[],
    "Sequences in the batch of an engine step",
);
/// `stoker_worker_step_tokens`
pub const STEP_TOKENS: Metric = metric(
    "stoker_worker_step_tokens",
    Kind::Histogram { buckets: super::STEP_TOKENS },
    &[],
    "Tokens that an engine step computes",
);
/// `stoker_worker_read_bytes_total`
pub const BYTES_READ: Metric = Metric {
    unit: Some("bytes"),
    ..metric(
        "stoker_worker_read",
        Kind::Counter,
        &[],
        "Weights and KV cache that engine steps have read; its rate is the used memory bandwidth",
    )
};
/// `stoker_worker_memory_bandwidth_utilization_ratio`
pub const BANDWIDTH_USAGE: Metric = Metric {
    unit: Some("ratio"),
    ..metric(
        "stoker_worker_memory_bandwidth_utilization",
        Kind::Gauge,
        &[],
        "Memory bandwidth of the last engine step as a fraction of the highest of any step, from 0 to 1",
    )
};
/// `stoker_worker_cache_config_info`
pub const CACHE_CONFIG: Metric = metric(
    "stoker_worker_cache_config",
    Kind::Info,
    &[label::BLOCK_SIZE, label::NUM_BLOCKS],
    "Configuration of the KV cache",
);
/// `stoker_worker_device_info`
pub const DEVICE: Metric = metric(
    "stoker_worker_device",
    Kind::Info,
    &[label::CLASS, label::DEVICE, label::QUANTIZATION, label::DIGEST],
    "The device, and the weights on it",
);
/// `stoker_worker_requests_total`
pub const REQUESTS: Metric = metric(
    "stoker_worker_requests",
    Kind::Counter,
    &[label::OUTCOME],
    "Completed and failed requests, by result",
);
/// `stoker_worker_prompt_tokens_total`
pub const PROMPT_TOKENS: Metric = metric(
    "stoker_worker_prompt_tokens",
    Kind::Counter,
    &[],
    "Prompt tokens of requests that have ended",
);
/// `stoker_worker_generated_tokens_total`
pub const GENERATED_TOKENS: Metric = metric(
    "stoker_worker_generated_tokens",
    Kind::Counter,
    &[],
    "Generated tokens of requests that have ended",
);
/// `stoker_worker_request_duration_seconds`
pub const DURATION: Metric = seconds(
    "stoker_worker_request_duration",
    super::DURATION,
    &[],
    "Time from arrival to the last event of completed requests",
);
/// `stoker_worker_time_to_first_token_seconds`
pub const FIRST_TOKEN_TIME: Metric = seconds(
    "stoker_worker_time_to_first_token",
    FIRST_TOKEN,
    &[],
    "Time from arrival to the first token",
);
/// `stoker_worker_inter_token_latency_seconds`
pub const INTER_TOKEN: Metric = seconds(
    "stoker_worker_inter_token_latency",
    NEXT_TOKEN,
    &[],
    "Time between two events with tokens of a choice",
);
/// `stoker_worker_tokenize_time_seconds`
pub const TOKENIZE_TIME: Metric = seconds(
    "stoker_worker_tokenize_time",
    FIRST_TOKEN,
    &[],
    "Time to validate and tokenize a request",
);
/// `stoker_worker_queue_time_seconds`
pub const QUEUE_TIME: Metric = seconds(
    "stoker_worker_queue_time",
    FIRST_TOKEN,
    &[],
    "Time of a request in the queue of the engine",
);
/// `stoker_worker_prefill_time_seconds`
pub const PREFILL_TIME: Metric = seconds(
    "stoker_worker_prefill_time",
    FIRST_TOKEN,
    &[],
    "Time from the first step of a request to its first token",
);
/// `stoker_worker_decode_time_seconds`
pub const DECODE_TIME: Metric = seconds(
    "stoker_worker_decode_time",
    super::DURATION,
    &[],
    "Time from the first token of a request to its last",
);
/// `stoker_worker_stream_time_seconds`
pub const STREAM_TIME: Metric = seconds(
    "stoker_worker_stream_time",
    FIRST_TOKEN,
    &[],
    "Time from the last token of a request until its last message was taken for sending",
);

/// All metrics of this module.
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
    STEP_SEQUENCES,
    STEP_TOKENS,
    BYTES_READ,
    BANDWIDTH_USAGE,
    CACHE_CONFIG,
    DEVICE,
    REQUESTS,
    PROMPT_TOKENS,
    GENERATED_TOKENS,
    DURATION,
    FIRST_TOKEN_TIME,
    INTER_TOKEN,
    TOKENIZE_TIME,
    QUEUE_TIME,
    PREFILL_TIME,
    DECODE_TIME,
    STREAM_TIME,
];

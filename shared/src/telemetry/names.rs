//! Every name of a span, an attribute, a metric or a label that leaves the process, and nothing else.
//!
//! Spans and attributes have OpenTelemetry's names, where it has one; its names for generative models are
//! still in development, which is one more reason to keep them in one place. docs/metrics.md lists the metrics.

pub mod connection;
pub mod label;

use super::metrics::{Kind, Metric};

/// Names of spans.
pub mod span {
    /// The router waits for a place.
    pub const ADMISSION: &str = "admission";
    /// One attempt of the router at one worker.
    pub const ATTEMPT: &str = "attempt";
    /// A worker checks and tokenises.
    pub const TOKENIZE: &str = "tokenize";
    /// The request waits for a place in the batch.
    pub const QUEUE: &str = "queue";
    /// From the first step to the first token.
    pub const PREFILL: &str = "prefill";
    /// From the first token to the last.
    pub const DECODE: &str = "decode";
    /// From the last event of a lost worker until another one has taken the stream over.
    pub const RESUME: &str = "resume";
}

/// What a request asks for: the value of [`attribute::OPERATION_NAME`], and a span's name before its model.
pub mod operation {
    /// The continuation of a text.
    pub const TEXT_COMPLETION: &str = "text_completion";
    /// The next turn of a conversation.
    pub const CHAT: &str = "chat";
}

/// Attributes of spans.
pub mod attribute {
    /// See [`operation`](super::operation).
    pub const OPERATION_NAME: &str = "gen_ai.operation.name";
    /// Always `stoker`.
    pub const PROVIDER_NAME: &str = "gen_ai.provider.name";
    /// The id of the request, which logs have too.
    pub const REQUEST_ID: &str = "gen_ai.request.id";
    /// The model that answers.
    pub const REQUEST_MODEL: &str = "gen_ai.request.model";
    /// Tokens of the prompt.
    pub const INPUT_TOKENS: &str = "gen_ai.usage.input_tokens";
    /// Tokens of the prompt that a cache had.
    pub const CACHED_TOKENS: &str = "gen_ai.usage.cache_read.input_tokens";
    /// Tokens generated.
    pub const OUTPUT_TOKENS: &str = "gen_ai.usage.output_tokens";
    /// Why the answer ended, as a list.
    pub const FINISH_REASONS: &str = "gen_ai.response.finish_reasons";
    /// Seconds in the worker's queue.
    pub const TIME_IN_QUEUE: &str = "gen_ai.latency.time_in_queue";
    /// Seconds from arrival to the first token.
    pub const TIME_TO_FIRST_TOKEN: &str = "gen_ai.latency.time_to_first_token";
    /// Seconds from the first step to the first token.
    pub const TIME_IN_PREFILL: &str = "gen_ai.latency.time_in_model_prefill";
    /// Seconds from the first token to the last.
    pub const TIME_IN_DECODE: &str = "gen_ai.latency.time_in_model_decode";
    /// Seconds from arrival to the last token.
    pub const TIME_END_TO_END: &str = "gen_ai.latency.e2e";
    /// Always `grpc`.
    pub const RPC_SYSTEM: &str = "rpc.system.name";
    /// The gRPC method.
    pub const RPC_METHOD: &str = "rpc.method";
    /// The gRPC status by its name.
    pub const RPC_STATUS: &str = "rpc.response.status_code";
    /// Why a request failed, as `google.rpc.ErrorInfo.reason` has it.
    pub const ERROR_TYPE: &str = "error.type";
    /// The worker that answers.
    pub const WORKER: &str = "stoker.worker.id";
    /// Counts the router's attempts from 1.
    pub const ATTEMPT: &str = "stoker.attempt";
    /// Engine steps that the request took part in.
    pub const STEPS: &str = "stoker.steps";
    /// Times that the request lost its place and was computed again.
    pub const PREEMPTIONS: &str = "stoker.preemptions";
}

/// A whole request, in seconds.
const DURATION: &[f64] =
    &[0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92];
/// Anything that a user waits for before the first token, in seconds.
const FIRST_TOKEN: &[f64] =
    &[0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0];
/// Between two tokens, in seconds. OpenTelemetry begins at 0.01; small models are faster.
const NEXT_TOKEN: &[f64] = &[
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75,
    1.0, 2.5,
];

const fn metric(
    name: &'static str,
    kind: Kind,
    labels: &'static [&'static str],
    help: &'static str,
) -> Metric {
    Metric { name, unit: None, kind, labels, help }
}

const fn seconds(
    name: &'static str,
    buckets: &'static [f64],
    labels: &'static [&'static str],
    help: &'static str,
) -> Metric {
    Metric { name, unit: Some("seconds"), kind: Kind::Histogram { buckets }, labels, help }
}

/// `stoker_build_info`
pub const BUILD: Metric =
    metric("stoker_build", Kind::Info, &[label::VERSION], "The version that runs");
/// `stoker_spans_dropped_total`
pub const SPANS_DROPPED: Metric = metric(
    "stoker_spans_dropped",
    Kind::Counter,
    &[],
    "Spans that did not reach the collector, because it was down or too slow",
);

/// The metrics of every process.
pub const PROCESS: &[Metric] = &[BUILD, SPANS_DROPPED];

/// Metrics of the router.
pub mod router {
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
    /// `stoker_router_answers_forgotten_total`
    pub const FORGOTTEN: Metric = metric(
        "stoker_router_answers_forgotten",
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
        FORGOTTEN,
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
}

/// Metrics of a worker. All of them have the labels `model` and `worker` too.
pub mod worker {
    use super::*;

    /// `stoker_worker_requests_running`
    pub const RUNNING: Metric =
        metric("stoker_worker_requests_running", Kind::Gauge, &[], "Sequences in the batch");
    /// `stoker_worker_requests_waiting`
    pub const WAITING: Metric = metric(
        "stoker_worker_requests_waiting",
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
    pub const STEPS: Metric =
        metric("stoker_worker_steps", Kind::Counter, &[], "Steps of the engine");
    /// `stoker_worker_preemptions_total`
    pub const PREEMPTIONS: Metric = metric(
        "stoker_worker_preemptions",
        Kind::Counter,
        &[],
        "Times that a sequence gave its blocks back to be computed again later",
    );
    /// `stoker_worker_drafted_tokens_total`
    pub const DRAFTED_TOKENS: Metric = metric(
        "stoker_worker_drafted_tokens",
        Kind::Counter,
        &[],
        "Tokens that were guessed ahead and looked at",
    );
    /// `stoker_worker_accepted_tokens_total`
    pub const ACCEPTED_TOKENS: Metric = metric(
        "stoker_worker_accepted_tokens",
        Kind::Counter,
        &[],
        "Guessed tokens that were right: each spared its sequence a step",
    );
    /// `stoker_worker_too_late_total`
    pub const TOO_LATE: Metric = metric(
        "stoker_worker_too_late",
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
        DRAFTED_TOKENS,
        ACCEPTED_TOKENS,
        TOO_LATE,
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
}

/// What the driver says of a worker's GPU. Only workers on NVIDIA's have these.
pub mod gpu {
    use super::*;

    const fn gauge(name: &'static str, unit: &'static str, help: &'static str) -> Metric {
        Metric { unit: Some(unit), ..metric(name, Kind::Gauge, &[], help) }
    }

    /// `stoker_gpu_utilization_ratio`
    pub const UTILIZATION: Metric = gauge(
        "stoker_gpu_utilization",
        "ratio",
        "The part of the last moments in which some kernel ran, from 0 to 1",
    );
    /// `stoker_gpu_memory_used_bytes`
    pub const MEMORY_USED: Metric =
        gauge("stoker_gpu_memory_used", "bytes", "Memory that is in use, by anybody");
    /// `stoker_gpu_memory_size_bytes`
    pub const MEMORY_SIZE: Metric = gauge("stoker_gpu_memory_size", "bytes", "Memory in all");
    /// `stoker_gpu_power_watts`
    pub const POWER: Metric = gauge("stoker_gpu_power", "watts", "Power that it draws");
    /// `stoker_gpu_temperature_celsius`
    pub const TEMPERATURE: Metric =
        gauge("stoker_gpu_temperature", "celsius", "Temperature of the chip");
    /// `stoker_gpu_clock_hertz`
    pub const CLOCK: Metric = gauge("stoker_gpu_clock", "hertz", "Clock of its processors");
    /// `stoker_gpu_memory_clock_hertz`
    pub const MEMORY_CLOCK: Metric =
        gauge("stoker_gpu_memory_clock", "hertz", "Clock of its memory");

    /// `stoker_gpu_failures_total`
    pub const FAILURES: Metric = metric(
        "stoker_gpu_failures",
        Kind::Counter,
        &[label::PART],
        "Times that a part of the GPU did not work, and was left alone from then on",
    );

    /// All of them.
    pub const ALL: &[Metric] =
        &[UTILIZATION, MEMORY_USED, MEMORY_SIZE, POWER, TEMPERATURE, CLOCK, MEMORY_CLOCK, FAILURES];
}

#[cfg(test)]
mod tests {
    use std::fmt::Write;

    use super::*;

    /// The part of docs/metrics.md that is made from this file.
    fn tables() -> String {
        let mut text = String::new();
        for (title, metrics, common) in [
            ("Every process", PROCESS, &[][..]),
            ("Connections of router and worker", connection::ALL, &[]),
            ("Router", router::ALL, &[]),
            ("Worker", worker::ALL, &[label::MODEL, label::WORKER]),
            ("GPU of a worker", gpu::ALL, &[label::MODEL, label::WORKER]),
        ] {
            let _ = writeln!(
                text,
                "## {title}\n\n| metric | kind | labels | |\n| --- | --- | --- | --- |"
            );
            for metric in metrics {
                let kind = metric.kind.name();
                let labels: Vec<_> =
                    common.iter().chain(metric.labels).map(|l| format!("`{l}`")).collect();
                let (name, labels) = (metric.full_name(), labels.join(", "));
                let _ = writeln!(text, "| `{name}` | {kind} | {labels} | {} |", metric.help);
            }
            text.push('\n');
        }
        text.push_str("## Labels\n\n| label | values |\n| --- | --- |\n");
        for (label, values) in label::ALL {
            let _ = writeln!(text, "| `{label}` | {values} |");
        }
        text
    }

    fn all() -> impl Iterator<Item = &'static Metric> {
        [PROCESS, connection::ALL, router::ALL, worker::ALL, gpu::ALL].into_iter().flatten()
    }

    #[test]
    fn every_label_is_explained() {
        let explained: Vec<_> = label::ALL.iter().map(|(label, _)| *label).collect();
        for metric in all() {
            assert!(metric.labels.iter().all(|l| explained.contains(l)), "{}", metric.full_name());
        }
    }

    #[test]
    fn the_documentation_lists_every_metric() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/metrics.md");
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let documented = text.split_once("## ").map(|(_, rest)| format!("## {rest}"));
        let tables = tables();
        assert_eq!(
            documented.as_deref().map(str::trim),
            Some(tables.trim()),
            "put into {path}:\n{tables}"
        );
    }

    #[test]
    fn names_follow_the_conventions() {
        for metric in all() {
            let name = metric.full_name();
            assert!(name.starts_with("stoker_"), "{name}");
            assert!(!metric.name.ends_with("_total") && !metric.help.ends_with('.'), "{name}");
            assert!(metric.labels.iter().all(|label| *label != "request_id"), "{name}");
        }
    }
}

//! The names of all spans, attributes, metrics and labels that a process exports.
//!
//! Spans and attributes have the names of OpenTelemetry's semantic conventions where these exist.
//! Those for generative models are still in development, which is one more reason to define them in
//! one module. docs/metrics.md lists the metrics.

pub mod connection;
pub mod etcd;
pub mod gpu;
pub mod label;
pub mod process;
pub mod reload;
pub mod router;
pub mod worker;

use crate::metrics::{Kind, Metric};

/// Names of spans.
pub mod span {
    /// The router: the request is in the admission queue.
    pub const ADMISSION: &str = "admission";
    /// The router: the choice of a worker.
    pub const ROUTE: &str = "route";
    /// The router: one attempt on one worker.
    pub const ATTEMPT: &str = "attempt";
    /// The worker: validation and tokenization.
    pub const TOKENIZE: &str = "tokenize";
    /// The worker: the request is in the queue of the engine.
    pub const QUEUE: &str = "queue";
    /// The worker: from the first step to the first token.
    pub const PREFILL: &str = "prefill";
    /// The worker: from the first token to the last.
    pub const DECODE: &str = "decode";
    /// The worker: from the last token until the response's last message was taken for sending.
    pub const STREAM: &str = "stream";
    /// The worker: a step of the engine that computed a part of the request's prompt.
    pub const PREFILL_CHUNK: &str = "prefill chunk";
    /// The worker: a sampled step of the engine that generated tokens of the request.
    pub const DECODE_STEP: &str = "decode step";
    /// The worker: a sampled step of the engine, in a trace of its own, linked to the requests of
    /// its batch.
    pub const STEP: &str = "engine step";
    /// A part of a step: tokens are drafted.
    pub const STEP_DRAFT: &str = "draft";
    /// A part of a step: the batch is planned.
    pub const STEP_PLAN: &str = "plan";
    /// A part of a step: the model runs.
    pub const STEP_RUN: &str = "run";
    /// A part of a step: tokens are drawn, converted to text and sent.
    pub const STEP_SAMPLE: &str = "sample";
    /// A worker starts: from its command line until it serves.
    pub const START: &str = "start";
    /// A part of a start: weights are read.
    pub const START_READ: &str = "read";
    /// A part of a start: weights are quantised.
    pub const START_QUANTIZE: &str = "quantize";
    /// A part of a start: weights are packed for the device.
    pub const START_PACK: &str = "pack";
    /// A part of a start: the digest of the weights is computed.
    pub const START_DIGEST: &str = "digest";
    /// A part of a start: the engine allocates its cache, compiles kernels and records graphs.
    pub const START_WARM_UP: &str = "warm up";
    /// The router: from the last event of a lost worker until another worker resumed the stream.
    pub const RESUME: &str = "resume";
}

/// Kinds of requests: the value of [`attribute::OPERATION_NAME`], and the name of a span before its
/// model.
pub mod operation {
    /// Completion of a text.
    pub const TEXT_COMPLETION: &str = "text_completion";
    /// Next turn of a conversation.
    pub const CHAT: &str = "chat";
}

/// Attributes of spans.
pub mod attribute {
    /// See [`operation`](super::operation).
    pub const OPERATION_NAME: &str = "gen_ai.operation.name";
    /// Always `stoker`.
    pub const PROVIDER_NAME: &str = "gen_ai.provider.name";
    /// Id of the request, as in logs.
    pub const REQUEST_ID: &str = "gen_ai.request.id";
    /// The model that serves the request.
    pub const REQUEST_MODEL: &str = "gen_ai.request.model";
    /// Number of prompt tokens.
    pub const INPUT_TOKENS: &str = "gen_ai.usage.input_tokens";
    /// Number of prompt tokens that were in the prefix cache.
    pub const CACHED_TOKENS: &str = "gen_ai.usage.cache_read.input_tokens";
    /// Number of generated tokens.
    pub const OUTPUT_TOKENS: &str = "gen_ai.usage.output_tokens";
    /// The prompt, as JSON of messages. Only where the operator wants content in traces.
    pub const INPUT_MESSAGES: &str = "gen_ai.input.messages";
    /// The response, as JSON of messages. Only where the operator wants content in traces.
    pub const OUTPUT_MESSAGES: &str = "gen_ai.output.messages";
    /// Finish reasons, as a list.
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
    /// Name of the gRPC status.
    pub const RPC_STATUS: &str = "rpc.response.status_code";
    /// Reason of a failure, as in `google.rpc.ErrorInfo.reason`.
    pub const ERROR_TYPE: &str = "error.type";
    /// The worker that serves the request.
    pub const WORKER: &str = "stoker.worker.id";
    /// The policy that selected the worker.
    pub const POLICY: &str = "stoker.route.policy";
    /// Number of workers that the policy compared.
    pub const CANDIDATES: &str = "stoker.route.candidates";
    /// Prompt tokens as estimated for the selection of a worker.
    pub const ESTIMATED_PROMPT_TOKENS: &str = "stoker.route.prompt_tokens";
    /// How many of them the worker was expected to have cached.
    pub const ESTIMATED_CACHED_TOKENS: &str = "stoker.route.cached_tokens";
    /// Completion tokens as estimated for the selection of a worker.
    pub const ESTIMATED_COMPLETION_TOKENS: &str = "stoker.route.completion_tokens";
    /// Number of the router's attempt, from 1.
    pub const ATTEMPT: &str = "stoker.attempt";
    /// Why there is another attempt: the reason for which the last one failed, as in
    /// [`ERROR_TYPE`], or `HEDGE`.
    pub const ATTEMPT_CAUSE: &str = "stoker.attempt.cause";
    /// Draft tokens that were verified.
    pub const DRAFTED: &str = "stoker.tokens.drafted";
    /// Draft tokens that were accepted.
    pub const ACCEPTED: &str = "stoker.tokens.accepted";
    /// Tokens that a step generated.
    pub const GENERATED: &str = "stoker.tokens.generated";
    /// Seconds in which tokens were converted to text, as a part of the stage.
    pub const DETOKENIZE: &str = "stoker.detokenize.duration";
    /// Number of an engine step.
    pub const STEP: &str = "stoker.step";
    /// Sequences in the batch of a step.
    pub const BATCH_SEQUENCES: &str = "stoker.batch.sequences";
    /// Prompt tokens in the batch of a step.
    pub const BATCH_PREFILL_TOKENS: &str = "stoker.batch.prefill_tokens";
    /// Tokens of decoding sequences in the batch of a step.
    pub const BATCH_DECODE_TOKENS: &str = "stoker.batch.decode_tokens";
    /// Index of the choice that a step computed.
    pub const CHOICE: &str = "stoker.choice";
    /// Position of the first token that a step computed.
    pub const POSITION: &str = "stoker.position";
    /// Tokens of the request that a step computed.
    pub const TOKENS: &str = "stoker.tokens";
    /// Number of engine steps that the request was part of.
    pub const STEPS: &str = "stoker.steps";
    /// Number of times that the request was preempted and recomputed.
    pub const PREEMPTIONS: &str = "stoker.preemptions";
}

/// Buckets for whole requests, in seconds.
const DURATION: &[f64] =
    &[0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92];
/// Buckets for delays before the first token, in seconds.
const FIRST_TOKEN: &[f64] =
    &[0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0];
/// Buckets for inter-token latency, in seconds. The convention of OpenTelemetry starts at 0.01, but
/// small models are faster.
const NEXT_TOKEN: &[f64] = &[
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75,
    1.0, 2.5,
];

/// Buckets for the number of sequences in a batch.
const SEQUENCES: &[f64] =
    &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0];
/// Buckets for the number of tokens in a step.
const STEP_TOKENS: &[f64] = &[
    1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0,
    16384.0,
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
    metric("stoker_build", Kind::Info, &[label::VERSION], "Version of the process");
/// `stoker_spans_dropped_total`
pub const SPANS_DROPPED: Metric = metric(
    "stoker_spans_dropped",
    Kind::Counter,
    &[],
    "Spans that were dropped because the collector was down or too slow",
);

/// `stoker_event_loop_delay_seconds`
pub const EVENT_LOOP_DELAY: Metric = seconds(
    "stoker_event_loop_delay",
    NEXT_TOKEN,
    &[],
    "How much later than asked for the asynchronous runtime ran a task, ten times a second",
);

/// The metrics of every process.
pub const PROCESS: &[Metric] = &[
    BUILD,
    SPANS_DROPPED,
    EVENT_LOOP_DELAY,
    process::CPU,
    process::RESIDENT_MEMORY,
    process::VIRTUAL_MEMORY,
    process::START_TIME,
    process::OPEN_FDS,
    process::MAX_FDS,
    process::THREADS,
];

#[cfg(test)]
mod tests {
    use std::fmt::Write;

    use super::*;

    /// Returns the part of docs/metrics.md that is generated from this file.
    fn tables() -> String {
        let mut text = String::new();
        for (title, metrics, common) in [
            ("Every process", PROCESS, &[][..]),
            ("Connections of router and worker", connection::ALL, &[]),
            ("Certificates and keys, reloaded while a process runs", reload::ALL, &[]),
            ("Session with etcd, of processes with `--etcd`", etcd::ALL, &[]),
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
        [PROCESS, connection::ALL, reload::ALL, etcd::ALL, router::ALL, worker::ALL, gpu::ALL]
            .into_iter()
            .flatten()
    }

    #[test]
    fn every_label_is_documented() {
        let documented: Vec<_> = label::ALL.iter().map(|(label, _)| *label).collect();
        for metric in all() {
            assert!(metric.labels.iter().all(|l| documented.contains(l)), "{}", metric.full_name());
        }
    }

    #[test]
    fn every_value_of_a_label_is_documented() {
        for (label, values) in [
            (label::REASON, label::REASONS),
            (label::REASON, label::EJECTIONS),
            (label::CAUSE, label::CONNECTION_CAUSES),
            (label::CAUSE, label::REQUEST_CAUSES),
            (label::LIMIT, label::LIMITS),
            (label::LIMIT, label::TENANT_LIMITS),
            (label::OUTCOME, label::RELOADS),
            (label::OUTCOME, label::HEDGES),
            (label::OUTCOME, label::FINISHED),
        ] {
            let documented = label::ALL.iter().filter(|(name, _)| *name == label);
            let text: String = documented.map(|(_, text)| *text).collect();
            for value in values {
                assert!(text.contains(&format!("`{value}`")), "{label}: {value} is not in {text}");
            }
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
            "{path} must contain:\n{tables}"
        );
    }

    #[test]
    fn names_follow_the_conventions() {
        for metric in all() {
            let name = metric.full_name();
            assert!(name.starts_with("stoker_") || name.starts_with("process_"), "{name}");
            assert!(!metric.name.ends_with("_total") && !metric.help.ends_with('.'), "{name}");
            assert!(metric.labels.iter().all(|label| *label != "request_id"), "{name}");
        }
    }
}

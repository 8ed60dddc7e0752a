//! The metrics of a worker: per request when it ends, per step on the engine thread, and the
//! engine's load on each scrape.

use std::{fmt, time::Duration};

use prometheus_client::{
    collector::Collector,
    encoding::DescriptorEncoder,
    metrics::{
        counter::{ConstCounter, Counter},
        gauge::ConstGauge,
        histogram::Histogram,
        info::Info,
    },
    registry::Registry,
};
use stoker_engine::Load;
use stoker_ops::KV_BLOCK;
use stoker_shared::{
    metrics::{LabeledCounters, TracedHistogram, counters, observe_traced},
    names::{label, worker as names},
};
use tokio::sync::watch;

use crate::step_observer::StepMetrics;

/// The metrics of a worker. Clones share their values.
#[derive(Debug, Clone)]
pub struct Metrics {
    /// Metrics of steps.
    pub steps: StepMetrics,
    requests: LabeledCounters,
    prompt_tokens: Counter,
    generated_tokens: Counter,
    duration: TracedHistogram,
    first_token: TracedHistogram,
    inter_token: Histogram,
    tokenize: Histogram,
    queue: Histogram,
    prefill: Histogram,
    decode: Histogram,
    stream: Histogram,
}

/// What does not change while a worker runs.
#[derive(Debug, Clone, Default)]
pub struct WorkerFacts {
    /// Number of blocks in the KV cache.
    pub kv_blocks: usize,
    /// Class of the device, whose workers resume each other's responses.
    pub device_class: String,
    /// Name of the device.
    pub device: String,
    /// Format of the weights.
    pub quantization: String,
    /// Digest of the model.
    pub digest: String,
}

impl WorkerFacts {
    fn cache_config(&self) -> [(&'static str, String); 2] {
        [(label::BLOCK_SIZE, KV_BLOCK.to_string()), (label::NUM_BLOCKS, self.kv_blocks.to_string())]
    }

    fn device(&self) -> [(&'static str, String); 4] {
        [
            (label::CLASS, self.device_class.clone()),
            (label::DEVICE, self.device.clone()),
            (label::QUANTIZATION, self.quantization.clone()),
            (label::DIGEST, self.digest.clone()),
        ]
    }
}

/// Durations of the stages of a completed request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stages {
    /// Validation and tokenising.
    pub tokenize: Duration,
    /// Waiting to be scheduled.
    pub queue: Duration,
    /// From there to the first token.
    pub prefill: Duration,
    /// From the first token to the last one.
    pub decode: Duration,
    /// From there until the last message was taken for sending.
    pub stream: Duration,
    /// The whole request.
    pub total: Duration,
}

impl Stages {
    /// Returns the time from the arrival to the first token.
    pub fn first_token(&self) -> Duration {
        self.tokenize + self.queue + self.prefill
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            steps: StepMetrics::default(),
            requests: counters(label::OUTCOME, label::FINISHED.iter().chain(label::REASONS)),
            prompt_tokens: Counter::default(),
            generated_tokens: Counter::default(),
            duration: names::DURATION.traced_histogram(),
            first_token: names::FIRST_TOKEN_TIME.traced_histogram(),
            inter_token: names::INTER_TOKEN.histogram(),
            tokenize: names::TOKENIZE_TIME.histogram(),
            queue: names::QUEUE_TIME.histogram(),
            prefill: names::PREFILL_TIME.histogram(),
            decode: names::DECODE_TIME.histogram(),
            stream: names::STREAM_TIME.histogram(),
        }
    }
}

impl Metrics {
    /// Registers all metrics and the engine's `load`, with labels for model and worker. Returns the
    /// sub-registry that has these labels.
    pub fn register<'a>(
        &self,
        registry: &'a mut Registry,
        model: &str,
        worker: &str,
        facts: &WorkerFacts,
        load: watch::Receiver<Load>,
    ) -> &'a mut Registry {
        let labels = [(label::MODEL, model), (label::WORKER, worker)];
        let labels = labels.into_iter().map(|(key, value)| (key.into(), value.to_owned().into()));
        let registry = registry.sub_registry_with_labels(labels);
        names::STEP_DURATION.register(registry, self.steps.duration.clone());
        names::STEP_SEQUENCES.register(registry, self.steps.sequences.clone());
        names::STEP_TOKENS.register(registry, self.steps.tokens.clone());
        names::BYTES_READ.register(registry, self.steps.bytes_read.clone());
        names::BANDWIDTH_USAGE.register(registry, self.steps.bandwidth_usage.clone());
        names::CACHE_CONFIG.register(registry, Info::new(facts.cache_config()));
        names::DEVICE.register(registry, Info::new(facts.device()));
        names::REQUESTS.register(registry, self.requests.clone());
        names::PROMPT_TOKENS.register(registry, self.prompt_tokens.clone());
        names::GENERATED_TOKENS.register(registry, self.generated_tokens.clone());
        names::DURATION.register(registry, self.duration.clone());
        names::FIRST_TOKEN_TIME.register(registry, self.first_token.clone());
        names::INTER_TOKEN.register(registry, self.inter_token.clone());
        names::TOKENIZE_TIME.register(registry, self.tokenize.clone());
        names::QUEUE_TIME.register(registry, self.queue.clone());
        names::PREFILL_TIME.register(registry, self.prefill.clone());
        names::DECODE_TIME.register(registry, self.decode.clone());
        names::STREAM_TIME.register(registry, self.stream.clone());
        registry.register_collector(Box::new(LoadCollector(load)));
        registry
    }

    /// Records the time between two events with tokens of a choice.
    pub fn observe_inter_token(&self, time: Duration) {
        self.inter_token.observe(time.as_secs_f64());
    }

    /// Records a request that has ended, with its prompt tokens and generated tokens. `trace` is
    /// the id of its trace if it is exported.
    pub fn observe_request(
        &self,
        outcome: &'static str,
        prompt: u64,
        generated: u64,
        stages: Option<Stages>,
        trace: Option<&str>,
    ) {
        self.requests.get_or_create(&[(label::OUTCOME, outcome)]).inc();
        self.prompt_tokens.inc_by(prompt);
        self.generated_tokens.inc_by(generated);
        let Some(stages) = stages else { return };
        for (histogram, duration) in
            [(&self.duration, stages.total), (&self.first_token, stages.first_token())]
        {
            observe_traced(histogram, duration.as_secs_f64(), trace);
        }
        for (histogram, duration) in [
            (&self.tokenize, stages.tokenize),
            (&self.queue, stages.queue),
            (&self.prefill, stages.prefill),
            (&self.decode, stages.decode),
            (&self.stream, stages.stream),
        ] {
            histogram.observe(duration.as_secs_f64());
        }
    }
}

/// Reads the engine's load on each scrape, so that steps have no overhead.
#[derive(Debug)]
struct LoadCollector(watch::Receiver<Load>);

impl Collector for LoadCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let load = *self.0.borrow();
        let used = load.total_blocks.saturating_sub(load.free_blocks) as f64;
        let usage = used / load.total_blocks.max(1) as f64;
        for (name, value) in [
            (names::RUNNING, load.running),
            (names::WAITING, load.waiting),
            (names::TOKENS_QUEUED, load.queued_tokens),
            (names::KV_BLOCKS, load.total_blocks),
            (names::KV_BLOCKS_FREE, load.free_blocks),
            (names::KV_BLOCKS_CACHED, load.cached_blocks),
        ] {
            name.encode(&mut encoder, &ConstGauge::new(value as u64))?;
        }
        names::KV_USAGE.encode(&mut encoder, &ConstGauge::new(usage))?;
        for (name, value) in [
            (names::STEPS, load.step),
            (names::PREEMPTIONS, load.preemptions),
            (names::DEADLINE_REJECTIONS, load.deadline_rejections),
            (names::DRAFT_TOKENS, load.drafted),
            (names::DRAFT_TOKENS_ACCEPTED, load.accepted),
            (names::PREFIX_QUERIED, load.prefix_tokens),
            (names::PREFIX_HIT, load.prefix_tokens_found),
        ] {
            name.encode(&mut encoder, &ConstCounter::new(value))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use stoker_shared::metrics::{Metric, exposition};

    use super::*;

    #[test]
    fn exactly_the_named_metrics_are_exposed_with_model_and_worker() {
        let metrics = Metrics::default();
        let stages = Stages { queue: Duration::from_secs(1), ..Stages::default() };
        metrics.observe_request("stop", 3, 4, Some(stages), Some("abc"));
        let load = Load {
            free_blocks: 3,
            cached_blocks: 2,
            total_blocks: 4,
            step: 7,
            prefix_tokens: 50,
            prefix_tokens_found: 48,
            ..Load::default()
        };
        let mut registry = Registry::default();
        let facts = WorkerFacts { kv_blocks: 4, digest: "d".into(), ..WorkerFacts::default() };
        metrics.register(&mut registry, "m", "w", &facts, watch::channel(load).1);
        let text = exposition(&registry);

        let mut exposed: Vec<_> = text.lines().filter_map(|l| l.strip_prefix("# TYPE ")).collect();
        exposed.sort_unstable();
        let mut named: Vec<_> = names::ALL.iter().map(Metric::type_line).collect();
        named.sort_unstable();
        assert_eq!(exposed, named);
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            assert!(line.contains("{model=\"m\",worker=\"w\""), "{line}");
        }
        for line in [
            "stoker_worker_requests_total{model=\"m\",worker=\"w\",outcome=\"stop\"} 1",
            "stoker_worker_generated_tokens_total{model=\"m\",worker=\"w\"} 4",
            "stoker_worker_kv_cache_usage_ratio{model=\"m\",worker=\"w\"} 0.25",
            "stoker_worker_kv_blocks_cached{model=\"m\",worker=\"w\"} 2",
            "stoker_worker_prefix_cache_queried_tokens_total{model=\"m\",worker=\"w\"} 50",
            "stoker_worker_prefix_cache_hit_tokens_total{model=\"m\",worker=\"w\"} 48",
            "stoker_worker_steps_total{model=\"m\",worker=\"w\"} 7",
            "stoker_worker_queue_time_seconds_sum{model=\"m\",worker=\"w\"} 1.0",
            "stoker_worker_time_to_first_token_seconds_sum{model=\"m\",worker=\"w\"} 1.0",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in:\n{text}");
        }
        let exemplar = "stoker_worker_time_to_first_token_seconds_bucket{model=\"m\",worker=\"w\",\
                        le=\"1.0\"} 1 # {trace_id=\"abc\"} 1.0";
        assert!(text.lines().any(|line| line.starts_with(exemplar)), "{exemplar} not in:\n{text}");
    }
}

//! What the engine thread records of each step: metrics, and spans of some.

use std::{
    num::NonZeroU64,
    sync::{Arc, atomic::AtomicU64},
};

use prometheus_client::metrics::{counter::Counter, gauge::Gauge, histogram::Histogram};
use stoker_engine::{Footprint, StepReport};
use stoker_shared::names::worker as names;

use crate::request_trace::record_step;

/// Metrics of steps. Clones share their values.
#[derive(Debug, Clone)]
pub struct StepMetrics {
    /// Duration of each step, in seconds.
    pub duration: Histogram,
    /// Number of sequences in each step.
    pub sequences: Histogram,
    /// Number of tokens in each step.
    pub tokens: Histogram,
    /// Bytes of weights and KV cache that steps have read.
    pub bytes_read: Counter,
    /// Memory bandwidth of the last step as a fraction of the highest.
    pub bandwidth_usage: Gauge<f64, AtomicU64>,
}

impl Default for StepMetrics {
    fn default() -> Self {
        Self {
            duration: names::STEP_DURATION.histogram(),
            sequences: names::STEP_SEQUENCES.histogram(),
            tokens: names::STEP_TOKENS.histogram(),
            bytes_read: Counter::default(),
            bandwidth_usage: Gauge::default(),
        }
    }
}

/// Observes the steps of one engine.
pub struct StepObserver {
    metrics: StepMetrics,
    worker: Arc<str>,
    footprint: Footprint,
    /// Highest memory bandwidth of any step, in bytes per second.
    highest_bandwidth: f64,
    /// One in this many steps has a trace of its own; `None` for none.
    traced: Option<NonZeroU64>,
}

impl StepObserver {
    /// Creates the observer of the engine of `worker`, whose model has this `footprint`. One in
    /// `traced` steps has a trace of its own; 0 means none.
    pub fn new(metrics: StepMetrics, worker: &str, footprint: Footprint, traced: u64) -> Self {
        let (worker, traced) = (worker.into(), NonZeroU64::new(traced));
        Self { metrics, worker, footprint, highest_bandwidth: 0.0, traced }
    }

    /// Records a step.
    pub fn observe(&mut self, report: &StepReport) {
        self.metrics.duration.observe(report.duration().as_secs_f64());
        self.metrics.sequences.observe(report.sequences as f64);
        self.metrics.tokens.observe((report.prefill_tokens + report.decode_tokens) as f64);
        let cached = self.footprint.kv_token_bytes * report.context_tokens as u64;
        let read = self.footprint.step_weight_bytes + cached;
        self.metrics.bytes_read.inc_by(read);
        let running = (report.ran - report.planned).as_secs_f64();
        if running > 0.0 {
            let bandwidth = read as f64 / running;
            self.highest_bandwidth = self.highest_bandwidth.max(bandwidth);
            self.metrics.bandwidth_usage.set(bandwidth / self.highest_bandwidth);
        }
        let sampled = self.traced.is_some_and(|every| report.step.is_multiple_of(every.get()));
        if sampled || !report.parts.is_empty() {
            record_step(report, &self.worker, sampled);
        }
    }
}

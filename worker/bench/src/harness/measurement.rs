//! The results of a measurement.

use std::time::Duration;

use serde_json::{Map, Value};
use stoker_ops::device::sensors::Reading;

/// Results of one measurement.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Measurement {
    /// Prompt tokens of all sequences.
    pub(crate) prompt_tokens: usize,
    /// Prompt tokens found in the prefix cache. None where that is not measured.
    pub(crate) cached_prompt_tokens: Option<u64>,
    /// Output tokens of all sequences.
    pub(crate) output_tokens: usize,
    /// Median time to first token over sequences.
    pub(crate) ttft: Option<Duration>,
    /// Median duration of a step in which all sequences decode.
    pub(crate) step: Duration,
    /// Output tokens per second of all sequences.
    pub(crate) decode_rate: f64,
    /// Prompt tokens per second of all sequences.
    pub(crate) prefill_rate: Option<f64>,
    /// Share of the time spent outside the model's operations. None where operations are not timed.
    pub(crate) overhead: Option<f64>,
    /// Kernel and graph launches of a GPU per step in which all sequences decode.
    pub(crate) launches: Option<f64>,
    /// Readings of the GPU driver during the measurement.
    pub(crate) gpu: Reading,
    /// Mean tokens of a sequence per step of the model, if that is not one.
    pub(crate) tokens_per_step: Option<f64>,
    /// Speedup over a baseline that the workload measured itself.
    pub(crate) baseline_speedup: Option<f64>,
    /// Name in rows, if it is not that of the case.
    pub(crate) scenario: Option<&'static str>,
    /// Figures of the workload's own keys.
    pub(crate) details: Map<String, Value>,
    /// Line below the row in the table.
    pub(crate) summary: Option<String>,
}

impl Measurement {
    /// Returns the median step of the model, which may yield several tokens of a sequence.
    pub(crate) fn model_step(&self) -> Duration {
        self.step.mul_f64(self.tokens_per_step.unwrap_or(1.0))
    }
}

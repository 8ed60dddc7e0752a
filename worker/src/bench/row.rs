//! A row: the results of one run, as JSON and as CSV.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::table::decimal;
use crate::gpu::Reading;

/// CSV columns and JSON keys, in order.
pub const KEYS: [&str; 38] = [
    "model",
    "scenario",
    "format",
    "quantize",
    "device",
    "threads",
    "batch",
    "context",
    "run",
    "load_seconds",
    "prompt_tokens",
    "cached_prompt_tokens",
    "output_tokens",
    "ttft_seconds",
    "tpot_seconds",
    "decode_tokens_per_second",
    "prefill_tokens_per_second",
    "peak_rss_bytes",
    "read_rate_bytes_per_second",
    "bandwidth_utilization",
    "launches_per_step",
    "gpu_utilization",
    "gpu_memory_used_bytes",
    "gpu_power_watts",
    "gpu_temperature_celsius",
    "gpu_clock_hertz",
    "gpu_memory_clock_hertz",
    "long_prompt_tokens",
    "long_prompt_ttft_seconds",
    "inter_token_p50_seconds",
    "inter_token_p99_seconds",
    "itl_under_prefill_p50_seconds",
    "itl_under_prefill_p99_seconds",
    "itl_under_prefill_p99_ratio",
    "drafted_tokens",
    "accepted_tokens",
    "mean_accepted_length",
    "speedup_over_plain",
];

/// Results of one run. `bench --help` describes each key.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BenchRow {
    /// Name of the model.
    pub model: String,
    /// Name of the workload.
    pub scenario: String,
    /// File format of the model.
    pub format: String,
    /// Quantization of the weights.
    pub quantize: String,
    /// Class of the device.
    pub device: String,
    /// Threads of the operations.
    pub threads: u64,
    /// Concurrent sequences.
    pub batch: u64,
    /// Average context length of a sequence while it decoded.
    pub context: u64,
    /// Number of the repetition, from 1. The minute with `--soak`.
    pub run: u64,
    /// Time from opening the file until the model can run.
    pub load_seconds: f64,
    /// Prompt tokens of all sequences.
    pub prompt_tokens: u64,
    /// Prompt tokens found in the prefix cache. None where that is not measured.
    #[serde(default)]
    pub cached_prompt_tokens: Option<u64>,
    /// Output tokens of all sequences.
    pub output_tokens: u64,
    /// Time to first token, the median over sequences. None if there was no prompt.
    pub ttft_seconds: Option<f64>,
    /// Time per output token: the median duration of a step in which all sequences decode.
    pub tpot_seconds: f64,
    /// Output tokens per second of all sequences.
    pub decode_tokens_per_second: f64,
    /// Prompt tokens per second of all sequences until each had its first token. None with
    /// `--soak`.
    pub prefill_tokens_per_second: Option<f64>,
    /// Peak resident set size. None where the system does not report it.
    pub peak_rss_bytes: Option<u64>,
    /// Memory read rate, the mean of a measurement before and one after.
    pub read_rate_bytes_per_second: f64,
    /// Bytes that steps must read per second, divided by the memory read rate.
    pub bandwidth_utilization: f64,
    /// Kernel and graph launches per decode step. None on the CPU, like all `gpu_*` fields.
    #[serde(default)]
    pub launches_per_step: Option<f64>,
    /// Mean GPU utilization during the run, from 0 to 1.
    #[serde(default)]
    pub gpu_utilization: Option<f64>,
    /// Maximum GPU memory in use by all processes during the run.
    #[serde(default)]
    pub gpu_memory_used_bytes: Option<u64>,
    /// Mean power draw during the run.
    #[serde(default)]
    pub gpu_power_watts: Option<f64>,
    /// Maximum temperature during the run.
    #[serde(default)]
    pub gpu_temperature_celsius: Option<f64>,
    /// Mean clock of the GPU's processors during the run.
    #[serde(default)]
    pub gpu_clock_hertz: Option<f64>,
    /// Mean clock of the GPU's memory during the run.
    #[serde(default)]
    pub gpu_memory_clock_hertz: Option<f64>,
    /// Length of the prompt of `--long-prompt`. None without it, like the six fields below.
    #[serde(default)]
    pub long_prompt_tokens: Option<u64>,
    /// Time to first token of the long prompt.
    #[serde(default)]
    pub long_prompt_ttft_seconds: Option<f64>,
    /// Median inter-token latency of the decoding sequences before the long prompt.
    #[serde(default)]
    pub inter_token_p50_seconds: Option<f64>,
    /// 99th percentile of the inter-token latency before the long prompt.
    #[serde(default)]
    pub inter_token_p99_seconds: Option<f64>,
    /// Median inter-token latency while the long prompt is computed.
    #[serde(default)]
    pub itl_under_prefill_p50_seconds: Option<f64>,
    /// 99th percentile of the inter-token latency while the long prompt is computed.
    #[serde(default)]
    pub itl_under_prefill_p99_seconds: Option<f64>,
    /// The 99th percentile under prefill divided by the one before it.
    #[serde(default)]
    pub itl_under_prefill_p99_ratio: Option<f64>,
    /// Drafted tokens. None without speculative decoding, like the three fields below.
    #[serde(default)]
    pub drafted_tokens: Option<u64>,
    /// Drafted tokens that were accepted.
    #[serde(default)]
    pub accepted_tokens: Option<u64>,
    /// Mean tokens of a sequence per step of the model.
    #[serde(default)]
    pub mean_accepted_length: Option<f64>,
    /// Decode rate divided by the rate without speculative decoding.
    #[serde(default)]
    pub speedup_over_plain: Option<f64>,
}

/// A row with the figures that only the table shows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct TableRow {
    pub(super) row: BenchRow,
    /// Memory read rate in bytes per second, before the model was loaded and after the last step.
    pub(super) read_rates: [f64; 2],
    /// Share of a step spent outside the model's operations. None where operations are not timed.
    pub(super) overhead: Option<f64>,
    /// Readings of the GPU driver during the run.
    pub(super) gpu: Reading,
}

impl BenchRow {
    /// Returns a summary of the effect of a long prompt on decoding sequences.
    pub(super) fn prefill_interference(&self) -> Option<String> {
        let millis = |seconds: Option<f64>| Some(decimal(seconds? * 1e3));
        Some(format!(
            "inter-token latency: p50 {} ms, p99 {} ms; while a prompt of {} tokens is computed: \
             p50 {} ms, p99 {} ms, {} x; its time to first token: {} s",
            millis(self.inter_token_p50_seconds)?,
            millis(self.inter_token_p99_seconds)?,
            self.long_prompt_tokens?,
            millis(self.itl_under_prefill_p50_seconds)?,
            millis(self.itl_under_prefill_p99_seconds)?,
            decimal(self.itl_under_prefill_p99_ratio?),
            decimal(self.long_prompt_ttft_seconds?),
        ))
    }

    /// Returns the row as a line of CSV, without a line break.
    pub fn csv(&self) -> Result<String, serde_json::Error> {
        // Converts through JSON, so that both formats hold the same values.
        let value = serde_json::to_value(self)?;
        let cells = KEYS.map(|key| cell(&value[key]));
        Ok(cells.join(","))
    }
}

/// Returns the CSV header, without a line break.
pub(super) fn csv_header() -> String {
    KEYS.join(",")
}

fn cell(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) if text.contains([',', '"', '\n', '\r']) => {
            format!("\"{}\"", text.replace('"', "\"\""))
        }
        Value::String(text) => text.clone(),
        number => number.to_string(),
    }
}

#[cfg(test)]
pub(super) mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    pub(crate) fn row() -> BenchRow {
        BenchRow {
            model: "my \"best\", 7B".into(),
            scenario: "short".into(),
            format: "gguf".into(),
            quantize: "none".into(),
            device: "cpu".into(),
            threads: 2,
            batch: 1,
            context: 64,
            run: 3,
            load_seconds: 1.25,
            prompt_tokens: 32,
            cached_prompt_tokens: None,
            output_tokens: 64,
            ttft_seconds: None,
            tpot_seconds: 0.1,
            decode_tokens_per_second: 10.0,
            prefill_tokens_per_second: Some(1e-7),
            peak_rss_bytes: Some(5_000_000_000),
            read_rate_bytes_per_second: 1.2e10,
            bandwidth_utilization: 0.5,
            launches_per_step: None,
            gpu_utilization: None,
            gpu_memory_used_bytes: None,
            gpu_power_watts: None,
            gpu_temperature_celsius: None,
            gpu_clock_hertz: None,
            gpu_memory_clock_hertz: None,
            long_prompt_tokens: None,
            long_prompt_ttft_seconds: None,
            inter_token_p50_seconds: None,
            inter_token_p99_seconds: None,
            itl_under_prefill_p50_seconds: None,
            itl_under_prefill_p99_seconds: None,
            itl_under_prefill_p99_ratio: None,
            drafted_tokens: None,
            accepted_tokens: None,
            mean_accepted_length: None,
            speedup_over_plain: None,
        }
    }

    #[test]
    fn the_keys_of_a_row_are_the_documented_ones() {
        let value = serde_json::to_value(row()).unwrap();
        let mut found: Vec<_> = value.as_object().unwrap().keys().map(String::as_str).collect();
        let mut expected = KEYS.to_vec();
        found.sort_unstable();
        expected.sort_unstable();
        assert_eq!(found, expected);
    }

    #[test]
    fn csv_has_the_values_of_json() {
        let expected = "\"my \"\"best\"\", 7B\",short,gguf,none,cpu,2,1,64,3,1.25,32,,64,,0.1,10.0,1e-7,\
                        5000000000,12000000000.0,0.5,,,,,,,,,,,,,,,,,,";
        assert_eq!(row().csv().unwrap(), expected);
        assert_eq!(csv_header().split(',').count(), KEYS.len());
    }
}

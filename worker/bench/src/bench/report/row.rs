//! A row: the results of one run, as JSON and as CSV.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use stoker_ops::device::sensors::Reading;

use crate::workloads::Workloads;

/// CSV columns and JSON keys that all rows have, in order.
const KEYS: [&str; 27] = [
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
];

/// Returns the CSV columns and JSON keys, in order: those of all rows, then those of workloads.
pub fn keys() -> Vec<&'static str> {
    let workloads: Workloads = stoker_shared::config::defaults();
    let own = workloads.keys().into_iter().map(|key| key.name);
    KEYS.into_iter().chain(own).collect()
}

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
    /// The keys that only rows of some workloads have, null in other rows.
    #[serde(flatten)]
    pub details: Map<String, Value>,
}

/// A row with the figures that only the table shows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct TableRow {
    pub(crate) row: BenchRow,
    /// Memory read rate in bytes per second, before the model was loaded and after the last step.
    pub(crate) read_rates: [f64; 2],
    /// Share of a step spent outside the model's operations. None where operations are not timed.
    pub(crate) overhead: Option<f64>,
    /// Readings of the GPU driver during the run.
    pub(crate) gpu: Reading,
    /// Speedup over a baseline that the workload measured itself.
    pub(crate) baseline_speedup: Option<f64>,
    /// Line below the row.
    pub(crate) summary: Option<String>,
}

impl BenchRow {
    /// Returns the row as a line of CSV, without a line break.
    pub fn csv(&self) -> Result<String, serde_json::Error> {
        // Converts through JSON, so that both formats hold the same values.
        let value = serde_json::to_value(self)?;
        let cells: Vec<_> = keys().into_iter().map(|key| cell(&value[key])).collect();
        Ok(cells.join(","))
    }
}

/// Returns the CSV header, without a line break.
pub(super) fn csv_header() -> String {
    keys().join(",")
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
            details: keys()[KEYS.len()..].iter().map(|key| ((*key).into(), Value::Null)).collect(),
        }
    }

    pub(crate) fn table(row: BenchRow) -> TableRow {
        TableRow {
            row,
            read_rates: [1.2e10, 1.3e10],
            overhead: Some(0.125),
            gpu: Reading::default(),
            baseline_speedup: None,
            summary: None,
        }
    }

    #[test]
    fn the_keys_of_a_row_are_the_documented_ones() {
        let value = serde_json::to_value(row()).unwrap();
        let mut found: Vec<_> = value.as_object().unwrap().keys().map(String::as_str).collect();
        let mut expected = keys();
        found.sort_unstable();
        expected.sort_unstable();
        assert_eq!(found, expected);
    }

    #[test]
    fn csv_has_the_values_of_json() {
        let expected = "\"my \"\"best\"\", 7B\",short,gguf,none,cpu,2,1,64,3,1.25,32,,64,,0.1,10.0,1e-7,\
                        5000000000,12000000000.0,0.5,,,,,,,,,,,,,,,,,,";
        assert_eq!(row().csv().unwrap(), expected);
        assert_eq!(csv_header().split(',').count(), keys().len());
    }
}

//! A row: what was measured once, as JSON and as CSV.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::table::decimal;
use crate::gpu::Reading;

/// The columns of CSV and the keys of JSON, in order.
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

/// What was measured once. `bench --help` says what each key means.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// The name of the model.
    pub model: String,
    /// What was done with it.
    pub scenario: String,
    /// The kind of file it was loaded from.
    pub format: String,
    /// How its weights were kept.
    pub quantize: String,
    /// The kind of device.
    pub device: String,
    /// Threads that operations ran on.
    pub threads: u64,
    /// Sequences at once.
    pub batch: u64,
    /// Positions that each held while it decoded, on average.
    pub context: u64,
    /// Which of several rows that are alike, from 1; of `--soak` the minute.
    pub run: u64,
    /// From opening the file to a model that can run.
    pub load_seconds: f64,
    /// Of all sequences together.
    pub prompt_tokens: u64,
    /// Of the prompt, what the prefix cache had. None where it is not looked at.
    #[serde(default)]
    pub cached_prompt_tokens: Option<u64>,
    /// Of all sequences together.
    pub output_tokens: u64,
    /// From submission to the first token: the median of several sequences. None if there was no prompt.
    pub ttft_seconds: Option<f64>,
    /// The median step in which all sequences decode.
    pub tpot_seconds: f64,
    /// Of all sequences together.
    pub decode_tokens_per_second: f64,
    /// Of all sequences together, until each had its first token. None where prompts come all the time.
    pub prefill_tokens_per_second: Option<f64>,
    /// None where the system does not say.
    pub peak_rss_bytes: Option<u64>,
    /// The mean of two measurements, before and after.
    pub read_rate_bytes_per_second: f64,
    /// What steps must read each second, divided by what memory gives.
    pub bandwidth_utilization: f64,
    /// Kernels and graphs that a decode step launches. None on the CPU, and so are all that follow.
    #[serde(default)]
    pub launches_per_step: Option<f64>,
    /// From 0 to 1, the mean while it ran.
    #[serde(default)]
    pub gpu_utilization: Option<f64>,
    /// The most while it ran, by anybody.
    #[serde(default)]
    pub gpu_memory_used_bytes: Option<u64>,
    /// The mean while it ran.
    #[serde(default)]
    pub gpu_power_watts: Option<f64>,
    /// The most while it ran.
    #[serde(default)]
    pub gpu_temperature_celsius: Option<f64>,
    /// Of its processors, the mean while it ran.
    #[serde(default)]
    pub gpu_clock_hertz: Option<f64>,
    /// Of its memory, the mean while it ran.
    #[serde(default)]
    pub gpu_memory_clock_hertz: Option<f64>,
    /// Of the prompt of `--long-prompt`. None without, and so are all that follow.
    #[serde(default)]
    pub long_prompt_tokens: Option<u64>,
    /// From its submission to its first token.
    #[serde(default)]
    pub long_prompt_ttft_seconds: Option<f64>,
    /// Between two tokens of those who decode, undisturbed: the median.
    #[serde(default)]
    pub inter_token_p50_seconds: Option<f64>,
    /// The slowest in a hundred.
    #[serde(default)]
    pub inter_token_p99_seconds: Option<f64>,
    /// The median while the long prompt is computed.
    #[serde(default)]
    pub itl_under_prefill_p50_seconds: Option<f64>,
    /// The slowest in a hundred meanwhile.
    #[serde(default)]
    pub itl_under_prefill_p99_seconds: Option<f64>,
    /// How many times as slow that is as undisturbed.
    #[serde(default)]
    pub itl_under_prefill_p99_ratio: Option<f64>,
    /// Tokens that were guessed ahead. None where nobody guessed, and so are all that follow.
    #[serde(default)]
    pub drafted_tokens: Option<u64>,
    /// Those that were right.
    #[serde(default)]
    pub accepted_tokens: Option<u64>,
    /// Tokens that a sequence got in a step of the model, on average.
    #[serde(default)]
    pub mean_accepted_length: Option<f64>,
    /// How many times as fast as without guesses.
    #[serde(default)]
    pub speedup_over_plain: Option<f64>,
}

/// A row, and what the table alone shows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Measured {
    pub(super) row: Row,
    /// Bytes a second before the model was loaded, and after the last step.
    pub(super) read_rates: [f64; 2],
    /// The share of a step that is not spent in operations, where they count their time.
    pub(super) outside: Option<f64>,
    /// What the GPU's driver said meanwhile.
    pub(super) gpu: Reading,
}

impl Row {
    /// What a long prompt did to those who decode, for people.
    pub(super) fn beside(&self) -> Option<String> {
        let millis = |seconds: Option<f64>| Some(decimal(seconds? * 1e3));
        Some(format!(
            "between tokens: p50 {} ms, p99 {} ms; while a prompt of {} tokens is computed: p50 {} ms, p99 {} ms, {} x; \
             its first token after {} s",
            millis(self.inter_token_p50_seconds)?,
            millis(self.inter_token_p99_seconds)?,
            self.long_prompt_tokens?,
            millis(self.itl_under_prefill_p50_seconds)?,
            millis(self.itl_under_prefill_p99_seconds)?,
            decimal(self.itl_under_prefill_p99_ratio?),
            decimal(self.long_prompt_ttft_seconds?),
        ))
    }

    /// A line of CSV, without its end.
    pub fn csv(&self) -> Result<String, serde_json::Error> {
        // Through JSON, so that the two cannot differ.
        let value = serde_json::to_value(self)?;
        let cells = KEYS.map(|key| cell(&value[key]));
        Ok(cells.join(","))
    }
}

/// The line of names, without its end.
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

    pub(crate) fn row() -> Row {
        Row {
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
    fn a_row_has_exactly_these_keys() {
        let value = serde_json::to_value(row()).unwrap();
        let mut found: Vec<_> = value.as_object().unwrap().keys().map(String::as_str).collect();
        let mut expected = KEYS.to_vec();
        found.sort_unstable();
        expected.sort_unstable();
        assert_eq!(found, expected);
    }

    #[test]
    fn a_line_of_csv_says_what_json_says() {
        let expected = "\"my \"\"best\"\", 7B\",short,gguf,none,cpu,2,1,64,3,1.25,32,,64,,0.1,10.0,1e-7,\
                        5000000000,12000000000.0,0.5,,,,,,,,,,,,,,,,,,";
        assert_eq!(row().csv().unwrap(), expected);
        assert_eq!(csv_header().split(',').count(), KEYS.len());
    }
}

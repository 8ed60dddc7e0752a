//! Measures the same shape with Hugging Face Transformers, if it is installed.

use std::{
    io::Write,
    process::{Command, Stdio},
};

use serde::{Deserialize, Serialize};
use serde_json::json;
use stoker_engine::weights::ModelConfig;
use stoker_ops::Device;

/// Time limit of the script in seconds, compilation included.
const TIMEOUT_SECONDS: u32 = 240;
const SCRIPT: &str = include_str!("transformers.py");

/// Result of the script.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Transformers {
    /// The reason that there is no measurement.
    Missing(String),
    /// Measurements with bf16 weights, a static cache and a compiled step.
    Measured {
        /// Versions and device.
        with: String,
        rows: Vec<TransformersRow>,
    },
}

/// Measurements of one batch size.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct TransformersRow {
    pub(super) batch: usize,
    pub(super) prefill_tokens_per_second: f64,
    pub(super) decode_tokens_per_second: f64,
}

/// Measures `batches` of a model of shape `config` at an average context of `context`.
pub(super) fn run(
    config: &ModelConfig,
    context: usize,
    batches: &[usize],
    device: &Device,
    number: u16,
) -> Transformers {
    let job = json!({
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.context_length,
        "context": context,
        "batches": batches,
        "device": if device.class.starts_with("cuda") { format!("cuda:{number}") } else { "cpu".into() },
        "seconds": TIMEOUT_SECONDS,
    });
    run_python(&job.to_string()).unwrap_or_else(Transformers::Missing)
}

/// Runs the script with python3 and parses the last line of its output.
fn run_python(job: &str) -> Result<Transformers, String> {
    let failed = |error: std::io::Error| format!("python3: {error}");
    let mut python = Command::new("python3")
        .args(["-", job])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    if let Some(mut input) = python.stdin.take() {
        // The write fails if python3 has exited; standard error has the reason.
        let _ = input.write_all(SCRIPT.as_bytes());
    }
    let output = python.wait_with_output().map_err(failed)?;
    let stdout = String::from_utf8_lossy(&output.stdout);
    let last = stdout.lines().last().unwrap_or_default();
    serde_json::from_str(last).map_err(|_| {
        let error = String::from_utf8_lossy(&output.stderr);
        format!(
            "python3 ended with {}: {}",
            output.status,
            error.lines().last().unwrap_or("no error message")
        )
    })
}

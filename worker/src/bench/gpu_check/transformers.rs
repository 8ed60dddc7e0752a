//! The same shape with what a researcher would use, timed beside it where it is installed.

use std::{
    io::Write,
    process::{Command, Stdio},
};

use serde::{Deserialize, Serialize};
use serde_json::json;
use stoker_engine::weights::ModelConfig;
use stoker_ops::Device;

/// Seconds after which it gives up, compilation included.
const LONGEST: u32 = 240;
const SCRIPT: &str = include_str!("transformers.py");

/// What came of it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Transformers {
    /// Why there is nothing to compare with.
    Missing(String),
    /// Of bf16 weights, a static cache and a compiled step.
    Measured {
        /// What computed: versions and device.
        with: String,
        rows: Vec<Row>,
    },
}

/// One batch.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Row {
    pub(super) batch: usize,
    pub(super) prefill_tokens_per_second: f64,
    pub(super) decode_tokens_per_second: f64,
}

/// Times `batches` of a model of shape `config` whose sequences hold `context` positions.
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
        "seconds": LONGEST,
    });
    told(&job.to_string()).unwrap_or_else(Transformers::Missing)
}

fn told(job: &str) -> Result<Transformers, String> {
    let failed = |error: std::io::Error| format!("python3: {error}");
    let mut python = Command::new("python3")
        .args(["-", job])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    if let Some(mut input) = python.stdin.take() {
        // One that ends early says why on standard error.
        let _ = input.write_all(SCRIPT.as_bytes());
    }
    let output = python.wait_with_output().map_err(failed)?;
    let said = String::from_utf8_lossy(&output.stdout);
    let last = said.lines().last().unwrap_or_default();
    serde_json::from_str(last).map_err(|_| {
        let error = String::from_utf8_lossy(&output.stderr);
        format!(
            "python3 ended with {}: {}",
            output.status,
            error.lines().last().unwrap_or("no word")
        )
    })
}

//! A job: the work that one child process measures.

use serde::{Deserialize, Serialize};

use super::{Format, shared_prefix};

/// Work that one child process measures. Sent to it as JSON.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Job {
    /// Name of the model in rows.
    pub(super) model: String,
    /// Value of `--model`.
    pub(super) source: String,
    pub(super) scenario: String,
    pub(super) format: Format,
    /// Value of `--quantize`.
    pub(super) quantize: String,
    /// Value of `--device`.
    pub(super) device: String,
    /// Values of `--disable-gpu-feature`.
    pub(super) disable_gpu_feature: Vec<String>,
    /// Concurrent sequences.
    pub(super) batch: usize,
    /// Average context length of a sequence while it decodes.
    pub(super) context: usize,
    /// Number of the repetition, from 1.
    pub(super) run: u64,
    pub(super) work: Work,
}

/// What the child process runs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Work {
    /// Submits all prompts together, then measures `tokens` tokens of each while all decode.
    Decode {
        /// Prompt length of each sequence.
        prompts: Vec<usize>,
        /// Output tokens of each sequence that are measured, at least 2.
        tokens: usize,
    },
    /// Keeps every slot of the batch busy with sequences of `prompt + output` tokens.
    Soak {
        /// Prompt length.
        prompt: usize,
        /// Output length.
        output: usize,
        /// Duration.
        seconds: f64,
    },
    /// Runs two prompts with a common prefix of `tokens` tokens, one after the other.
    SharedPrefix {
        /// Length of the shared prefix.
        tokens: usize,
    },
    /// Decodes stories with and without speculative decoding.
    Speculate {
        /// Output tokens of each story.
        tokens: usize,
        /// Sampling temperature.
        temperature: f32,
        /// Value of `--speculate`.
        drafter: String,
        /// Value of `--draft-model`.
        draft: Option<String>,
        /// Value of `--num-speculative-tokens`.
        depth: String,
    },
    /// Decodes a batch and computes a long prompt at the same time.
    PrefillInterference {
        /// Prompt length of each decoding sequence.
        prompts: Vec<usize>,
        /// Length of the long prompt.
        prompt: usize,
        /// Maximum factor by which decode steps may slow down while it is computed.
        slowdown: f64,
    },
    /// Decodes one sequence with unfused operations and random weights of the model's shape.
    Naive,
}

impl Job {
    /// Returns the scenario and the run number of its `i`th row.
    pub(super) fn row(&self, i: usize) -> (&str, u64) {
        match self.work {
            Work::SharedPrefix { .. } => (shared_prefix::NAMES[i], self.run),
            // `--soak` has one row per minute.
            _ => (&self.scenario, self.run + i as u64),
        }
    }

    /// Returns a label for messages, such as `code, gguf, run 2`.
    pub(super) fn label(&self) -> String {
        let batch = match self.batch {
            1 => String::new(),
            batch => format!(", {batch} sequences"),
        };
        format!("{}, {}{batch}, run {}", self.scenario, self.format, self.run)
    }
}

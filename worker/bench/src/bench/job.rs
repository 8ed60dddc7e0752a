//! A job: a run of a case, in a process of its own.

use serde::{Deserialize, Serialize};

use crate::workloads::Case;

/// A run of a case. Sent to its process as JSON.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Job {
    pub(super) case: Case,
    /// Value of `--device`.
    pub(super) device: String,
    /// Values of `--disable-gpu-feature`.
    pub(super) disable_gpu_feature: Vec<String>,
    /// Number of the repetition, from 1.
    pub(super) run: u64,
}

impl Job {
    /// Returns a label for messages, such as `code, gguf, run 2`.
    pub(super) fn label(&self) -> String {
        let Case { scenario, format, batch, .. } = &self.case;
        let batch = match batch {
            1 => String::new(),
            batch => format!(", {batch} sequences"),
        };
        format!("{scenario}, {format}{batch}, run {}", self.run)
    }
}

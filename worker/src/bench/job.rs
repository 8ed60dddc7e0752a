//! What one process measures.

use serde::{Deserialize, Serialize};

use super::{Format, shared_prefix};

/// What one process measures. It travels there as JSON.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Job {
    /// What rows call the model.
    pub(super) model: String,
    /// As `--model` takes it.
    pub(super) source: String,
    pub(super) scenario: String,
    pub(super) format: Format,
    /// As `--quantize` takes it.
    pub(super) quantize: String,
    /// As `--device` takes it.
    pub(super) device: String,
    /// As `--disable-gpu-feature` takes them.
    pub(super) disable_gpu_feature: Vec<String>,
    /// Sequences at once.
    pub(super) batch: usize,
    /// Positions that each holds while it decodes, on average.
    pub(super) context: usize,
    /// Which of several that are alike, from 1.
    pub(super) run: u64,
    pub(super) work: Work,
}

/// What is done with the model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Work {
    /// Prompts of these lengths, submitted together; then `tokens` of each while all decode.
    Decode {
        /// Tokens of each sequence's prompt.
        prompts: Vec<usize>,
        /// Tokens of each answer that are measured, at least 2.
        tokens: usize,
    },
    /// Sequences of `prompt + output` tokens, one after the other in each place of the batch.
    Soak {
        /// Tokens of each prompt.
        prompt: usize,
        /// Tokens of each answer.
        output: usize,
        /// How long.
        seconds: f64,
    },
    /// Two prompts that begin with the same `tokens`, one after the other.
    SharedPrefix {
        /// Tokens that they share.
        tokens: usize,
    },
    /// Stories, with and without somebody who guesses ahead.
    Speculate {
        /// Tokens of each answer.
        tokens: usize,
        /// What they are drawn at.
        temperature: f32,
        /// As `--speculate` takes it.
        drafter: String,
        /// As `--draft-model` takes it.
        draft: Option<String>,
        /// As `--num-speculative-tokens` takes it.
        depth: String,
    },
    /// Sequences that decode, and a long prompt that is computed beside them.
    Beside {
        /// Tokens of each decoding sequence's prompt.
        prompts: Vec<usize>,
        /// Tokens of the long one.
        prompt: usize,
        /// How many times as long steps may take meanwhile.
        slowdown: f64,
    },
    /// A decode step of plain operations, of the model's shape.
    Naive,
}

impl Job {
    /// What its `i`th row measures, and which run that is.
    pub(super) fn row(&self, i: usize) -> (&str, u64) {
        match self.work {
            Work::SharedPrefix { .. } => (shared_prefix::NAMES[i], self.run),
            // A row a minute.
            _ => (&self.scenario, self.run + i as u64),
        }
    }

    /// Names it to people: `code, gguf, run 2`.
    pub(super) fn label(&self) -> String {
        let batch = match self.batch {
            1 => String::new(),
            batch => format!(", {batch} sequences"),
        };
        format!("{}, {}{batch}, run {}", self.scenario, self.format, self.run)
    }
}

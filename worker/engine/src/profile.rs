//! What a simulated device does: the time that its steps take, and the texts that it generates.

use std::time::Duration;

/// Duration of steps, and the texts that they generate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Profile {
    /// Fixed time of a step, for reading the weights.
    pub step: Duration,
    /// Time of each prompt token in a step.
    pub prefill_token: Duration,
    /// Time of each token of a decoding sequence in a step: its newest token, and draft tokens.
    pub decode_token: Duration,
    /// Time of each token in the KV cache that a step attends to.
    pub context_token: Duration,
    /// Mean length in tokens of a completion that no limit ends; with 0, completions end at limits
    /// only.
    pub response_tokens: u32,
    /// Maximum length of prompt and completion together, in tokens.
    pub context_length: u32,
    /// A step that computes this token panics. 0 is none.
    pub panic_token: u32,
    /// A step that computes this token does not end. 0 is none.
    pub hang_token: u32,
}

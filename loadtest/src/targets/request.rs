//! A request, for any target.

/// A request, for any target.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LoadRequest {
    /// Index of the request, from 0.
    pub index: u64,
    /// Name of the model; empty for the only one.
    pub model: String,
    /// The earlier turns of the conversation. Empty for a single request.
    pub history: Vec<Turn>,
    /// The prompt, or what the last turn adds to the conversation.
    pub prompt: String,
    /// Maximum number of new tokens. `None` for as many as the context allows.
    pub max_tokens: Option<u32>,
    /// Whether the response continues after an end-of-text token.
    pub ignore_eos: bool,
    /// Sampling temperature. `None` for the target's default.
    pub temperature: Option<f32>,
    /// Seed of the sampling.
    pub seed: u64,
    /// After how many received tokens the client cancels it. `None` reads the whole response.
    pub cancel_after: Option<u32>,
}

/// A turn of a conversation: what the user and the model wrote.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Turn {
    /// What the user wrote.
    pub prompt: String,
    /// The whole response.
    pub response: String,
}

impl LoadRequest {
    /// Returns the whole text of the conversation so far, with its last prompt.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for turn in &self.history {
            text.push_str(&turn.prompt);
            text.push_str(&turn.response);
        }
        text.push_str(&self.prompt);
        text
    }
}

//! Random actions on a scheduler between two steps.

use proptest::prelude::*;

/// An action between two steps.
#[derive(Debug, Clone)]
pub enum Action {
    Arrive(Arrival),
    Disconnect {
        which: usize,
    },
    /// The next sampled token, or one soon after it, ends its sequence.
    Stop,
    None,
}

/// A request that arrives.
#[derive(Debug, Clone)]
pub struct Arrival {
    pub prompt: usize,
    pub tokens: usize,
    pub num_sequences: u32,
    pub prompt_logits: bool,
    pub bypass: bool,
    /// Whether a step with it panicked on another worker.
    pub suspect: bool,
    pub tenant: u8,
    pub priority: u32,
    /// Number of the text that the prompt is taken from; some share a prefix.
    pub text: u32,
    /// The prompt starts with the tokens of this ended sequence, counted from the last.
    pub follows: Option<usize>,
    /// Number of tokens of each sequence that another worker has sampled.
    pub started: usize,
}

pub fn arrival() -> impl Strategy<Value = Arrival> {
    let lengths = (1usize..100, 1usize..60, prop_oneof![2 => Just(1u32), 1 => 1u32..6]);
    let rarely = || prop_oneof![5 => Just(false), 1 => Just(true)];
    let follows = prop_oneof![3 => Just(None), 1 => (0usize..9).prop_map(Some)];
    let started = prop_oneof![5 => Just(0usize), 1 => 1usize..40];
    let priority = prop_oneof![1 => Just(0u32), 3 => Just(100u32), 1 => Just(500u32)];
    let who = (0u8..3, 0u32..3, priority);
    let flags = (rarely(), rarely(), rarely());
    (lengths, flags, who, follows, started).prop_map(
        |(
            (prompt, tokens, num_sequences),
            (prompt_logits, bypass, suspect),
            (tenant, text, priority),
            follows,
            started,
        )| {
            Arrival {
                prompt,
                tokens,
                num_sequences,
                prompt_logits: prompt_logits && started == 0,
                bypass,
                suspect,
                tenant,
                priority,
                text,
                follows,
                started: started.min(tokens - 1),
            }
        },
    )
}

pub fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        3 => arrival().prop_map(Action::Arrive),
        1 => (0usize..50).prop_map(|which| Action::Disconnect { which }),
        1 => Just(Action::Stop),
        4 => Just(Action::None),
    ]
}

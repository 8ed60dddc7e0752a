//! What happens to a scheduler between two steps, at random.

use proptest::prelude::*;

/// What happens between two steps.
#[derive(Debug, Clone)]
pub enum Happening {
    Arrives(Arrival),
    Leaves {
        which: usize,
    },
    /// The next token that is drawn, or one soon after it, ends its sequence.
    Stops,
    Nothing,
}

#[derive(Debug, Clone)]
pub struct Arrival {
    pub prompt: usize,
    pub tokens: usize,
    pub num_sequences: u32,
    pub prompt_logits: bool,
    pub bypass: bool,
    /// A step with it panicked at another worker.
    pub suspect: bool,
    pub tenant: u8,
    pub priority: u32,
    /// Which text the prompt is taken from; some begin alike.
    pub text: u32,
    /// The prompt begins with one of the texts that have ended.
    pub follows: Option<usize>,
    /// Tokens that another worker has drawn of it, of each sequence.
    pub begun: usize,
}

pub fn arrival() -> impl Strategy<Value = Arrival> {
    let lengths = (1usize..100, 1usize..60, prop_oneof![2 => Just(1u32), 1 => 1u32..6]);
    let rarely = || prop_oneof![5 => Just(false), 1 => Just(true)];
    let follows = prop_oneof![3 => Just(None), 1 => (0usize..9).prop_map(Some)];
    let begun = prop_oneof![5 => Just(0usize), 1 => 1usize..40];
    let priority = prop_oneof![1 => Just(0u32), 3 => Just(100u32), 1 => Just(500u32)];
    let who = (0u8..3, 0u32..3, priority);
    let flags = (rarely(), rarely(), rarely());
    (lengths, flags, who, follows, begun).prop_map(
        |(
            (prompt, tokens, num_sequences),
            (prompt_logits, bypass, suspect),
            (tenant, text, priority),
            follows,
            begun,
        )| {
            Arrival {
                prompt,
                tokens,
                num_sequences,
                prompt_logits: prompt_logits && begun == 0,
                bypass,
                suspect,
                tenant,
                priority,
                text,
                follows,
                begun: begun.min(tokens - 1),
            }
        },
    )
}

pub fn happening() -> impl Strategy<Value = Happening> {
    prop_oneof![
        3 => arrival().prop_map(Happening::Arrives),
        1 => (0usize..50).prop_map(|which| Happening::Leaves { which }),
        1 => Just(Happening::Stops),
        4 => Just(Happening::Nothing),
    ]
}

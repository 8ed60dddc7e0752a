//! The test's own state of requests: their tokens, and the expected contents of the KV cache.

use std::{
    collections::BTreeMap,
    hash::{DefaultHasher, Hash, Hasher},
};

use stoker_engine::{
    Scope,
    kv_cache::{Lookup, SequenceTokens},
    scheduler::{QueueKey, SequenceId, Size, TokenSource},
};

/// The tokens of a sequence and the expected cache content at each: a hash of the scope and all
/// tokens up to there.
#[derive(Debug, Clone)]
pub struct Text {
    pub tokens: Vec<u32>,
    pub contents: Vec<u64>,
}

impl Text {
    pub fn new(scope: &Scope, tokens: &[u32]) -> Self {
        let mut hasher = DefaultHasher::new();
        scope.hash(&mut hasher);
        let mut text = Self { tokens: Vec::new(), contents: vec![hasher.finish()] };
        tokens.iter().for_each(|token| text.push(*token));
        text
    }

    pub fn push(&mut self, token: u32) {
        let mut hasher = DefaultHasher::new();
        (self.contents.last(), token).hash(&mut hasher);
        self.tokens.push(token);
        self.contents.push(hasher.finish());
    }

    /// Samples a token, which every second choice has in common.
    pub fn draw(&mut self, choice: u32) {
        self.push(1_000 + (self.tokens.len() as u32 * 7 + choice % 2) % 5);
    }

    pub fn content(&self, position: usize) -> u64 {
        self.contents[position + 1]
    }
}

/// A request as the test tracks it.
pub struct TrackedRequest {
    pub size: Size,
    pub queue_key: QueueKey,
    /// Texts of the sequences that have been forked and have not ended, by choice.
    pub texts: BTreeMap<u32, Text>,
    pub forked: bool,
    /// Whether it was preempted or resumed, so that tokens are recomputed.
    pub recomputes: bool,
    /// Each sequence runs alone until it has this many tokens.
    pub isolated_below: usize,
    /// The prefix cache lookup of the prompt.
    pub lookup: Option<Lookup>,
    /// How often each position of the prompt was computed, over all sequences.
    pub computed: Vec<usize>,
    /// How often logits of each position of the prompt were requested.
    pub shown: Vec<usize>,
}

#[derive(Default)]
pub struct LiveRequests(pub BTreeMap<u64, TrackedRequest>);

impl TokenSource for LiveRequests {
    fn tokens(&self, id: SequenceId) -> SequenceTokens<'_> {
        let tokens = &self.0[&id.request].texts[&id.choice].tokens;
        // The split point is arbitrary, since the scheduler concatenates both parts.
        let (prompt, drawn) = tokens.split_at(tokens.len() / 2);
        SequenceTokens::new(prompt, drawn)
    }
}

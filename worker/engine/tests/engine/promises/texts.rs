//! The requests as the test knows them: their tokens, and what the cache must hold of each.

use std::{
    collections::BTreeMap,
    hash::{DefaultHasher, Hash, Hasher},
};

use stoker_engine::{
    Scope,
    blocks::SequenceTokens,
    scheduler::{Lookup, QueueKey, SequenceId, Size, TokenSource},
};

/// The tokens of a sequence, and what the cache must hold at each: a hash of the scope and all tokens up to there.
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

    /// Every second choice says the same.
    pub fn draw(&mut self, choice: u32) {
        self.push(1_000 + (self.tokens.len() as u32 * 7 + choice % 2) % 5);
    }

    pub fn content(&self, position: usize) -> u64 {
        self.contents[position + 1]
    }
}

/// A request as the test knows it.
pub struct Known {
    pub size: Size,
    pub queue_key: QueueKey,
    /// Each sequence that has parted and not ended.
    pub texts: BTreeMap<u32, Text>,
    pub forked: bool,
    /// Preempted, or begun elsewhere: something is computed again.
    pub again: bool,
    /// Each sequence has steps of its own until it knows so many tokens.
    pub isolated_below: usize,
    /// Tokens of the prompt that the cache had.
    pub lookup: Option<Lookup>,
    /// How often each position of the prompt was computed, by all sequences together, and its logits shown.
    pub computed: Vec<usize>,
    pub shown: Vec<usize>,
}

#[derive(Default)]
pub struct Alive(pub BTreeMap<u64, Known>);

impl TokenSource for Alive {
    fn tokens(&self, id: SequenceId) -> SequenceTokens<'_> {
        let tokens = &self.0[&id.request].texts[&id.choice].tokens;
        // Wherever the prompt ends, the two parts are one text.
        let (prompt, drawn) = tokens.split_at(tokens.len() / 2);
        SequenceTokens::new(prompt, drawn)
    }
}

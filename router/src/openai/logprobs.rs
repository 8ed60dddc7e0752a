//! Log probabilities, in the two shapes of OpenAI's API.

use std::collections::BTreeMap;

use serde::Serialize;
use stoker_proto::v1::{Candidate, TokenLogprob};

/// Log probabilities of a choice.
#[derive(Debug, Clone, Serialize)]
#[serde(untagged)]
pub(super) enum Logprobs {
    Chat(ChatLogprobs),
    Text(TextLogprobs),
}

/// Those of a message.
#[derive(Debug, Clone, Default, Serialize)]
pub(super) struct ChatLogprobs {
    content: Vec<Token>,
    /// Always none: there are no refusals.
    refusal: Option<Vec<Token>>,
}

/// Those of a completion: lists of equal length.
#[derive(Debug, Clone, Default, Serialize)]
pub(super) struct TextLogprobs {
    tokens: Vec<String>,
    token_logprobs: Vec<Option<f32>>,
    top_logprobs: Vec<Option<BTreeMap<String, f32>>>,
    /// Where tokens begin in the text, in characters.
    text_offset: Vec<usize>,
}

#[derive(Debug, Clone, Serialize)]
struct Token {
    #[serde(flatten)]
    token: TokenText,
    top_logprobs: Vec<TokenText>,
}

#[derive(Debug, Clone, Serialize)]
struct TokenText {
    token: String,
    logprob: f32,
    bytes: Vec<u8>,
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// JSON has no infinity: OpenAI writes this for a token that is as good as impossible.
fn finite(logprob: f32) -> f32 {
    const IMPOSSIBLE: f32 = -9999.0;
    logprob.max(IMPOSSIBLE)
}

impl TokenText {
    fn of(bytes: Vec<u8>, logprob: f32) -> Self {
        Self { token: text(&bytes), logprob: finite(logprob), bytes }
    }
}

impl ChatLogprobs {
    pub(super) fn add(&mut self, tokens: Vec<TokenLogprob>) {
        let candidate = |top: Candidate| TokenText::of(top.token_bytes, top.logprob);
        self.content.extend(tokens.into_iter().map(|token| Token {
            token: TokenText::of(token.token_bytes, token.logprob),
            top_logprobs: token.top.into_iter().map(candidate).collect(),
        }));
    }
}

impl TextLogprobs {
    /// Adds a token without a log probability: the first one of a prompt, whose text is `prompt`. A
    /// special token is not a part of that.
    pub(super) fn add_first(&mut self, token: &str, prompt: &str, offset: &mut usize) {
        let begin = *offset;
        self.push(token.as_bytes(), None, None, offset);
        if !prompt.starts_with(token) {
            *offset = begin;
        }
    }

    /// Adds tokens. `offset` is where the first one begins, and then where the next one does.
    pub(super) fn add(&mut self, tokens: Vec<TokenLogprob>, offset: &mut usize) {
        for token in tokens {
            // The token itself is among the candidates, whether or not it is a likely one.
            let mut top: BTreeMap<_, _> =
                token.top.iter().map(|c| (text(&c.token_bytes), finite(c.logprob))).collect();
            top.entry(text(&token.token_bytes)).or_insert(finite(token.logprob));
            self.push(&token.token_bytes, Some(finite(token.logprob)), Some(top), offset);
        }
    }

    fn push(
        &mut self,
        token: &[u8],
        logprob: Option<f32>,
        top: Option<BTreeMap<String, f32>>,
        offset: &mut usize,
    ) {
        self.text_offset.push(*offset);
        // Characters that begin in this token: one may go on in the next.
        *offset += token.iter().filter(|byte| **byte & 0xc0 != 0x80).count();
        self.tokens.push(text(token));
        self.token_logprobs.push(logprob);
        self.top_logprobs.push(top);
    }
}

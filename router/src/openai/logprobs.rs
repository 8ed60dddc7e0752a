//! Log probabilities, in the two shapes of OpenAI's API.

use serde::Serialize;
use serde_json::{Map, Value};
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
    top_logprobs: Vec<Option<Map<String, Value>>>,
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

impl TokenText {
    fn of(bytes: Vec<u8>, logprob: f32) -> Self {
        Self { token: text(&bytes), logprob, bytes }
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
    /// Adds a token without a log probability: the first one of a prompt.
    pub(super) fn add_first(&mut self, token: &str, offset: &mut usize) {
        self.push(token.to_owned(), None, None, offset);
    }

    /// Adds tokens. `offset` is where the first one begins, and then where the next one does.
    pub(super) fn add(&mut self, tokens: Vec<TokenLogprob>, offset: &mut usize) {
        for token in tokens {
            let own = text(&token.token_bytes);
            // The token itself is among the candidates, whether or not it is a likely one.
            let mut top: Map<_, _> =
                token.top.iter().map(|c| (text(&c.token_bytes), c.logprob.into())).collect();
            top.entry(own.clone()).or_insert_with(|| token.logprob.into());
            self.push(own, Some(token.logprob), Some(top), offset);
        }
    }

    fn push(
        &mut self,
        token: String,
        logprob: Option<f32>,
        top: Option<Map<String, Value>>,
        offset: &mut usize,
    ) {
        self.text_offset.push(*offset);
        *offset += token.chars().count();
        self.tokens.push(token);
        self.token_logprobs.push(logprob);
        self.top_logprobs.push(top);
    }
}

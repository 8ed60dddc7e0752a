//! The objects of responses.

use serde::Serialize;
use stoker_proto::v1::{TokenLogprob, Usage};

use super::logprobs::{ChatLogprobs, Logprobs, TextLogprobs};

/// The two kinds of requests, whose responses differ in shape only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Chat,
    Completion,
}

/// What all objects of a response have in common.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Head {
    pub(super) id: String,
    pub(super) object: &'static str,
    pub(super) created: u64,
    pub(super) model: String,
}

impl Kind {
    /// Returns the prefix of ids.
    pub(super) fn id_prefix(self) -> &'static str {
        match self {
            Self::Chat => "chatcmpl-",
            Self::Completion => "cmpl-",
        }
    }

    /// Returns the type of a response, or of a part of a stream.
    pub(super) fn object(self, is_chunk: bool) -> &'static str {
        match (self, is_chunk) {
            (Self::Chat, false) => "chat.completion",
            (Self::Chat, true) => "chat.completion.chunk",
            (Self::Completion, _) => "text_completion",
        }
    }
}

/// A response, or one chunk of it.
#[derive(Debug, Serialize)]
pub(super) struct Object<'a> {
    #[serde(flatten)]
    pub(super) head: &'a Head,
    pub(super) choices: Vec<Choice>,
    /// Absent from chunks of a stream without usage, and null in those before the last one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) usage: Option<Option<TokenUsage>>,
    /// Chat, if token ids are returned.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) prompt_token_ids: Option<Vec<u32>>,
}

/// A choice, or what a chunk adds to it.
#[derive(Debug, Default, Serialize)]
pub(super) struct Choice {
    pub(super) index: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) message: Option<Message>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) delta: Option<Delta>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) text: Option<String>,
    pub(super) logprobs: Option<Logprobs>,
    pub(super) finish_reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) token_ids: Option<Vec<u32>>,
    /// Completions, if token ids are returned.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) prompt_token_ids: Option<Vec<u32>>,
}

#[derive(Debug, Serialize)]
pub(super) struct Message {
    role: &'static str,
    content: String,
    refusal: Option<String>,
}

#[derive(Debug, Default, Serialize)]
pub(super) struct Delta {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) content: Option<String>,
}

/// Who speaks in responses.
pub(super) const ASSISTANT: &str = "assistant";

impl Message {
    pub(super) fn new(content: String) -> Self {
        Self { role: ASSISTANT, content, refusal: None }
    }
}

/// OpenAI's `CompletionUsage`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub(super) struct TokenUsage {
    prompt_tokens: u64,
    completion_tokens: u64,
    total_tokens: u64,
    prompt_tokens_details: PromptDetails,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
struct PromptDetails {
    cached_tokens: u64,
}

impl TokenUsage {
    /// Adds what one prompt took.
    pub(super) fn add(&mut self, usage: &Usage) {
        self.prompt_tokens += u64::from(usage.prompt_tokens);
        self.completion_tokens += u64::from(usage.completion_tokens);
        self.total_tokens = self.prompt_tokens + self.completion_tokens;
        self.prompt_tokens_details.cached_tokens += u64::from(usage.cached_prompt_tokens);
    }
}

/// Leaves out tokens that are not in the text.
pub(super) fn without(end_tokens: &[u32], mut tokens: Vec<TokenLogprob>) -> Vec<TokenLogprob> {
    tokens.retain(|token| !end_tokens.contains(&token.id));
    tokens
}

/// The log probabilities of a choice while they arrive.
#[derive(Debug, Default)]
pub(super) struct LogprobWriter {
    /// Where the next token begins, in characters.
    offset: usize,
}

impl LogprobWriter {
    /// Converts the tokens of a prompt that is repeated.
    pub(super) fn prompt(
        &mut self,
        text: &str,
        first: &str,
        tokens: Vec<TokenLogprob>,
    ) -> Logprobs {
        let mut all = TextLogprobs::default();
        all.add_first(first, text, &mut self.offset);
        all.add(tokens, &mut self.offset);
        Logprobs::Text(all)
    }

    /// Counts a prompt that is repeated without its log probabilities.
    pub(super) fn skip(&mut self, text: &str) {
        self.offset += text.chars().count();
    }

    /// Adds tokens of the response to `logprobs`.
    pub(super) fn add(
        &mut self,
        kind: Kind,
        logprobs: &mut Option<Logprobs>,
        tokens: Vec<TokenLogprob>,
    ) {
        let all = logprobs.get_or_insert_with(|| match kind {
            Kind::Chat => Logprobs::Chat(ChatLogprobs::default()),
            Kind::Completion => Logprobs::Text(TextLogprobs::default()),
        });
        match all {
            Logprobs::Chat(chat) => chat.add(tokens),
            Logprobs::Text(text) => text.add(tokens, &mut self.offset),
        }
    }
}

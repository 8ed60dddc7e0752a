//! The messages of OpenAI's API, as far as a load test needs them.

use serde::{Deserialize, Serialize};

use crate::targets::{
    outcome::{Failure, Finish},
    request::LoadRequest,
};

/// Maximum length of a message of the server that is shown, in characters.
const MAX_MESSAGE: usize = 300;

/// A request. What OpenAI's own servers do not know (`ignore_eos`) is only sent where it is set.
#[derive(Serialize)]
pub(super) struct Body<'a> {
    pub(super) model: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) prompt: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) messages: Option<Vec<Message<'a>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) max_tokens: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) temperature: Option<f32>,
    pub(super) seed: u64,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(super) ignore_eos: bool,
    pub(super) stream: bool,
    pub(super) stream_options: StreamOptions,
}

#[derive(Serialize)]
pub(super) struct Message<'a> {
    pub(super) role: &'static str,
    pub(super) content: &'a str,
}

#[derive(Serialize)]
pub(super) struct StreamOptions {
    pub(super) include_usage: bool,
}

/// A streamed event.
#[derive(Deserialize)]
pub(super) struct Chunk {
    #[serde(default)]
    pub(super) id: String,
    #[serde(default)]
    pub(super) model: String,
    #[serde(default)]
    pub(super) choices: Vec<Choice>,
    pub(super) usage: Option<Usage>,
    pub(super) error: Option<serde_json::Value>,
}

#[derive(Deserialize)]
pub(super) struct Choice {
    pub(super) text: Option<String>,
    pub(super) delta: Option<Delta>,
    pub(super) finish_reason: Option<String>,
}

#[derive(Deserialize)]
pub(super) struct Delta {
    pub(super) content: Option<String>,
    /// What a model thinks, which is generated as well. Its name differs between servers.
    #[serde(alias = "reasoning")]
    pub(super) reasoning_content: Option<String>,
}

#[derive(Deserialize)]
pub(super) struct Usage {
    pub(super) prompt_tokens: u32,
    #[serde(default)]
    pub(super) completion_tokens: u32,
    pub(super) prompt_tokens_details: Option<PromptDetails>,
}

#[derive(Deserialize)]
pub(super) struct PromptDetails {
    pub(super) cached_tokens: Option<u32>,
}

#[derive(Deserialize)]
pub(super) struct Models {
    pub(super) data: Vec<Model>,
}

#[derive(Deserialize)]
pub(super) struct Model {
    pub(super) id: String,
}

impl<'a> Body<'a> {
    /// Returns the message of a request, for `/v1/chat/completions` or `/v1/completions`.
    pub(super) fn new(request: &'a LoadRequest, chat: bool) -> Self {
        Self {
            model: &request.model,
            prompt: (!chat).then(|| request.text()),
            messages: chat.then(|| messages(request)),
            max_tokens: request.max_tokens,
            temperature: request.temperature,
            seed: request.seed,
            ignore_eos: request.ignore_eos,
            stream: true,
            stream_options: StreamOptions { include_usage: true },
        }
    }
}

impl Chunk {
    /// Returns the texts that the event adds, the reason for which it ends the response, and the
    /// usage.
    pub(super) fn into_parts(self) -> (Vec<String>, Option<String>, Option<Usage>) {
        let mut texts = Vec::new();
        let mut reason = None;
        for choice in self.choices {
            let delta = choice.delta.map(|delta| (delta.reasoning_content, delta.content));
            let (thought, content) = delta.unwrap_or_default();
            texts.extend([choice.text, thought, content].into_iter().flatten());
            reason = choice.finish_reason.or(reason);
        }
        texts.retain(|text| !text.is_empty());
        (texts, reason, self.usage)
    }
}

impl From<Usage> for stoker_proto::v1::Usage {
    fn from(usage: Usage) -> Self {
        let cached = usage.prompt_tokens_details.and_then(|details| details.cached_tokens);
        Self {
            prompt_tokens: usage.prompt_tokens,
            completion_tokens: usage.completion_tokens,
            cached_prompt_tokens: cached.unwrap_or_default(),
        }
    }
}

fn messages(request: &LoadRequest) -> Vec<Message<'_>> {
    let turns = request.history.iter().flat_map(|turn| {
        [("user", turn.prompt.trim_start()), ("assistant", turn.response.as_str())]
    });
    let last = [("user", request.prompt.trim_start())];
    turns.chain(last).map(|(role, content)| Message { role, content }).collect()
}

pub(super) fn finish_of(reason: &str) -> Result<Finish, Failure> {
    match reason {
        "stop" | "tool_calls" | "function_call" => Ok(Finish::Stop),
        "length" => Ok(Finish::Length),
        other => Err(Failure::invalid_response(format!("the response ended with {other:?}"))),
    }
}

/// Returns the message of an error that a server sends, which is an object in most of them.
pub(super) fn error_message(body: &[u8]) -> String {
    let parsed = serde_json::from_slice::<serde_json::Value>(body).ok();
    let message = parsed.as_ref().and_then(|value| {
        ["/error/message", "/message", "/error", "/detail"]
            .iter()
            .find_map(|path| value.pointer(path)?.as_str())
    });
    let text = message.map_or_else(|| String::from_utf8_lossy(body), Into::into);
    text.trim().chars().take(MAX_MESSAGE).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_message_of_an_error_is_found_in_every_form() {
        for (body, message) in [
            (r#"{"error": {"message": "too long", "type": "x"}}"#, "too long"),
            (r#"{"object": "error", "message": "no model"}"#, "no model"),
            (r#"{"error": "busy"}"#, "busy"),
            (r#"{"detail": "Not Found"}"#, "Not Found"),
            ("  Bad Gateway\n", "Bad Gateway"),
            (r#"{"a": 1}"#, r#"{"a": 1}"#),
            ("", ""),
        ] {
            assert_eq!(error_message(body.as_bytes()), message);
        }
        assert_eq!(error_message("é".repeat(1_000).as_bytes()).chars().count(), MAX_MESSAGE);
    }
}

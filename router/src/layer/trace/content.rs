//! The prompt and the response of a request as attributes of its span, where `--trace-content` asks
//! for them. JSON in the form of OpenTelemetry's conventions for generative models.

use serde::Serialize;
use stoker_proto::v1::{
    FinishReason, GenerateRequest, GenerateResponse, generate_request::Input,
    generate_response::Event,
};
use stoker_shared::{names::attribute, telemetry::trace::TraceSpan, validate::MAX_SEQUENCES};

/// Maximum number of bytes of a prompt, and of all choices of a response together. Spans wait in
/// memory until they are exported.
const MAX_BYTES: usize = 16 << 10;
/// End of a text that was cut.
const CUT: &str = "[...]";

/// A message of the conversation.
#[derive(Serialize)]
struct Message<'a> {
    role: &'a str,
    parts: [Part<'a>; 1],
    #[serde(skip_serializing_if = "Option::is_none")]
    finish_reason: Option<&'static str>,
}

#[derive(Serialize)]
struct Part<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    content: &'a str,
}

impl<'a> Message<'a> {
    fn new(role: &'a str, content: &'a str, finish_reason: Option<&'static str>) -> Self {
        Self { role, parts: [Part { kind: "text", content }], finish_reason }
    }
}

/// The text of a response while it is generated.
#[derive(Debug)]
pub(super) struct Content {
    choices: Vec<Choice>,
    /// Bytes that may be added.
    remaining: usize,
}

#[derive(Debug, Default)]
struct Choice {
    text: String,
    cut: bool,
    finish_reason: Option<&'static str>,
}

impl Content {
    /// Sets the prompt of `request` on `span`. A prompt of token ids has no text.
    pub(super) fn begin(request: &GenerateRequest, span: &TraceSpan) -> Self {
        let mut remaining = MAX_BYTES;
        let mut cut = |text: &str| {
            let part = prefix(text, remaining);
            remaining -= part.len();
            if part.len() < text.len() { format!("{part}{CUT}") } else { part.to_owned() }
        };
        let messages: Vec<(&str, String)> = match &request.input {
            Some(Input::Prompt(text)) => vec![("user", cut(text))],
            Some(Input::Chat(chat)) => {
                // The last messages are those that are new.
                let messages = chat.messages.iter().rev();
                let mut kept: Vec<_> = messages
                    .map(|message| (message.role.as_str(), cut(&message.content)))
                    .take_while(|(_, text)| text != CUT)
                    .collect();
                kept.reverse();
                kept
            }
            _ => Vec::new(),
        };
        let messages: Vec<_> =
            messages.iter().map(|(role, text)| Message::new(role, text, None)).collect();
        if !messages.is_empty() {
            set(span, attribute::INPUT_MESSAGES, &messages);
        }
        Self { choices: Vec::new(), remaining: MAX_BYTES }
    }

    /// Records an event of the response.
    pub(super) fn event(&mut self, event: &GenerateResponse) {
        let index = event.choice as usize;
        // A worker sends no higher ones than were asked for, which are few.
        if index >= MAX_SEQUENCES as usize {
            return;
        }
        match &event.event {
            Some(Event::Token(delta)) => {
                let limit = self.remaining;
                let choice = self.choice(index);
                if choice.cut {
                    return;
                }
                let part = prefix(&delta.text, limit);
                choice.text.push_str(part);
                choice.cut = part.len() < delta.text.len();
                self.remaining -= part.len();
            }
            Some(Event::Finished(finished)) => {
                self.choice(index).finish_reason = match finished.reason() {
                    FinishReason::Stop => Some("stop"),
                    FinishReason::Length => Some("length"),
                    _ => None,
                };
            }
            _ => {}
        }
    }

    /// Sets the response on `span`.
    pub(super) fn end(mut self, span: &TraceSpan) {
        for choice in self.choices.iter_mut().filter(|choice| choice.cut) {
            choice.text.push_str(CUT);
        }
        let messages: Vec<_> = self
            .choices
            .iter()
            .map(|choice| Message::new("assistant", &choice.text, choice.finish_reason))
            .collect();
        if !messages.is_empty() {
            set(span, attribute::OUTPUT_MESSAGES, &messages);
        }
    }

    fn choice(&mut self, index: usize) -> &mut Choice {
        if self.choices.len() <= index {
            self.choices.resize_with(index + 1, Choice::default);
        }
        &mut self.choices[index]
    }
}

fn set(span: &TraceSpan, key: &'static str, messages: &[Message<'_>]) {
    // Serialization of strings does not fail.
    if let Ok(json) = serde_json::to_string(messages) {
        span.set(key, json);
    }
}

/// Returns the longest prefix of at most `limit` bytes that ends between two characters.
fn prefix(text: &str, limit: usize) -> &str {
    &text[..text.floor_char_boundary(limit)]
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use stoker_proto::v1::{Finished, TokenDelta};

    use super::*;
    use crate::tests::support::event;

    fn token(text: &str) -> GenerateResponse {
        event(Event::Token(TokenDelta { text: text.into(), ..TokenDelta::default() }))
    }

    #[test]
    fn the_text_of_every_choice_is_collected_up_to_the_limit() {
        let mut content = Content { choices: Vec::new(), remaining: 8 };
        content.event(&GenerateResponse { choice: 1, ..token("aé") });
        content.event(&token("bcde"));
        // One byte is left, and the character has two.
        content.event(&token("é"));
        content.event(&token("x"));
        let end = Finished { reason: FinishReason::Length.into(), ..Finished::default() };
        content.event(&event(Event::Finished(end)));
        content.event(&GenerateResponse { choice: u32::MAX, ..token("x") });
        let [first, second] = &content.choices[..] else { panic!("{content:?}") };
        assert_eq!((first.text.as_str(), first.cut), ("bcde", true));
        assert_eq!((first.finish_reason, second.finish_reason), (Some("length"), None));
        assert_eq!((second.text.as_str(), second.cut), ("aé", false));
    }

    #[test]
    fn messages_have_the_form_of_the_conventions() {
        let message = Message::new("assistant", "a \"b\"", Some("stop"));
        let json = r#"{"role":"assistant","parts":[{"type":"text","content":"a \"b\""}],"finish_reason":"stop"}"#;
        assert_eq!(serde_json::to_string(&message).unwrap(), json);
    }
}

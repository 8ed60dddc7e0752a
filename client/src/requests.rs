//! Requests with an input and nothing else. Their other fields are set like this:
//!
//! ```
//! use stoker_client::{GenerateRequest, prompt, proto::Stopping};
//!
//! let stopping = Stopping { max_tokens: Some(100), ..Default::default() };
//! let request = GenerateRequest { stopping: Some(stopping), ..prompt("Once upon a time") };
//! ```

use stoker_proto::v1::{Chat, ChatMessage, GenerateRequest, generate_request::Input};

/// Returns a request to complete a text.
pub fn prompt(text: impl Into<String>) -> GenerateRequest {
    GenerateRequest { input: Some(Input::Prompt(text.into())), ..GenerateRequest::default() }
}

/// Returns a request to continue a conversation of roles and texts.
pub fn chat<R: Into<String>, T: Into<String>>(
    messages: impl IntoIterator<Item = (R, T)>,
) -> GenerateRequest {
    let messages = messages.into_iter().map(|(role, text)| message(role, text)).collect();
    let chat = Chat { messages, ..Chat::default() };
    GenerateRequest { input: Some(Input::Chat(chat)), ..GenerateRequest::default() }
}

/// Returns one message of a conversation.
pub fn message(role: impl Into<String>, text: impl Into<String>) -> ChatMessage {
    ChatMessage { role: role.into(), content: text.into(), ..ChatMessage::default() }
}

//! Conversations: from the wire to the prompt.

use std::time::SystemTime;

use prost_types::Timestamp;
use stoker_chat_template::{ChatError, Conversation, Message, Renderer};
use stoker_proto::v1::{Chat, ChatMessage};
use stoker_shared::ServiceError;

/// Renders a conversation. Templates show `time`, or the time of this worker.
pub(crate) fn render(
    templates: &Renderer,
    chat: &Chat,
    time: Option<Timestamp>,
) -> Result<String, ServiceError> {
    let conversation = Conversation {
        messages: chat.messages.iter().map(message).collect(),
        tools: chat.tools_json.iter().map(String::as_str).collect(),
        add_generation_prompt: chat.add_generation_prompt.unwrap_or(true),
        variables: &chat.template_kwargs_json,
        time: time.and_then(|time| time.try_into().ok()).unwrap_or_else(SystemTime::now),
    };
    templates.render(&conversation).map_err(|error| match error {
        ChatError::Json { field, reason } => ServiceError::invalid(format!("chat.{field}"), reason),
        ChatError::Refused(_) => ServiceError::invalid("chat.messages", error.to_string()),
        _ => ServiceError::invalid("chat", error.to_string()),
    })
}

fn message(message: &ChatMessage) -> Message<'_> {
    Message {
        role: &message.role,
        content: &message.content,
        name: &message.name,
        tool_call_id: &message.tool_call_id,
        tool_calls: message.tool_calls_json.iter().map(String::as_str).collect(),
    }
}

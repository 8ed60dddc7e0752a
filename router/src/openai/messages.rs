//! Messages of a conversation.

use serde::Deserialize;
use serde_json::value::RawValue;
use stoker_proto::v1::ChatMessage;

use super::error::ApiError;

/// A message. Fields that this API does not use are left out, as OpenAI does.
#[derive(Debug, Deserialize)]
pub(super) struct Message {
    role: String,
    #[serde(default)]
    content: Option<Content>,
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    tool_call_id: Option<String>,
    #[serde(default)]
    tool_calls: Option<Vec<Box<RawValue>>>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Content {
    Text(String),
    Parts(Vec<Part>),
}

/// A part of a message.
#[derive(Debug, Deserialize)]
struct Part {
    r#type: String,
    #[serde(default)]
    text: Option<String>,
    #[serde(default)]
    refusal: Option<String>,
}

impl Message {
    /// Converts message number `index`.
    pub(super) fn into_wire(self, index: usize) -> Result<ChatMessage, ApiError> {
        let content = match self.content {
            None => String::new(),
            Some(Content::Text(text)) => text,
            Some(Content::Parts(parts)) => join(parts, index)?,
        };
        let calls = self.tool_calls.unwrap_or_default();
        // Models know the newer name as the older one.
        let role = if self.role == "developer" { "system".into() } else { self.role };
        Ok(ChatMessage {
            role,
            content,
            name: self.name.unwrap_or_default(),
            tool_call_id: self.tool_call_id.unwrap_or_default(),
            tool_calls_json: calls.iter().map(|call| call.get().to_owned()).collect(),
        })
    }
}

/// Joins the texts of a message with line breaks, as vLLM and llama.cpp do.
fn join(parts: Vec<Part>, message: usize) -> Result<String, ApiError> {
    let mut texts = Vec::with_capacity(parts.len());
    for (i, part) in parts.into_iter().enumerate() {
        let field = format!("messages[{message}].content[{i}]");
        let text = match part.r#type.as_str() {
            "text" | "input_text" => part.text,
            "refusal" => part.refusal,
            other => {
                let message = format!(
                    "{field}: a part of type {other:?} is not supported by this version; send text"
                );
                return Err(ApiError::invalid(&field, message));
            }
        };
        let missing = || ApiError::invalid(&field, format!("{field}: has no text"));
        texts.push(text.ok_or_else(missing)?);
    }
    Ok(texts.join("\n"))
}

//! What a template is given.

use std::time::SystemTime;

use minijinja::Value;
use serde_json::error::Category;

use crate::ChatError;

/// A conversation, and how to render it.
#[derive(Debug, Clone)]
pub struct Conversation<'a> {
    /// The messages, in order.
    pub messages: Vec<Message<'a>>,
    /// Definitions of tools, each a JSON object in the format that the template expects.
    pub tools: Vec<&'a str>,
    /// Whether the start of the assistant's turn is appended.
    pub add_generation_prompt: bool,
    /// Additional variables of the template, as one JSON object. Empty: none.
    pub variables: &'a str,
    /// The time that the template's clock shows, in UTC.
    pub time: SystemTime,
}

impl Default for Conversation<'_> {
    fn default() -> Self {
        Self {
            messages: Vec::new(),
            tools: Vec::new(),
            add_generation_prompt: true,
            variables: "",
            time: SystemTime::UNIX_EPOCH,
        }
    }
}

/// One message.
#[derive(Debug, Clone, Default)]
pub struct Message<'a> {
    /// Who says it, for instance `user`.
    pub role: &'a str,
    /// Its text.
    pub content: &'a str,
    /// Name of who says it. Empty: none.
    pub name: &'a str,
    /// The call that a tool's message responds to. Empty: none.
    pub tool_call_id: &'a str,
    /// Calls of tools by the assistant, each a JSON object.
    pub tool_calls: Vec<&'a str>,
}

impl Conversation<'_> {
    /// Returns `messages` as the template sees them.
    pub(crate) fn message_values(&self) -> Result<Value, ChatError> {
        let messages = self.messages.iter().enumerate();
        messages.map(|(i, message)| message.value(i)).collect()
    }

    /// Returns `tools` as the template sees them: none, and not an empty list, where there are none.
    pub(crate) fn tool_values(&self) -> Result<Value, ChatError> {
        if self.tools.is_empty() {
            return Ok(Value::from(()));
        }
        let tools = self.tools.iter().enumerate();
        tools.map(|(i, tool)| object(|| format!("tools_json[{i}]"), tool)).collect()
    }

    /// Returns the additional variables.
    pub(crate) fn variable_pairs(&self) -> Result<Vec<(String, Value)>, ChatError> {
        if self.variables.is_empty() {
            return Ok(Vec::new());
        }
        let object = object(|| "template_kwargs_json".into(), self.variables)?;
        let pairs = object.as_object().and_then(|object| object.try_iter_pairs());
        Ok(pairs.into_iter().flatten().map(|(name, value)| (name.to_string(), value)).collect())
    }
}

impl Message<'_> {
    fn value(&self, index: usize) -> Result<Value, ChatError> {
        let mut pairs =
            vec![("role", Value::from(self.role)), ("content", Value::from(self.content))];
        for (name, text) in [("name", self.name), ("tool_call_id", self.tool_call_id)] {
            if !text.is_empty() {
                pairs.push((name, Value::from(text)));
            }
        }
        if !self.tool_calls.is_empty() {
            let calls = self.tool_calls.iter().enumerate().map(|(call, text)| {
                let field = || format!("messages[{index}].tool_calls_json[{call}]");
                Ok(with_parsed_arguments(&object(field, text)?))
            });
            pairs.push(("tool_calls", calls.collect::<Result<_, ChatError>>()?));
        }
        Ok(Value::from_pairs(pairs))
    }
}

/// Parses a JSON object. The order of its keys is kept.
fn object(field: impl Fn() -> String, text: &str) -> Result<Value, ChatError> {
    let invalid = |reason: String| ChatError::Json { field: field(), reason };
    let value: Value = serde_json::from_str(text).map_err(|error| {
        let what = match error.classify() {
            Category::Eof => "ends too early",
            _ => "is not JSON",
        };
        invalid(format!("{what}: {error}"))
    })?;
    if value.kind() == minijinja::value::ValueKind::Map {
        Ok(value)
    } else {
        Err(invalid(format!("is {}, not a JSON object", value.kind())))
    }
}

/// Replaces arguments that are the text of a JSON object with the object: OpenAI's clients send the
/// text, and templates expect the object, as transformers does.
fn with_parsed_arguments(call: &Value) -> Value {
    let replace = |holder: &Value| {
        let arguments = holder.get_attr("arguments").ok()?;
        let parsed = object(String::new, arguments.as_str()?).ok()?;
        Some(with(holder, "arguments", parsed))
    };
    let function = call.get_attr("function").ok().filter(|function| !function.is_undefined());
    match function {
        Some(function) => {
            replace(&function).map_or_else(|| call.clone(), |f| with(call, "function", f))
        }
        None => replace(call).unwrap_or_else(|| call.clone()),
    }
}

/// Returns a copy of a map in which `key`, which it has, is `value`.
fn with(map: &Value, key: &str, value: Value) -> Value {
    let pairs = map.as_object().and_then(|object| object.try_iter_pairs()).into_iter().flatten();
    Value::from_pairs(pairs.map(|(name, old)| {
        let new = if name.as_str() == Some(key) { value.clone() } else { old };
        (name, new)
    }))
}

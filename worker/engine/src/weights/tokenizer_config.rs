//! What a model folder says about its texts beside the tokenizer: chat templates, the special tokens
//! that they name, and the end token.

use serde_json::{Map, Value};
use stoker_chat_template::{ChatTemplates, SpecialTokens};

use super::{Folder, Source, WeightsError, json};

const FILE: &str = "tokenizer_config.json";
/// Where some tokenizers keep their special tokens instead.
const TOKENS: &str = "special_tokens_map.json";
/// Takes precedence over the key in the tokenizer's configuration.
const TEMPLATE_JSON: &str = "chat_template.json";
/// Takes precedence over both.
const TEMPLATE: &str = "chat_template.jinja";
/// The template for conversations with tools, beside that.
const TOOL_TEMPLATE: &str = "additional_chat_templates/tool_use.jinja";
/// Some tokenizer configurations list every added token; all are far smaller than this.
const MAX_BYTES: u64 = 64 << 20;

/// The relevant part of tokenizer_config.json, and of the files beside it.
#[derive(Debug, Default)]
pub(super) struct TokenizerConfig {
    /// The templates that format a conversation.
    pub(super) chat_templates: ChatTemplates,
    /// The token that ends a text, as the vocabulary spells it.
    pub(super) eos_token: Option<String>,
}

impl TokenizerConfig {
    /// Reads the files of a folder. A configuration that cannot be read is reported and left out: a
    /// model generates without one.
    pub(super) fn of_folder(folder: &dyn Folder) -> Result<Self, WeightsError> {
        let mut templates = ChatTemplates::default();
        if let Some(keys) = optional_object(folder, TOKENS)? {
            add_tokens(&mut templates.special_tokens, &keys);
        }
        let mut eos_token = None;
        for file in [FILE, TEMPLATE_JSON] {
            let Some(keys) = optional_object(folder, file)? else { continue };
            add_tokens(&mut templates.special_tokens, &keys);
            add_templates(&mut templates, file, &keys);
            if file == FILE {
                eos_token = keys.get("eos_token").and_then(text_of_token).map(str::to_owned);
            }
        }
        for (file, name) in
            [(TEMPLATE, ChatTemplates::DEFAULT), (TOOL_TEMPLATE, ChatTemplates::TOOL_USE)]
        {
            if let Some(source) = folder.open(file)? {
                templates.add(name, template_text(&source)?);
            }
        }
        Ok(Self { chat_templates: templates, eos_token })
    }
}

/// Reads a template from a file of its own.
pub(super) fn template_text(source: &Source) -> Result<String, WeightsError> {
    let bytes = source.read_all(MAX_BYTES)?;
    let text = std::str::from_utf8(json::without_mark(&bytes))
        .map_err(|error| source.malformed("the file", format!("is not UTF-8: {error}")))?;
    Ok(text.to_owned())
}

/// Reads a JSON object. One that cannot be read is reported and left out.
fn optional_object(
    folder: &dyn Folder,
    file: &str,
) -> Result<Option<Map<String, Value>>, WeightsError> {
    let Some(source) = folder.open(file)? else { return Ok(None) };
    Ok(json::read::<Map<String, Value>>(&source, MAX_BYTES)
        .map_err(|error| tracing::warn!(%error, "{file} is left out"))
        .ok())
}

/// Adds the key `chat_template`: a template, or several by name.
fn add_templates(templates: &mut ChatTemplates, file: &str, keys: &Map<String, Value>) {
    let left_out = |why: &str| tracing::warn!(file, "chat_template {why}, and is left out");
    let mut add = |name: Option<&str>, template: Option<&Value>| match (
        name,
        template.and_then(Value::as_str),
    ) {
        (Some(name), Some(template)) => templates.add(name, template),
        _ => left_out("has an entry without a name or a template"),
    };
    match keys.get("chat_template") {
        None | Some(Value::Null) => {}
        Some(template @ Value::String(_)) => add(Some(ChatTemplates::DEFAULT), Some(template)),
        Some(Value::Object(by_name)) => {
            by_name.iter().for_each(|(name, template)| add(Some(name), Some(template)));
        }
        Some(Value::Array(named)) => named.iter().for_each(|named| {
            add(named.get("name").and_then(Value::as_str), named.get("template"));
        }),
        Some(_) => left_out("is neither a text nor a list of texts"),
    }
}

/// Adds the special tokens: keys such as `bos_token`.
fn add_tokens(tokens: &mut SpecialTokens, keys: &Map<String, Value>) {
    for (name, token) in keys.iter().filter(|(name, _)| name.ends_with("_token")) {
        if let Some(token) = text_of_token(token) {
            tokens.set(name, token);
        }
    }
}

/// Returns the text of a token: itself, or an added token with its properties.
fn text_of_token(token: &Value) -> Option<&str> {
    match token {
        Value::Object(token) => token.get("content")?.as_str(),
        token => token.as_str(),
    }
}

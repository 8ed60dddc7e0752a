//! What a model folder says about its texts beside the tokenizer: the chat template and the end token.

use serde_json::{Map, Value};

use super::gguf::Metadata;
use super::{Folder, WeightsError, json};

/// Takes precedence over the key in the tokenizer's configuration.
const TEMPLATE: &str = "chat_template.jinja";
const FILE: &str = "tokenizer_config.json";
/// Some tokenizer configurations list every added token; all are far smaller than this.
const MAX_BYTES: u64 = 64 << 20;
/// Name of the template for plain conversations, where there are several.
const DEFAULT: &str = "default";

/// The relevant part of tokenizer_config.json, and of the files beside it.
#[derive(Debug, Default)]
pub(super) struct TokenizerConfig {
    /// The Jinja template that formats a conversation.
    pub(super) chat_template: Option<String>,
    /// The token that ends a text, as the vocabulary spells it.
    pub(super) eos_token: Option<String>,
}

impl TokenizerConfig {
    /// Reads the files of a folder. A configuration that cannot be read is reported and left out: a
    /// model generates without one.
    pub(super) fn of_folder(folder: &dyn Folder) -> Result<Self, WeightsError> {
        let mut config = Self::default();
        if let Some(source) = folder.open(FILE)? {
            match json::read::<Map<String, Value>>(&source, MAX_BYTES) {
                Ok(keys) => config = Self::of_keys(source.name(), &keys),
                Err(error) => tracing::warn!(%error, "the tokenizer's configuration is left out"),
            }
        }
        if let Some(source) = folder.open(TEMPLATE)? {
            let bytes = source.read_all(MAX_BYTES)?;
            let text = std::str::from_utf8(json::without_mark(&bytes))
                .map_err(|error| source.malformed("the file", format!("is not UTF-8: {error}")))?;
            config.chat_template = Some(text.to_owned());
        }
        Ok(config)
    }

    fn of_keys(file: &str, keys: &Map<String, Value>) -> Self {
        let template = keys.get("chat_template").filter(|value| !value.is_null());
        let chat_template = template.and_then(default_template);
        if template.is_some() && chat_template.is_none() {
            tracing::warn!(
                file,
                "chat_template has no template named \"{DEFAULT}\", and is left out"
            );
        }
        // A text, or an added token with its properties.
        let eos_token = keys.get("eos_token").and_then(|token| match token {
            Value::Object(token) => token.get("content")?.as_str(),
            token => token.as_str(),
        });
        Self { chat_template, eos_token: eos_token.map(str::to_owned) }
    }
}

/// Returns the template for plain conversations: the only one, or the one with this name.
fn default_template(templates: &Value) -> Option<String> {
    let text = match templates {
        Value::Array(named) => named
            .iter()
            .find(|named| named.get("name").and_then(Value::as_str) == Some(DEFAULT))?
            .get("template")?
            .as_str(),
        Value::Object(by_name) => by_name.get(DEFAULT)?.as_str(),
        template => template.as_str(),
    };
    text.map(str::to_owned)
}

/// The template in a GGUF file's metadata.
pub(super) fn template_of_metadata(metadata: &Metadata) -> Option<String> {
    let key = "tokenizer.chat_template";
    metadata
        .text(key)
        .unwrap_or_else(|error| {
            tracing::warn!(%error, "the chat template is left out");
            None
        })
        .map(str::to_owned)
}

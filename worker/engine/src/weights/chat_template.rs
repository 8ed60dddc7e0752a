//! Chat template of a model, found where transformers and GGUF converters store it.

use serde::Deserialize;

use super::gguf::Metadata;
use super::{Folder, WeightsError};

/// Takes precedence over the key in the tokenizer's configuration.
const FILE: &str = "chat_template.jinja";
const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
/// Some tokenizer configurations list every added token; all are far smaller than this.
const MAX_BYTES: u64 = 64 << 20;
/// Name of the template for plain conversations, where there are several.
const DEFAULT: &str = "default";

/// The relevant part of tokenizer_config.json.
#[derive(Deserialize)]
struct TokenizerConfig {
    chat_template: Option<Templates>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Templates {
    One(String),
    Named(Vec<Named>),
}

#[derive(Deserialize)]
struct Named {
    name: String,
    template: String,
}

/// The template of a model folder.
pub(super) fn of_folder(folder: &dyn Folder) -> Result<Option<String>, WeightsError> {
    if let Some(source) = folder.open(FILE)? {
        let bytes = source.read_all(MAX_BYTES)?;
        let text = String::from_utf8(bytes)
            .map_err(|error| source.malformed("the file", format!("is not UTF-8: {error}")))?;
        return Ok(Some(text));
    }
    let Some(source) = folder.open(TOKENIZER_CONFIG)? else {
        return Ok(None);
    };
    let config: TokenizerConfig = serde_json::from_slice(&source.read_all(MAX_BYTES)?)
        .map_err(|error| source.malformed("chat_template", error.to_string()))?;
    Ok(config.chat_template.and_then(|templates| match templates {
        Templates::One(template) => Some(template),
        Templates::Named(named) => {
            let default = named.into_iter().find(|named| named.name == DEFAULT);
            default.map(|named| named.template)
        }
    }))
}

/// The template in a GGUF file's metadata.
pub(super) fn of_metadata(metadata: &Metadata) -> Result<Option<String>, WeightsError> {
    Ok(metadata.text("tokenizer.chat_template")?.map(str::to_owned))
}

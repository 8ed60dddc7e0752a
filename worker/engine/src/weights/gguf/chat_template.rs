//! The chat templates of a GGUF file, and the special tokens that they name.

use stoker_chat_template::ChatTemplates;

use super::Metadata;
use crate::tokenizer::Tokenizer;
use crate::weights::WeightsError;

const TEMPLATE: &str = "tokenizer.chat_template";
/// Variables of templates, and the keys with the ids of their tokens.
const TOKENS: [(&str, &str); 7] = [
    ("bos_token", "tokenizer.ggml.bos_token_id"),
    ("eos_token", "tokenizer.ggml.eos_token_id"),
    ("unk_token", "tokenizer.ggml.unknown_token_id"),
    // Spelled like this in the format.
    ("sep_token", "tokenizer.ggml.seperator_token_id"),
    ("pad_token", "tokenizer.ggml.padding_token_id"),
    ("cls_token", "tokenizer.ggml.cls_token_id"),
    ("mask_token", "tokenizer.ggml.mask_token_id"),
];

/// Reads the templates: `tokenizer.chat_template`, and others with their name after it. One that
/// cannot be read is reported and left out.
pub(in crate::weights) fn read(metadata: &Metadata, tokenizer: &Tokenizer) -> ChatTemplates {
    let mut templates = ChatTemplates::default();
    for key in metadata.keys() {
        let Some(name) = key.strip_prefix(TEMPLATE) else { continue };
        let name = match name.strip_prefix('.') {
            Some(name) => name,
            None if name.is_empty() => ChatTemplates::DEFAULT,
            // The list of names, `tokenizer.chat_templates`.
            None => continue,
        };
        if let Some(template) = usable(metadata.text(key)) {
            templates.add(name, template);
        }
    }
    for (name, key) in TOKENS {
        let id = usable(metadata.count(key)).and_then(|id| u32::try_from(id).ok());
        if let Some(token) = id.and_then(|id| tokenizer.token(id)) {
            templates.special_tokens.set(name, token);
        }
    }
    templates
}

fn usable<T>(value: Result<Option<T>, WeightsError>) -> Option<T> {
    value.unwrap_or_else(|error| {
        tracing::warn!(%error, "left out of the chat templates");
        None
    })
}

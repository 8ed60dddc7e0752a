//! The tokenizer in the metadata of a GGUF file.
//!
//! [`vocabulary`] reads the tokens, and [`byte_level`] or [`spm`] what is merged and how;
//! [`split`] knows how models split texts before.

mod byte_level;
mod split;
mod spm;
mod vocabulary;

use super::Metadata;
use crate::tokenizer::{Tokenizer, TokenizerError, shown};
use vocabulary::Keys;

/// Builds the tokenizer that the metadata describes.
pub fn read(metadata: &Metadata) -> Result<Tokenizer, TokenizerError> {
    let keys = Keys { metadata };
    Tokenizer::new(match keys.required("model", Metadata::text)? {
        "llama" => spm::build(&keys)?,
        "gpt2" => byte_level::build(&keys)?,
        other => {
            let subject = "tokenizer.ggml.model =";
            return Err(TokenizerError::unsupported(subject, shown(other), "llama, gpt2"));
        }
    })
}

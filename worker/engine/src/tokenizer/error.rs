//! Errors of a tokenizer, or of a text to encode.

use std::fmt;

/// Reason for which a tokenizer cannot be read or a text cannot be encoded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenizerError {
    /// The vocabulary contradicts its format or itself.
    #[error("tokenizer: {subject}: {reason}")]
    Malformed {
        /// Key or token that is wrong.
        subject: String,
        /// Description of the error.
        reason: String,
    },

    /// The tokenizer uses a feature that is not implemented.
    #[error("tokenizer: {subject} {value} is not supported yet; supported: {supported}")]
    Unsupported {
        /// Key of the feature.
        subject: String,
        /// Value of the key.
        value: String,
        /// Supported values.
        supported: String,
    },

    /// The tokenizer failed on a text.
    #[error("the text cannot be tokenised: {reason}")]
    Encode {
        /// Message of the tokenizers crate.
        reason: String,
    },

    /// The text contains a token that the tokenizer knows and the model does not.
    #[error(
        "the text holds the token {token:?} (id {id}), but the model has embeddings for ids below \
         {model_vocab} only; leave the token out of the text"
    )]
    OutsideModel {
        /// The token's id.
        id: u32,
        /// The token as the vocabulary spells it.
        token: String,
        /// The number of embeddings.
        model_vocab: usize,
    },
}

impl TokenizerError {
    pub(crate) fn malformed(subject: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Malformed { subject: subject.into(), reason: reason.into() }
    }

    pub(crate) fn unsupported(
        subject: &str,
        value: impl fmt::Display,
        supported: impl Into<String>,
    ) -> Self {
        Self::Unsupported {
            subject: subject.to_owned(),
            value: value.to_string(),
            supported: supported.into(),
        }
    }
}

/// Quotes a text from a file for an error, truncated to 80 characters.
pub(crate) fn shown(text: &str) -> String {
    match text.char_indices().nth(80) {
        None => format!("{text:?}"),
        Some((end, _)) => format!("{:?}...", &text[..end]),
    }
}

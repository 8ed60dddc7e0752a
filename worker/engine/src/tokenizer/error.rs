//! What can be wrong with a tokenizer, or with a text given to it.

use std::fmt;

use crate::weights::WeightsError;

/// Why a tokenizer could not be read or a text not be encoded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenizerError {
    /// The vocabulary contradicts its format or itself.
    #[error("tokenizer: {subject}: {reason}")]
    Malformed {
        /// The key or token that is wrong.
        subject: String,
        /// What is wrong with it.
        reason: String,
    },

    /// The tokenizer works in a way that is not implemented.
    #[error("tokenizer: {subject} {value} is not supported yet; supported: {supported}")]
    Unsupported {
        /// The key that asks for it.
        subject: String,
        /// The value it asks for.
        value: String,
        /// What would be accepted.
        supported: String,
    },

    /// The tokenizer failed on a text.
    #[error("the text cannot be tokenised: {reason}")]
    Encode {
        /// The tokenizer's own words.
        reason: String,
    },

    /// The text holds a token that the tokenizer knows and the model does not.
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
    pub(super) fn malformed(subject: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Malformed { subject: subject.into(), reason: reason.into() }
    }

    pub(super) fn unsupported(
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

    /// An error in reading metadata, less the file's name: whoever opened the file adds it.
    pub(super) fn from_metadata(error: WeightsError) -> Self {
        match error {
            WeightsError::Malformed { subject, reason, .. } => Self::Malformed { subject, reason },
            other => Self::malformed("metadata", other.to_string()),
        }
    }
}

/// A text from a file as errors show it: quoted, and no more than its beginning.
pub(super) fn shown(text: &str) -> String {
    match text.char_indices().nth(80) {
        None => format!("{text:?}"),
        Some((end, _)) => format!("{:?}...", &text[..end]),
    }
}

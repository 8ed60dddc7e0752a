//! Errors of model files, with the facts that a user needs to fix them.

use std::io;

use crate::tokenizer::TokenizerError;

/// Reason for which a model, or one of its tensors, cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WeightsError {
    /// The path does not exist.
    #[error(
        "{path}: no such file or folder; pass a folder with config.json, tokenizer.json and \
         model.safetensors, or a .gguf file"
    )]
    NotFound {
        /// The path as given.
        path: String,
    },

    /// The path exists but is not a model that this engine reads.
    #[error("{path}: {reason}; {advice}")]
    NotAModel {
        /// The path as given.
        path: String,
        /// What is at the path instead.
        reason: String,
        /// What the user can do.
        advice: String,
    },

    /// The operating system refused a read.
    #[error("{file}: cannot read {what}: {source}")]
    Io {
        /// The file being read.
        file: String,
        /// Description of the data to read.
        what: String,
        /// Error of the operating system.
        #[source]
        source: io::Error,
    },

    /// The file contradicts its format, its own size or itself.
    #[error("{file}: {subject}: {reason}")]
    Malformed {
        /// The file.
        file: String,
        /// Key, tensor or part of the file that is wrong.
        subject: String,
        /// Description of the error, with the actual value and the limit.
        reason: String,
    },

    /// The file is valid but uses a feature that is not implemented.
    #[error("{file}: {subject} {value} is not supported yet; supported: {supported}")]
    Unsupported {
        /// The file.
        file: String,
        /// Key or tensor of the feature.
        subject: String,
        /// Value of the key.
        value: String,
        /// Supported values.
        supported: String,
    },

    /// The file lacks a tensor that the configuration requires.
    #[error(
        "{file}: tensor {tensor} is missing; the configuration requires it with shape \
         {expected:?}{advice}"
    )]
    MissingTensor {
        /// The file.
        file: String,
        /// The name that it would have in the file.
        tensor: String,
        /// The shape it should have, outermost dimension first.
        expected: Vec<usize>,
        /// What to do about it, after a semicolon; may be empty.
        advice: String,
    },

    /// A tensor's shape differs from the one that the configuration requires.
    #[error(
        "{file}: tensor {tensor} has shape {actual:?}; the configuration requires {expected:?}"
    )]
    WrongShape {
        /// The file.
        file: String,
        /// The name in the file.
        tensor: String,
        /// The shape in the file, outermost dimension first.
        actual: Vec<usize>,
        /// The shape it should have.
        expected: Vec<usize>,
    },

    /// A tensor that the model would use and this engine does not.
    #[error(
        "{file}: tensor {tensor} is not one that a model of this configuration uses; \
         leaving it out would change the model's responses, so the model is refused"
    )]
    UnexpectedTensor {
        /// The file.
        file: String,
        /// The name in the file.
        tensor: String,
    },

    /// A weight is NaN or infinite: the file is damaged or the training diverged.
    #[error("{file}: tensor {tensor} holds {value} at index {index}; weights must be finite")]
    NonFinite {
        /// The file.
        file: String,
        /// The name in the file.
        tensor: String,
        /// Row-major index of the first such element.
        index: usize,
        /// The value found.
        value: f32,
    },

    /// The caller requested a tensor that the model does not have.
    #[error("{model}: there is no tensor {tensor}")]
    UnknownTensor {
        /// The model.
        model: String,
        /// Requested name.
        tensor: String,
    },

    /// The model's tokenizer cannot be used.
    #[error("{file}: {source}")]
    Tokenizer {
        /// File that it was read from.
        file: String,
        /// Error of the tokenizer.
        #[source]
        source: TokenizerError,
    },
}

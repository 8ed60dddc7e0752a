//! What can be wrong with a model on disk, said so that a person knows what to do about it.

use std::io;

use crate::tokenizer::TokenizerError;

/// Why a model, or one tensor of it, could not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WeightsError {
    /// The path leads nowhere.
    #[error(
        "{path}: no such file or folder; pass a folder with config.json, tokenizer.json and \
         model.safetensors, or a .gguf file"
    )]
    NotFound {
        /// The path as given.
        path: String,
    },

    /// The path exists but what is there is not a model this engine reads.
    #[error("{path}: {reason}; {advice}")]
    NotAModel {
        /// The path as given.
        path: String,
        /// What was found instead.
        reason: String,
        /// What the user can do.
        advice: String,
    },

    /// The operating system refused a read.
    #[error("{file}: cannot read {what}: {source}")]
    Io {
        /// The file being read.
        file: String,
        /// What was being read.
        what: String,
        /// The system's own words.
        #[source]
        source: io::Error,
    },

    /// The file contradicts its format, its own size or itself.
    #[error("{file}: {subject}: {reason}")]
    Malformed {
        /// The file.
        file: String,
        /// The key, tensor or part of the file that is wrong.
        subject: String,
        /// What is wrong with it, with the actual value and the limit.
        reason: String,
    },

    /// The file is sound but asks for something that is not implemented.
    #[error("{file}: {subject} {value} is not supported yet; supported: {supported}")]
    Unsupported {
        /// The file.
        file: String,
        /// The key or tensor that asks for it.
        subject: String,
        /// The value it asks for.
        value: String,
        /// What would be accepted.
        supported: String,
    },

    /// The configuration promises a tensor that the file does not hold.
    #[error("{file}: tensor {tensor} is missing; the configuration asks for it as {expected:?}")]
    MissingTensor {
        /// The file.
        file: String,
        /// The canonical name.
        tensor: String,
        /// The shape it should have, outermost dimension first.
        expected: Vec<usize>,
    },

    /// A tensor's shape is not the one that the configuration implies.
    #[error(
        "{file}: tensor {tensor} has shape {actual:?}; the configuration asks for {expected:?}"
    )]
    WrongShape {
        /// The file.
        file: String,
        /// The canonical name.
        tensor: String,
        /// The shape in the file, outermost dimension first.
        actual: Vec<usize>,
        /// The shape it should have.
        expected: Vec<usize>,
    },

    /// A tensor that the model would have to use, and this engine would leave out.
    #[error(
        "{file}: tensor {tensor} is not one that a model of this configuration uses; \
         leaving it out would change the model's answers, so the model is refused"
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
        /// The canonical name.
        tensor: String,
        /// Row-major index of the first such element.
        index: usize,
        /// The value found.
        value: f32,
    },

    /// A tensor was asked for by a name that the model does not have.
    #[error("{model}: there is no tensor {tensor}")]
    UnknownTensor {
        /// The model.
        model: String,
        /// The name asked for.
        tensor: String,
    },

    /// The tokenizer that belongs to the model cannot be used.
    #[error("{file}: {source}")]
    Tokenizer {
        /// The file it was read from.
        file: String,
        /// What is wrong with it.
        #[source]
        source: TokenizerError,
    },
}

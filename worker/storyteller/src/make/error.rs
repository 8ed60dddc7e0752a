//! The errors of the training pipeline.

use crate::corpus::grammar::GrammarError;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // The messages document the variants.
pub enum Error {
    #[error("invalid grammar: {0}")]
    Grammar(#[from] GrammarError),
    #[error("the tokenizer failed: {0}")]
    Tokenizer(String),
    #[error("cannot read or write {path}: {source}")]
    File { path: String, source: std::io::Error },
    #[error("{0}")]
    Json(#[from] serde_json::Error),
    #[error("invalid weights file: {0}")]
    Weights(String),
    #[error("cannot start a thread: {0}")]
    Threads(#[from] rayon::ThreadPoolBuildError),
    #[error("the loss is not finite after step {0}")]
    Diverged(usize),
}

/// The result of the pipeline's functions.
pub type Result<T> = std::result::Result<T, Error>;

/// Returns a conversion of I/O errors that adds the path.
pub fn at(path: &std::path::Path) -> impl Fn(std::io::Error) -> Error + '_ {
    move |source| Error::File { path: path.display().to_string(), source }
}

impl From<tokenizers::Error> for Error {
    fn from(error: tokenizers::Error) -> Self {
        Self::Tokenizer(error.to_string())
    }
}

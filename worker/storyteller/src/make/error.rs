//! Everything that can stop the making of a model.

use crate::corpus::grammar::GrammarError;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // Each variant's message says what it means.
pub enum Error {
    #[error("the grammar is broken: {0}")]
    Grammar(#[from] GrammarError),
    #[error("the tokenizer failed: {0}")]
    Tokenizer(String),
    #[error("cannot read or write {path}: {source}")]
    File { path: String, source: std::io::Error },
    #[error("{0}")]
    Json(#[from] serde_json::Error),
    #[error("not a usable weights file: {0}")]
    Weights(String),
    #[error("cannot start a thread: {0}")]
    Threads(#[from] rayon::ThreadPoolBuildError),
    #[error("the loss is not a number any more after step {0}")]
    Diverged(usize),
}

/// What every fallible function here returns.
pub type Result<T> = std::result::Result<T, Error>;

/// Names the file in an input or output error.
pub fn at(path: &std::path::Path) -> impl Fn(std::io::Error) -> Error + '_ {
    move |source| Error::File { path: path.display().to_string(), source }
}

impl From<tokenizers::Error> for Error {
    fn from(error: tokenizers::Error) -> Self {
        Self::Tokenizer(error.to_string())
    }
}

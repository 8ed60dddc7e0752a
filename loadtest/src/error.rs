//! Errors of a load test.

use std::io;

use stoker_shared::{
    ServiceError,
    cli::{CommandError, FileError},
    client::ConnectError,
};

/// Why a load test could not run. Failed calls are not such errors: they are counted.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A flag, or a file that it names, is wrong.
    #[error("{0}")]
    Usage(String),
    /// A file that a flag names cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// The cluster cannot be reached.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The target did not tokenize the words of synthetic prompts.
    #[error("synthetic prompts (--synthetic, --trace) need the target's tokenizer: {0}")]
    Tokenize(String),
    /// The target failed before anything was measured.
    #[error("{0}")]
    Failed(String),
    /// An error of the operating system.
    #[error("{0}")]
    System(#[from] io::Error),
}

impl CommandError for Error {
    fn is_usage(&self) -> bool {
        matches!(self, Self::Usage(_) | Self::File(_))
    }
}

impl From<ServiceError> for Error {
    /// A request that is invalid before it is sent is bad usage.
    fn from(error: ServiceError) -> Self {
        Self::Usage(error.to_string())
    }
}

//! Errors of a load test, and its exit codes.

use std::{io, path::PathBuf, process::ExitCode};

use stoker_shared::{ServiceError, client::ConnectError};

/// Why a load test could not run. Failed calls are not such errors: they are counted.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A flag, or a file that it names, is wrong.
    #[error("{0}")]
    Usage(String),
    /// A file that a flag names cannot be read or written.
    #[error("{flag} {}: {source}", .path.display())]
    File {
        /// The flag, for instance `--prompts`.
        flag: &'static str,
        /// Path of the file.
        path: PathBuf,
        /// Error of the operating system.
        source: io::Error,
    },
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

impl Error {
    /// Returns 1 if the cluster or the system failed, 2 for bad usage.
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::Usage(_) | Self::File { .. } => ExitCode::from(2),
            Self::Connect(_) | Self::Tokenize(_) | Self::Failed(_) | Self::System(_) => {
                ExitCode::from(1)
            }
        }
    }

    pub(crate) fn file(
        flag: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { flag, path, source }
    }
}

impl From<ServiceError> for Error {
    /// A request that is invalid before it is sent is bad usage.
    fn from(error: ServiceError) -> Self {
        Self::Usage(error.to_string())
    }
}

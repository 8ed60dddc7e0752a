//! Errors of commands and their exit codes.

use std::process::ExitCode;

use stoker_shared::{
    ServiceError,
    client::{CallError, ConnectError},
};

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The command line, the model or an address is wrong: nothing was started.
    #[error("{0}")]
    Usage(String),
    /// The cluster refused the request or could not finish it.
    #[error(transparent)]
    Request(#[from] CallError),
    /// No cluster could be reached.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// Any other error.
    #[error("{0}")]
    Failed(String),
}

impl Error {
    /// Returns 1 for a failed request, 2 for bad usage.
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::Usage(_) => ExitCode::from(2),
            Self::Request(_) | Self::Connect(_) | Self::Failed(_) => ExitCode::from(1),
        }
    }
}

impl From<ServiceError> for Error {
    /// Converts the validation error of a request that was not sent, which is bad usage.
    fn from(error: ServiceError) -> Self {
        Self::Usage(error.to_string())
    }
}

//! Errors of commands.

use stoker_shared::{
    ServiceError,
    cli::{CommandError, ServerError},
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

impl CommandError for Error {
    fn is_usage(&self) -> bool {
        matches!(self, Self::Usage(_) | Self::Connect(ConnectError::Credentials(_)))
    }
}

impl From<ServerError> for Error {
    fn from(error: ServerError) -> Self {
        if error.is_usage() {
            Self::Usage(error.to_string())
        } else {
            Self::Failed(error.to_string())
        }
    }
}

impl From<ServiceError> for Error {
    /// Converts the validation error of a request that was not sent, which is bad usage.
    fn from(error: ServiceError) -> Self {
        Self::Usage(error.to_string())
    }
}

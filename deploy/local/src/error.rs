//! How a command fails, and what the shell is told.

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
    /// There is no cluster.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// Anything else.
    #[error("{0}")]
    Failed(String),
}

impl Error {
    /// 1 for a failed request, 2 for bad usage.
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::Usage(_) => ExitCode::from(2),
            Self::Request(_) | Self::Connect(_) | Self::Failed(_) => ExitCode::from(1),
        }
    }
}

impl From<ServiceError> for Error {
    /// A request that is wrong before it is sent is bad usage.
    fn from(error: ServiceError) -> Self {
        Self::Usage(error.to_string())
    }
}

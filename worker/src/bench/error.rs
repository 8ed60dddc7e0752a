//! Errors of `bench` and `gpu-check`, and their exit codes.

use std::{io, path::PathBuf};

use stoker_engine::weights::WeightsError;

use super::random::CacheError;
use crate::LoadError;

/// Why a measurement failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// A flag conflicts with another flag or with the model.
    #[error("{0}")]
    Usage(String),
    /// A file named by a flag cannot be written.
    #[error("{flag} {}: {source}", .path.display())]
    File {
        /// The flag, for example `--csv`.
        flag: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error(transparent)]
    Cache(#[from] CacheError),
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The child process of a job failed.
    #[error("{what}: {why}")]
    Row { what: String, why: String, code: u8 },
    /// Any other failure.
    #[error("{0}")]
    Failed(String),
}

impl Error {
    /// Returns the exit code, 1 for a failure and 2 for bad usage, and the message.
    pub(super) fn for_shell(self) -> (u8, String) {
        let code = match &self {
            Self::Usage(_) | Self::File { .. } | Self::Cache(_) | Self::Load(_) => 2,
            Self::Row { code, .. } => *code,
            Self::Failed(_) => 1,
        };
        (code, self.to_string())
    }
}

impl From<WeightsError> for Error {
    fn from(error: WeightsError) -> Self {
        Self::Load(error.into())
    }
}

//! Why something could not be measured, and what the shell is told.

use std::{io, path::PathBuf};

use stoker_engine::weights::WeightsError;

use super::random::CacheError;
use crate::LoadError;

/// Why something could not be measured.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// A flag does not fit another, or the model.
    #[error("{0}")]
    Usage(String),
    /// A file that a flag names cannot be written.
    #[error("{flag} {}: {source}", .path.display())]
    File {
        /// For instance `--csv`.
        flag: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error(transparent)]
    Cache(#[from] CacheError),
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The process of a row failed.
    #[error("{what}: {why}")]
    Row { what: String, why: String, code: u8 },
    /// Anything else.
    #[error("{0}")]
    Failed(String),
}

impl Error {
    /// 1 if the machine or the model failed, 2 for bad usage; and what to say.
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

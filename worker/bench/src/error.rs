//! Errors of the commands.

use std::{io, path::PathBuf};

use bytesize::ByteSize;
use stoker_engine::weights::WeightsError;
use stoker_loader::LoadError;
use stoker_shared::cli::{BAD_USAGE, CommandError, FileError};

/// Why a measurement failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A flag is missing, or contradicts another one or the model.
    #[error("{0}")]
    Usage(String),
    /// A file that a flag names cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// Generated weights cannot be kept.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// The model cannot be loaded.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The process of a job failed.
    #[error("{job}: {why}")]
    Job {
        /// The job.
        job: String,
        /// Its error.
        why: String,
        /// Its exit code.
        code: u8,
    },
    /// Any other failure.
    #[error("{0}")]
    Failed(String),
}

/// Why random weights are not available.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// No cache folder is configured.
    #[error("--cache is missing, and neither XDG_CACHE_HOME nor HOME is set: name a folder")]
    NoCacheFolder,
    /// The files cannot be written.
    #[error(
        "--cache {}: {path}: {source}; random weights of {shape} take {size} there: \
         free that much space or name another folder", cache.display(), path = path.display()
    )]
    Unwritable {
        /// The cache folder.
        cache: PathBuf,
        /// The file or folder that cannot be written.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
        /// Name of the shape.
        shape: &'static str,
        /// Size of the file.
        size: ByteSize,
    },
}

impl CommandError for Error {
    fn is_usage(&self) -> bool {
        match self {
            Self::Usage(_) | Self::File(_) | Self::Cache(_) | Self::Load(_) => true,
            Self::Job { code, .. } => *code == BAD_USAGE,
            Self::Failed(_) => false,
        }
    }
}

impl From<WeightsError> for Error {
    fn from(error: WeightsError) -> Self {
        Self::Load(error.into())
    }
}

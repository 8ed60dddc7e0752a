//! Errors and output of the commands that measure.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

use serde::Serialize;
use stoker_engine::weights::WeightsError;

use crate::LoadError;

/// Error of a command.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// A flag is missing, or contradicts another one or the model.
    #[error("{0}")]
    Usage(String),
    /// A file that a flag names cannot be read or written.
    #[error("{flag} {}: {source}", path.display())]
    File {
        /// Name of the flag, for instance `--json`.
        flag: &'static str,
        /// Path of the file.
        path: PathBuf,
        /// Error of the operating system.
        source: io::Error,
    },
    /// The model cannot be loaded.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// Any other error.
    #[error("{0}")]
    Other(String),
}

impl CommandError {
    /// Returns the exit code (2 for bad usage, 1 for other errors) and the message.
    pub fn for_shell(self) -> (u8, String) {
        let code = match &self {
            Self::Usage(_) | Self::File { .. } | Self::Load(_) => 2,
            Self::Other(_) => 1,
        };
        (code, self.to_string())
    }

    /// Returns a conversion of I/O errors that adds the flag and the path.
    pub(crate) fn at(flag: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::File { flag, path, source }
    }
}

impl From<WeightsError> for CommandError {
    fn from(error: WeightsError) -> Self {
        Self::Load(error.into())
    }
}

/// Creates the file of `--json`, so that an unwritable path fails before the measurement.
pub(crate) fn claim_json(path: Option<&Path>) -> Result<(), CommandError> {
    path.map_or(Ok(()), |path| {
        File::create(path).map(drop).map_err(CommandError::at("--json", path))
    })
}

/// Writes the file of `--json`.
pub(crate) fn write_json(path: Option<&Path>, value: &impl Serialize) -> Result<(), CommandError> {
    let Some(path) = path else { return Ok(()) };
    let mut text = serde_json::to_string_pretty(value)
        .map_err(|error| CommandError::Other(error.to_string()))?;
    text.push('\n');
    fs::write(path, text).map_err(CommandError::at("--json", path))
}

/// Prints to standard output. A closed pipe is an error, not a panic.
pub(crate) fn print(text: &str) -> Result<(), CommandError> {
    let printed = io::stdout().write_all(text.as_bytes());
    printed.map_err(|error| CommandError::Other(format!("standard output: {error}")))
}

//! Why a command that measures ended, and what the shell is told.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

use serde::Serialize;
use stoker_engine::weights::WeightsError;

use crate::LoadError;

/// Why a command ended.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// A flag is missing, or does not fit another or the model.
    #[error("{0}")]
    Usage(String),
    /// A file that a flag names cannot be read or written.
    #[error("{flag} {}: {source}", path.display())]
    File {
        /// For instance `--json`.
        flag: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The model.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// Anything else.
    #[error("{0}")]
    Other(String),
}

impl CommandError {
    /// The exit code, 1 for a failure and 2 for bad usage, and the message.
    pub fn for_shell(self) -> (u8, String) {
        let code = match &self {
            Self::Usage(_) | Self::File { .. } | Self::Load(_) => 2,
            Self::Other(_) => 1,
        };
        (code, self.to_string())
    }

    /// Names the file in an error of the system.
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

/// Opens the file of `--json`, so that one that cannot be written is known before anything is measured.
pub(crate) fn claim_json(path: Option<&Path>) -> Result<(), CommandError> {
    path.map_or(Ok(()), |path| File::create(path).map(drop).map_err(CommandError::at("--json", path)))
}

/// Writes the file of `--json`.
pub(crate) fn write_json(path: Option<&Path>, value: &impl Serialize) -> Result<(), CommandError> {
    let Some(path) = path else { return Ok(()) };
    let mut text =
        serde_json::to_string_pretty(value).map_err(|error| CommandError::Other(error.to_string()))?;
    text.push('\n');
    fs::write(path, text).map_err(CommandError::at("--json", path))
}

/// Prints to standard output; a reader that has gone away is a failure, not a panic.
pub(crate) fn print(text: &str) -> Result<(), CommandError> {
    let printed = io::stdout().write_all(text.as_bytes());
    printed.map_err(|error| CommandError::Other(format!("standard output: {error}")))
}

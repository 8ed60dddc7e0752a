//! Errors and exit codes of commands, the same for all programs.

use std::{
    fmt, io,
    path::{Path, PathBuf},
    process::ExitCode,
};

/// Exit code of a command that failed.
pub const FAILURE: u8 = 1;
/// Exit code for a wrong command line, or a wrong file, model or address that it names.
pub const BAD_USAGE: u8 = 2;

/// An error that ends a command.
pub trait CommandError: fmt::Display {
    /// Whether the user has to change the command, in which case nothing was done.
    fn is_usage(&self) -> bool;

    /// Exit code of the command.
    fn exit_code(&self) -> u8 {
        if self.is_usage() { BAD_USAGE } else { FAILURE }
    }
}

/// Ends a command: prints its error, if it has one, and returns the exit code of the process.
pub fn finish(outcome: Result<ExitCode, impl CommandError>) -> ExitCode {
    outcome.unwrap_or_else(|error| {
        eprintln!("error: {error}");
        ExitCode::from(error.exit_code())
    })
}

/// Why a program that serves does not start, or stops.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ServerError {
    /// The configuration, the model or an address is wrong: nothing was served.
    #[error("{0}")]
    Usage(String),
    /// Any other error.
    #[error("{0}")]
    Failed(String),
}

impl ServerError {
    /// Returns the error of a wrong configuration, with the message of `cause`.
    pub fn usage(cause: impl fmt::Display) -> Self {
        Self::Usage(cause.to_string())
    }

    /// Returns any other error, with the message of `cause`.
    pub fn failed(cause: impl fmt::Display) -> Self {
        Self::Failed(cause.to_string())
    }
}

impl CommandError for ServerError {
    fn is_usage(&self) -> bool {
        matches!(self, Self::Usage(_))
    }
}

/// A file that a flag names cannot be read or written, which is bad usage.
#[derive(Debug, thiserror::Error)]
#[error("{flag} {}: {source}", path.display())]
pub struct FileError {
    /// The flag, for instance `--json`.
    pub flag: &'static str,
    /// Path of the file.
    pub path: PathBuf,
    /// Error of the operating system.
    pub source: io::Error,
}

impl FileError {
    /// Returns a conversion of I/O errors that adds the flag and the path.
    pub fn at(flag: &'static str, path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> Self {
        let path = path.as_ref().to_owned();
        move |source| Self { flag, path, source }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_usage_and_failures_have_exit_codes_of_their_own() {
        assert_eq!(ServerError::usage("--model: no such file").exit_code(), BAD_USAGE);
        assert_eq!(ServerError::failed("the engine failed").exit_code(), FAILURE);
    }

    #[test]
    fn an_error_of_a_file_names_the_flag_and_the_path() {
        let error = FileError::at("--json", "/no/such")(io::ErrorKind::NotFound.into());
        assert_eq!(error.to_string(), "--json /no/such: entity not found");
    }
}

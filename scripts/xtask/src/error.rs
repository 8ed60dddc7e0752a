//! Why a tool failed.

use std::{io, path::PathBuf};

/// Names the file and what is wrong with it.
#[derive(Debug, thiserror::Error)]
#[cfg_attr(not(feature = "policies"), allow(dead_code, reason = "the other tools read nothing"))]
pub(crate) enum Error {
    /// A file cannot be read or written.
    #[error("{}: {error}", path.display())]
    File {
        /// The file or folder.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },
    /// The content of a file is not what the tool takes.
    #[error("{}, line {line}: {reason}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// What is wrong, and what is right.
        reason: String,
    },
}

impl Error {
    /// Adds the name of the file to an error of the system.
    pub(crate) fn of(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |error| Self::File { path, error }
    }
}

//! The cause of a failed start or end: the last line on standard error, and in Kubernetes the
//! termination message of the container, which `kubectl describe pod` shows.

use std::{
    env,
    fs::OpenOptions,
    io::{self, Write},
    path::{Path, PathBuf},
    process::ExitCode,
};

use crate::cli::{self, ServerError};

/// Variable with the file of the termination message, if it is not [`DEFAULT_PATH`].
const VARIABLE: &str = "STOKER_TERMINATION_LOG";
/// Default of `terminationMessagePath` in Kubernetes.
const DEFAULT_PATH: &str = "/dev/termination-log";
/// Variable that Kubernetes sets in every container.
const KUBERNETES: &str = "KUBERNETES_SERVICE_HOST";
/// Kubernetes truncates longer messages, in bytes.
const MAX_BYTES: usize = 4096;

/// Ends a program that serves: writes its error, if it has one, to the termination message and as
/// the last line to standard error. Returns the exit code of the process.
pub fn finish(outcome: Result<ExitCode, ServerError>) -> ExitCode {
    if let Err(cause) = &outcome {
        record(&cause.to_string());
    }
    cli::finish(outcome)
}

/// Writes the cause to the termination message, if this process has one: to the file that
/// `STOKER_TERMINATION_LOG` names, or in Kubernetes to `/dev/termination-log`.
pub fn record(cause: &str) {
    if let Some(path) = env::var_os(VARIABLE).filter(|path| !path.is_empty()).map(PathBuf::from) {
        if let Err(error) = write(&path, cause, true) {
            eprintln!("{VARIABLE} {}: {error}; name a file that can be written", path.display());
        }
    } else if env::var_os(KUBERNETES).is_some_and(|host| !host.is_empty()) {
        // Absent if `terminationMessagePath` names another file, which is not an error.
        let _ = write(Path::new(DEFAULT_PATH), cause, false);
    }
}

fn write(path: &Path, cause: &str, create: bool) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).truncate(true).create(create).open(path)?;
    file.write_all(&cause.as_bytes()[..cause.floor_char_boundary(MAX_BYTES)])
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn a_message_replaces_the_last_one_and_is_truncated_between_characters() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("termination-log");
        assert!(write(&path, "cause", false).is_err(), "only a named file is created");
        write(&path, &"é".repeat(MAX_BYTES), true).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text, "é".repeat(MAX_BYTES / 2));
        write(&path, "--model: no such file", false).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "--model: no such file");
    }
}

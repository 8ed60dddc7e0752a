//! The file of `--json`, and text on standard output.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::Path,
};

use serde::Serialize;
use stoker_shared::cli::FileError;

use crate::Error;

const FLAG: &str = "--json";

/// Creates the file, so that an unwritable path fails before the measurement.
pub(crate) fn claim(path: Option<&Path>) -> Result<(), Error> {
    path.map_or(Ok(()), |path| {
        Ok(File::create(path).map(drop).map_err(FileError::at(FLAG, path))?)
    })
}

/// Writes `value` to the file.
pub(crate) fn write(path: Option<&Path>, value: &impl Serialize) -> Result<(), Error> {
    let Some(path) = path else { return Ok(()) };
    let text = serde_json::to_string_pretty(value);
    let text = text.map_err(|error| Error::Failed(error.to_string()))? + "\n";
    Ok(fs::write(path, text).map_err(FileError::at(FLAG, path))?)
}

/// Prints to standard output. A closed pipe is an error, not a panic.
pub(crate) fn print(text: &str) -> Result<(), Error> {
    let printed = io::stdout().write_all(text.as_bytes());
    printed.map_err(|error| Error::Failed(format!("standard output: {error}")))
}

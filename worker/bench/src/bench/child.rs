//! The child process that measures one job: reads the job from standard input as JSON and writes
//! messages to standard output, one JSON object per line.

use std::io::{self, Write};

use serde::{Deserialize, Serialize};

use super::{job::Job, measure, report::TableRow};
use crate::{
    Error,
    harness::{Progress, Update},
};

/// A message from the child process, one per line.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Message {
    /// Progress, for display.
    Update(Update),
    /// A result, sent at the end.
    Row(Box<TableRow>),
}

/// Measures the job on standard input.
pub fn run() -> Result<(), Error> {
    let job: Job = serde_json::from_reader(io::stdin().lock())
        .map_err(|error| Error::Usage(format!("standard input is not a bench job: {error}")))?;
    let progress = Progress::new(|update| send(&Message::Update(update)));
    for row in measure::measure(&job, progress)? {
        send(&Message::Row(Box::new(row)))?;
    }
    Ok(())
}

/// Fails if standard output is closed.
fn send(message: &Message) -> Result<(), Error> {
    let failed = |error: io::Error| Error::Failed(format!("standard output: {error}"));
    let text = serde_json::to_string(message).map_err(|error| failed(error.into()))?;
    let mut out = io::stdout().lock();
    writeln!(out, "{text}").and_then(|()| out.flush()).map_err(failed)
}

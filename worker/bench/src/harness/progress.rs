//! Progress of a measurement, for display.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::Error;

/// Minimum time between two stages.
const STAGE_INTERVAL: Duration = Duration::from_millis(200);

/// What a measurement says while it runs.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Update {
    /// The current stage, which replaces the last one.
    Stage(String),
    /// A line to keep.
    Line(String),
}

/// Sends the progress of a measurement somewhere.
#[derive(Debug)]
pub(crate) struct Progress {
    last: Option<Instant>,
    send: Option<fn(Update) -> Result<(), Error>>,
}

impl Progress {
    /// Returns an instance that sends updates with `send`.
    pub(crate) fn new(send: fn(Update) -> Result<(), Error>) -> Self {
        Self { last: None, send: Some(send) }
    }

    /// Returns an instance that sends nothing.
    pub(crate) fn silent() -> Self {
        Self { last: None, send: None }
    }

    /// Sends the current stage, at most one every [`STAGE_INTERVAL`].
    pub(crate) fn stage(&mut self, stage: impl FnOnce() -> String) -> Result<(), Error> {
        let Some(send) = self.send else { return Ok(()) };
        if self.last.is_some_and(|last| last.elapsed() < STAGE_INTERVAL) {
            return Ok(());
        }
        self.last = Some(Instant::now());
        send(Update::Stage(stage()))
    }

    /// Sends a line to keep.
    pub(crate) fn line(&mut self, line: String) -> Result<(), Error> {
        self.send.map_or(Ok(()), |send| send(Update::Line(line)))
    }
}

//! The child process that measures one job: reads the job from standard input as JSON and writes
//! messages to standard output, one JSON object per line.

use std::{
    io::{self, Write},
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use super::{error::Error, job::Job, measure, row::TableRow};

/// Minimum time between two stage messages.
const STAGE_INTERVAL: Duration = Duration::from_millis(200);

/// A message from the child process, one per line.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Message {
    /// Description of the current stage, for display.
    Stage(String),
    /// Throughput in one minute of `--soak`.
    Minute {
        /// Number of the minute, from 1.
        minute: u64,
        /// Output tokens of all sequences.
        tokens_per_second: f64,
    },
    /// A result, sent at the end.
    Row(Box<TableRow>),
}

/// Measures the job on standard input.
pub fn run() -> Result<(), (u8, String)> {
    child().map_err(Error::for_shell)
}

fn child() -> Result<(), Error> {
    let job: Job = serde_json::from_reader(io::stdin().lock())
        .map_err(|error| Error::Usage(format!("standard input is not a bench job: {error}")))?;
    let mut progress = Progress::default();
    for row in measure::measure(&job, &mut progress)? {
        progress.send(&Message::Row(Box::new(row)))?;
    }
    Ok(())
}

/// Reports progress to the parent process.
#[derive(Debug, Default)]
pub(super) struct Progress {
    last: Option<Instant>,
    quiet: bool,
}

impl Progress {
    /// Returns an instance that sends no stages.
    pub(super) fn silent() -> Self {
        Self { last: None, quiet: true }
    }

    /// Sends the current stage, at most one every [`STAGE_INTERVAL`]. Fails if standard output is
    /// closed.
    pub(super) fn stage(&mut self, stage: impl FnOnce() -> String) -> Result<(), Error> {
        if self.quiet || self.last.is_some_and(|last| last.elapsed() < STAGE_INTERVAL) {
            return Ok(());
        }
        self.last = Some(Instant::now());
        self.send(&Message::Stage(stage()))
    }

    /// Sends the throughput of a minute.
    pub(super) fn minute(&mut self, minute: u64, tokens_per_second: f64) -> Result<(), Error> {
        self.send(&Message::Minute { minute, tokens_per_second })
    }

    fn send(&mut self, message: &Message) -> Result<(), Error> {
        let failed = |error: io::Error| Error::Failed(format!("standard output: {error}"));
        let text = serde_json::to_string(message).map_err(|error| failed(error.into()))?;
        let mut out = io::stdout().lock();
        writeln!(out, "{text}").and_then(|()| out.flush()).map_err(failed)
    }
}

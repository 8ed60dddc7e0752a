//! The process of one row: a job on standard input, lines of JSON on standard output.

use std::{
    io::{self, Write},
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use super::{error::Error, job::Job, measure, row::Measured};

/// Between two lines about the same stage.
const PAUSE: Duration = Duration::from_millis(200);

/// What the process says, a line each.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Line {
    /// What it does now, for people.
    Stage(String),
    /// What came in a minute of `--soak`.
    Minute {
        /// From 1.
        minute: u64,
        /// Of all sequences.
        tokens_per_second: f64,
    },
    /// A result; at the end.
    Row(Box<Measured>),
}

/// Measures the job that standard input holds.
pub fn run() -> Result<(), (u8, String)> {
    child().map_err(Error::for_shell)
}

fn child() -> Result<(), Error> {
    let job: Job = serde_json::from_reader(io::stdin().lock())
        .map_err(|error| Error::Usage(format!("standard input holds no job of bench: {error}")))?;
    let mut tell = Tell::default();
    for measured in measure::measure(&job, &mut tell)? {
        tell.line(&Line::Row(Box::new(measured)))?;
    }
    Ok(())
}

/// Says how it goes.
#[derive(Debug, Default)]
pub(super) struct Tell {
    last: Option<Instant>,
    quiet: bool,
}

impl Tell {
    /// Says nothing.
    pub(super) fn nobody() -> Self {
        Self { last: None, quiet: true }
    }

    /// Says what is being done, unless something was said just now. Fails when nobody listens any more.
    pub(super) fn stage(&mut self, stage: impl FnOnce() -> String) -> Result<(), Error> {
        if self.quiet || self.last.is_some_and(|last| last.elapsed() < PAUSE) {
            return Ok(());
        }
        self.last = Some(Instant::now());
        self.line(&Line::Stage(stage()))
    }

    /// Says what came in a minute.
    pub(super) fn minute(&mut self, minute: u64, tokens_per_second: f64) -> Result<(), Error> {
        self.line(&Line::Minute { minute, tokens_per_second })
    }

    fn line(&mut self, line: &Line) -> Result<(), Error> {
        let failed = |error: io::Error| Error::Failed(format!("standard output: {error}"));
        let text = serde_json::to_string(line).map_err(|error| failed(error.into()))?;
        let mut out = io::stdout().lock();
        writeln!(out, "{text}").and_then(|()| out.flush()).map_err(failed)
    }
}

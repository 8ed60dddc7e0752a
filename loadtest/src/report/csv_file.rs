//! The CSV file: a row for each request, written as it ends.

use std::{fs::File, io, time::Duration};

use csv::Writer;
use tokio::time::Instant;

use crate::{
    measure::samples::Sample,
    targets::outcome::{CallEnd, CallOutcome},
};

const COLUMNS: [&str; 14] = [
    "run",
    "request",
    "scheduled_seconds",
    "send_lag_seconds",
    "outcome",
    "worker",
    "prompt_tokens",
    "cached_prompt_tokens",
    "output_tokens",
    "ttft_seconds",
    "tpot_seconds",
    "longest_pause_seconds",
    "e2e_seconds",
    "resumes",
];

/// A file that is being written. After the first error, nothing more is.
pub struct CsvFile {
    writer: Writer<File>,
    /// Number of the pass, from 1, and its start.
    run: (u32, Instant),
    error: Option<csv::Error>,
}

impl CsvFile {
    /// Replaces the content of `file` by the names of the columns.
    pub fn new(file: File) -> Self {
        let mut csv =
            Self { writer: Writer::from_writer(file), run: (0, Instant::now()), error: None };
        csv.row(&COLUMNS.map(str::to_owned));
        csv
    }

    /// Starts the next pass.
    pub fn start_run(&mut self) {
        self.run = (self.run.0 + 1, Instant::now());
    }

    /// Writes the row of a request.
    pub fn add(&mut self, outcome: &CallOutcome) {
        let (run, started) = self.run;
        let at = outcome.scheduled.saturating_duration_since(started);
        let sample = Sample::new(outcome, at);
        let usage = match &outcome.end {
            CallEnd::Complete(completion) => completion.usage,
            CallEnd::Cancelled | CallEnd::Failed(_) => None,
        };
        let seconds = |time: Duration| format!("{:.6}", time.as_secs_f64());
        let or_empty = |time: Option<Duration>| time.map(seconds).unwrap_or_default();
        let tokens = |of: fn(stoker_proto::v1::Usage) -> u32| {
            usage.map(|usage| of(usage).to_string()).unwrap_or_default()
        };
        self.row(&[
            run.to_string(),
            sample.index.to_string(),
            seconds(at),
            seconds(outcome.send_lag),
            sample.outcome,
            sample.worker,
            tokens(|usage| usage.prompt_tokens),
            tokens(|usage| usage.cached_prompt_tokens),
            sample.tokens.to_string(),
            or_empty(sample.first_token),
            or_empty(sample.per_token),
            or_empty(sample.longest_pause),
            seconds(sample.end_to_end),
            sample.resumes.len().to_string(),
        ]);
    }

    /// Writes what is left. Returns the first error.
    pub fn end(mut self) -> io::Result<()> {
        match self.error {
            Some(error) => Err(error.into()),
            None => self.writer.flush(),
        }
    }

    fn row(&mut self, cells: &[String; COLUMNS.len()]) {
        if self.error.is_none() {
            self.error = self.writer.write_record(cells).err();
        }
    }
}

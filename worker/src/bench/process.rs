//! Runs a job in a process of its own: the same program, called with a command that help does not show.

use std::{
    env,
    io::{self, BufRead, BufReader, Read, Write},
    process::{Child, Command, Stdio},
    thread,
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::{child::Line, error::Error, job::Job, row::Measured};

/// The command that runs [`super::run_row`].
const COMMAND: &str = "bench-row";

/// A line on standard error, written over and over. A pipe gets none.
pub(super) struct Progress(ProgressBar);

impl Progress {
    /// Of so many jobs.
    pub(super) fn new(jobs: usize) -> Self {
        let bar = ProgressBar::with_draw_target(Some(jobs as u64), ProgressDrawTarget::stderr());
        let style = ProgressStyle::with_template("{wide_bar:.dim} {pos}/{len}  {elapsed}  {msg}");
        // The template is a constant; without it there would be the default line.
        let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
        bar.set_style(style.progress_chars("━╸ "));
        Self(bar)
    }

    /// Prints above the line.
    pub(super) fn print<T>(&self, print: impl FnOnce() -> T) -> T {
        self.0.suspend(print)
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

/// Runs a job and waits for its rows.
pub(super) fn run(job: &Job, progress: &Progress) -> Result<Vec<Measured>, Error> {
    let failed = |error: io::Error| row_failed(job, error.to_string(), 1);
    progress.0.set_message(job.label());
    let mut child = Command::new(env::current_exe().map_err(failed)?)
        .arg(COMMAND)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    let told = converse(&mut child, job, progress);
    if told.is_err() {
        // It may still be at work. Fails if it is over already.
        let _ = child.kill();
    }
    let status = child.wait().map_err(failed)?;
    let (rows, said) = told.map_err(failed)?;
    if status.success() && !rows.is_empty() {
        progress.0.inc(1);
        return Ok(rows);
    }
    let said = said.trim();
    let why = match (status.code(), said.strip_prefix("error: ").unwrap_or(said)) {
        (None, _) => format!("the process ended with {status}; is there enough memory?"),
        (Some(_), "") => format!("the process ended with {status} and said nothing"),
        (Some(_), said) => said.to_owned(),
    };
    let code = status.code().and_then(|code| u8::try_from(code).ok()).filter(|code| *code == 2);
    Err(row_failed(job, why, code.unwrap_or(1)))
}

/// Hands the job over and follows what comes: the rows, and what it wrote to standard error.
fn converse(
    child: &mut Child,
    job: &Job,
    progress: &Progress,
) -> io::Result<(Vec<Measured>, String)> {
    let (input, output, errors) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    // On a thread of its own: whoever fills one pipe must not wait for the other.
    let said = thread::spawn(move || {
        let mut said = Vec::new();
        if let Some(mut errors) = errors {
            let _ = errors.read_to_end(&mut said);
        }
        String::from_utf8_lossy(&said).into_owned()
    });
    if let Some(mut input) = input {
        // One that has ended does not read; its status says why.
        let _ = input.write_all(serde_json::to_string(job)?.as_bytes());
    }
    let mut rows = Vec::new();
    for line in output.into_iter().flat_map(|output| BufReader::new(output).lines()) {
        match serde_json::from_str(&line?)? {
            Line::Stage(stage) => progress.0.set_message(format!("{}: {stage}", job.label())),
            Line::Minute { minute, tokens_per_second } => progress.print(|| {
                eprintln!("{}, minute {minute}: {tokens_per_second:.1} tokens/s", job.label());
            }),
            Line::Row(row) => rows.push(*row),
        }
    }
    Ok((rows, said.join().unwrap_or_default()))
}

fn row_failed(job: &Job, why: String, code: u8) -> Error {
    Error::Row { what: job.label(), why, code }
}

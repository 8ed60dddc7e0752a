//! Runs a job in a child process: the same executable with a hidden command.

use std::{
    env,
    io::{self, BufRead, BufReader, Read, Write},
    process::{Child, Command, Stdio},
    thread,
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::{child::Message, error::Error, job::Job, row::TableRow};

/// The command that runs [`super::run_row`].
const COMMAND: &str = "bench-row";

/// A progress bar on standard error. Draws nothing if standard error is not a terminal.
pub(super) struct ProgressDisplay(ProgressBar);

impl ProgressDisplay {
    /// Creates a bar for `jobs` jobs.
    pub(super) fn new(jobs: usize) -> Self {
        let bar = ProgressBar::with_draw_target(Some(jobs as u64), ProgressDrawTarget::stderr());
        let style = ProgressStyle::with_template("{wide_bar:.dim} {pos}/{len}  {elapsed}  {msg}");
        // The template is a valid constant, so the default is never used.
        let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
        bar.set_style(style.progress_chars("━╸ "));
        Self(bar)
    }

    /// Runs `print` with the bar hidden, so that its output appears above it.
    pub(super) fn print<T>(&self, print: impl FnOnce() -> T) -> T {
        self.0.suspend(print)
    }
}

impl Drop for ProgressDisplay {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

/// Runs a job in a child process and returns its rows.
pub(super) fn run(job: &Job, progress: &ProgressDisplay) -> Result<Vec<TableRow>, Error> {
    let failed = |error: io::Error| row_failed(job, error.to_string(), 1);
    progress.0.set_message(job.label());
    let mut child = Command::new(env::current_exe().map_err(failed)?)
        .arg(COMMAND)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    let received = exchange(&mut child, job, progress);
    if received.is_err() {
        // The child may still run. `kill` fails if it has exited already.
        let _ = child.kill();
    }
    let status = child.wait().map_err(failed)?;
    let (rows, stderr) = received.map_err(failed)?;
    if status.success() && !rows.is_empty() {
        progress.0.inc(1);
        return Ok(rows);
    }
    let stderr = stderr.trim();
    let why = match (status.code(), stderr.strip_prefix("error: ").unwrap_or(stderr)) {
        (None, _) => format!("the process ended with {status}; is there enough memory?"),
        (Some(_), "") => format!("the process ended with {status} and printed no error"),
        (Some(_), message) => message.to_owned(),
    };
    let code = status.code().and_then(|code| u8::try_from(code).ok()).filter(|code| *code == 2);
    Err(row_failed(job, why, code.unwrap_or(1)))
}

/// Sends the job and displays the child's messages until it closes its output. Returns the rows and
/// the text of its standard error.
fn exchange(
    child: &mut Child,
    job: &Job,
    progress: &ProgressDisplay,
) -> io::Result<(Vec<TableRow>, String)> {
    let (input, output, errors) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    // Reads standard error on its own thread: a full pipe would otherwise deadlock with the child.
    let stderr = thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut errors) = errors {
            let _ = errors.read_to_end(&mut bytes);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    });
    if let Some(mut input) = input {
        // The write fails if the child has exited; its exit status reports why.
        let _ = input.write_all(serde_json::to_string(job)?.as_bytes());
    }
    let mut rows = Vec::new();
    for line in output.into_iter().flat_map(|output| BufReader::new(output).lines()) {
        match serde_json::from_str(&line?)? {
            Message::Stage(stage) => progress.0.set_message(format!("{}: {stage}", job.label())),
            Message::Minute { minute, tokens_per_second } => progress.print(|| {
                eprintln!("{}, minute {minute}: {tokens_per_second:.1} tokens/s", job.label());
            }),
            Message::Row(row) => rows.push(*row),
        }
    }
    Ok((rows, stderr.join().unwrap_or_default()))
}

fn row_failed(job: &Job, why: String, code: u8) -> Error {
    Error::Row { what: job.label(), why, code }
}

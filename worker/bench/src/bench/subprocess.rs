//! Runs a job in a child process: the same executable with a hidden command.

use std::{
    env,
    io::{self, BufRead, BufReader, Read, Write},
    process::{Child, Command, Stdio},
    thread,
};

use super::{child::Message, job::Job, progress_bar::ProgressDisplay, report::TableRow};
use crate::{Error, harness::Update};

/// The command that runs [`super::run_job`].
const COMMAND: &str = "bench-job";

/// Runs a job in a child process and returns its rows.
pub(super) fn run(job: &Job, progress: &ProgressDisplay) -> Result<Vec<TableRow>, Error> {
    let failed = |error: io::Error| failed_job(job, error.to_string(), 1);
    progress.message(job.label());
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
        progress.finish_job();
        return Ok(rows);
    }
    let stderr = stderr.trim();
    let why = match (status.code(), stderr.strip_prefix("error: ").unwrap_or(stderr)) {
        (None, _) => format!("the process ended with {status}; is there enough memory?"),
        (Some(_), "") => format!("the process ended with {status} and printed no error"),
        (Some(_), message) => message.to_owned(),
    };
    let code = status.code().and_then(|code| u8::try_from(code).ok()).filter(|code| *code == 2);
    Err(failed_job(job, why, code.unwrap_or(1)))
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
            Message::Update(Update::Stage(stage)) => {
                progress.message(format!("{}: {stage}", job.label()));
            }
            Message::Update(Update::Line(line)) => {
                progress.print(|| eprintln!("{}, {line}", job.label()));
            }
            Message::Row(row) => rows.push(*row),
        }
    }
    Ok((rows, stderr.join().unwrap_or_default()))
}

fn failed_job(job: &Job, why: String, code: u8) -> Error {
    Error::Job { job: job.label(), why, code }
}

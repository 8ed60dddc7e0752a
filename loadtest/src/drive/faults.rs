//! Faults that are injected while the load runs: shell commands at given times.

use std::{fmt, process::Stdio, str::FromStr, time::Duration};

use stoker_shared::duration;
use tokio::{
    process::Command,
    task::JoinSet,
    time::{Instant, sleep_until},
};

/// A command at a time: `10s=kill -9 1234`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Time after the start of the pass.
    pub at: Duration,
    /// The command, for `sh -c`.
    pub command: String,
}

/// What became of a fault.
#[derive(Debug, Clone, PartialEq)]
pub struct FaultResult {
    /// The fault.
    pub fault: Fault,
    /// When it began. `None` if the pass was over before.
    pub began: Option<Duration>,
    /// Exit code of the command. `None` if it was ended by a signal, or not before the end of the pass.
    pub exit_code: Option<i32>,
    /// Whether the command succeeded, or was still running at the end.
    pub succeeded: bool,
}

impl FromStr for Fault {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let usage = "write TIME=COMMAND, as in '10s=kill -9 1234'";
        let (at, command) = text.split_once('=').ok_or(usage)?;
        let at = duration::parse(at.trim()).map_err(|why| format!("{at:?}: {why}; {usage}"))?;
        match command.trim() {
            "" => Err(format!("the command is empty; {usage}")),
            command => Ok(Self { at, command: command.to_owned() }),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}={}", self.at, self.command)
    }
}

/// Injects faults during a pass. Dropping it ends their commands.
#[derive(Debug)]
pub struct FaultInjector {
    faults: Vec<Fault>,
    started: Instant,
    running: JoinSet<(usize, std::io::Result<std::process::ExitStatus>)>,
}

impl FaultInjector {
    /// Schedules `faults` relative to `started`.
    pub fn start(faults: &[Fault], started: Instant) -> Self {
        let mut running = JoinSet::new();
        for (index, fault) in faults.iter().cloned().enumerate() {
            running.spawn(async move {
                sleep_until(started + fault.at).await;
                let mut command = Command::new("sh");
                command.args(["-c", &fault.command]).stdin(Stdio::null()).kill_on_drop(true);
                // Standard output is for results.
                (index, command.stdout(Stdio::null()).status().await)
            });
        }
        Self { faults: faults.to_vec(), started, running }
    }

    /// Ends the commands that still run, and returns what became of all of them.
    pub fn end(mut self) -> Vec<FaultResult> {
        let elapsed = self.started.elapsed();
        let mut results: Vec<_> = self
            .faults
            .drain(..)
            .map(|fault| FaultResult {
                began: Some(fault.at).filter(|at| *at < elapsed),
                succeeded: fault.at < elapsed,
                exit_code: None,
                fault,
            })
            .collect();
        while let Some(ended) = self.running.try_join_next() {
            let Ok((index, status)) = ended else { continue };
            let result = &mut results[index];
            result.exit_code = status.as_ref().ok().and_then(std::process::ExitStatus::code);
            result.succeeded = status.is_ok_and(|status| status.success());
        }
        results
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn a_fault_is_a_time_and_a_command() {
        let fault: Fault = "10s=kill -9 $(pidof a=b)".parse().unwrap();
        assert_eq!(fault.at, Duration::from_secs(10));
        assert_eq!(fault.command, "kill -9 $(pidof a=b)");
        for (bad, part) in
            [("", "TIME=COMMAND"), ("10s", "TIME=COMMAND"), ("5=x", "\"5\""), ("5s= ", "is empty")]
        {
            let error = bad.parse::<Fault>().unwrap_err();
            assert!(error.contains(part), "{bad}: {error}");
        }
    }

    #[tokio::test]
    async fn commands_run_at_their_times_and_failures_are_known() {
        let faults = ["0s=exit 0", "1ms=exit 3", "2ms=exec sleep 600", "1h=exit 0"];
        let faults = faults.map(|fault| fault.parse().unwrap());
        let mut injector = FaultInjector::start(&faults, Instant::now());
        let mut ended = Vec::new();
        while ended.len() < 2 {
            ended.push(injector.running.join_next().await.unwrap().unwrap());
        }
        ended.sort_by_key(|(index, _)| *index);
        assert!(ended[0].1.as_ref().unwrap().success());
        assert_eq!(ended[1].1.as_ref().unwrap().code(), Some(3));

        let injector = FaultInjector::start(&faults[2..], Instant::now());
        tokio::time::sleep(Duration::from_millis(20)).await;
        let results = injector.end();
        assert_eq!(
            (results[0].began, results[0].succeeded),
            (Some(Duration::from_millis(2)), true)
        );
        assert_eq!((results[1].began, results[1].succeeded), (None, false));
    }
}

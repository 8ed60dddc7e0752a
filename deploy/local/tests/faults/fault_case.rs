//! One row of the table: a load, the results its clients saw during a fault, and the reported line.

use std::{env, fs::OpenOptions, future::Future, io::Write, time::Duration};

use serde_json::Value;
use tempfile::TempDir;
use tokio::{
    sync::{Semaphore, SemaphorePermit},
    task::JoinHandle,
};

use crate::{
    fleet::{INSTANT, simulated},
    support::{load_test, run},
};

/// Names the file that lines of the table are appended to. Promised times are asserted only if it
/// is set, because they need a machine that does nothing else.
const REPORT: &str = "STOKER_FAULT_REPORT";

/// Number of cases that run at the same time: most of the time of each is waiting.
const AT_ONCE: u32 = 2;
static RUNNING: Semaphore = Semaphore::const_new(AT_ONCE as usize);

/// Waits until the case may run: alone if its times are asserted, since others would disturb them.
async fn turn() -> SemaphorePermit<'static> {
    let permits = if env::var_os(REPORT).is_some() { AT_ONCE } else { 1 };
    RUNNING.acquire_many(permits).await.unwrap()
}

/// A case in progress.
pub struct FaultCase {
    name: &'static str,
    digests: TempDir,
    load: String,
    _turn: SemaphorePermit<'static>,
}

impl FaultCase {
    /// Waits for other cases to end, then records the completions of an undisturbed simulated
    /// worker for `load`, which are flags of `stoker-loadtest`. On a simulated device they depend
    /// on the request alone, not on the device's speed.
    pub async fn new(name: &'static str, load: &str) -> Self {
        let turn = turn().await;
        Self::with_reference(name, load, &simulated(INSTANT, &[]).address, turn).await
    }

    /// The same with the bundled model.
    pub async fn with_storyteller(name: &'static str, load: &str) -> Self {
        let turn = turn().await;
        Self::with_reference(name, load, &crate::fleet::storyteller().address, turn).await
    }

    /// The same with the server at `address`, which is not disturbed yet.
    pub async fn at(name: &'static str, load: &str, address: &str) -> Self {
        let turn = turn().await;
        Self::with_reference(name, load, address, turn).await
    }

    async fn with_reference(
        name: &'static str,
        load: &str,
        address: &str,
        turn: SemaphorePermit<'static>,
    ) -> Self {
        let case = Self {
            name,
            digests: tempfile::tempdir().unwrap(),
            load: load.to_owned(),
            _turn: turn,
        };
        let save = format!("{load} --save-digests {}", case.digests());
        let (code, json) = run(load_test(address, &save)).await;
        assert_eq!(code, Some(0), "{name}: the undisturbed load failed: {json:#}");
        case
    }

    /// Sends the load to `address`.
    pub fn start(&self, address: &str) -> RunningLoad {
        self.start_with(address, "")
    }

    /// Sends the load to `address` with additional flags.
    pub fn start_with(&self, address: &str, flags: &str) -> RunningLoad {
        let flags = format!("{} {flags} --expect {}", self.load, self.digests());
        RunningLoad { name: self.name, task: tokio::spawn(run(load_test(address, &flags))) }
    }

    fn digests(&self) -> String {
        self.digests.path().join("digests.jsonl").to_string_lossy().into_owned()
    }

    /// Prints the row and appends it to the report. `promise` is the limit of the p99 over clients
    /// of the longest pause.
    pub fn report(&self, results: &ClientResults, promise: Option<Duration>, note: &str) {
        let pause = results.longest_pause();
        let shown = |key: &str| match &pause[key] {
            Value::Null => "-".to_owned(),
            seconds => format!("{:.2} s", seconds.as_f64().unwrap()),
        };
        let promised = promise.map(|limit| format!("{:.1} s", limit.as_secs_f64()));
        let cells = [
            self.name,
            &results.sent().to_string(),
            &results.failed().to_string(),
            &results.changed().to_string(),
            &results.resumed().to_string(),
            &shown("p50"),
            &shown("p99"),
            promised.as_deref().unwrap_or("-"),
            note,
        ];
        let line = format!("| {} |", cells.join(" | "));
        eprintln!("{line}");
        let Some(path) = env::var_os(REPORT) else { return };
        let mut file = OpenOptions::new().append(true).create(true).open(path).unwrap();
        writeln!(file, "{line}").unwrap();
        if let (Some(limit), Some(p99)) = (promise, pause["p99"].as_f64()) {
            assert!(p99 <= limit.as_secs_f64(), "{}: promised {limit:?}, took {p99} s", self.name);
        }
    }
}

/// A load that has been started.
pub struct RunningLoad {
    name: &'static str,
    task: JoinHandle<(Option<i32>, Value)>,
}

impl RunningLoad {
    /// Runs `fault` while the load runs and returns the clients' results. Fails if the load ended
    /// before the fault did, since it would not have been affected.
    pub async fn during<F: Future>(self, fault: F) -> ClientResults {
        fault.await;
        assert!(!self.task.is_finished(), "{}: the load was over before the fault", self.name);
        self.end().await
    }

    /// Waits for the end of the load and returns the clients' results.
    pub async fn end(self) -> ClientResults {
        ClientResults { name: self.name, json: self.task.await.unwrap().1 }
    }
}

/// Results of the clients of a case, as `stoker-loadtest` reports them.
pub struct ClientResults {
    name: &'static str,
    pub json: Value,
}

impl ClientResults {
    /// The count at `path`, for instance `requests.lost`.
    pub fn count(&self, path: &str) -> u64 {
        let value = path.split('.').fold(&self.json, |value, key| &value[key]);
        value.as_u64().unwrap_or_else(|| panic!("{}: no {path} in {:#}", self.name, self.json))
    }

    /// Number of requests sent.
    pub fn sent(&self) -> u64 {
        self.count("requests.sent")
    }

    /// Number of requests without a complete response.
    pub fn failed(&self) -> u64 {
        self.sent() - self.count("requests.complete")
    }

    /// Number of completions that differ from those of an undisturbed worker.
    pub fn changed(&self) -> u64 {
        self.count("verify.mismatched")
    }

    /// Number of completions that were resumed on another worker.
    pub fn resumed(&self) -> u64 {
        self.json["longest_pause_resumed_seconds"]["count"].as_u64().unwrap_or_default()
    }

    /// Distribution of each client's longest pause between two tokens: over resumed completions if
    /// there are any, else over all.
    fn longest_pause(&self) -> &Value {
        match &self.json["longest_pause_resumed_seconds"] {
            Value::Null => &self.json["longest_pause_seconds"],
            resumed => resumed,
        }
    }

    /// Asserts that every request completed with the output of an undisturbed worker.
    pub fn assert_unaffected(&self) {
        self.assert_outputs_unchanged();
        assert_eq!(self.failed(), 0, "{}: {:#}", self.name, self.json);
        assert_eq!(self.count("verify.matched"), self.sent(), "{}: {:#}", self.name, self.json);
    }

    /// Asserts that every token received is the one that an undisturbed worker generates.
    pub fn assert_outputs_unchanged(&self) {
        assert!(self.sent() > 0, "{}: nothing was sent: {:#}", self.name, self.json);
        assert_eq!(self.changed(), 0, "{}: {:#}", self.name, self.json);
    }

    /// Asserts that every failed request has a status among `codes`.
    pub fn assert_error_codes(&self, codes: &[&str]) {
        for error in self.json["errors"].as_array().unwrap() {
            let code = error["code"].as_str().unwrap();
            assert!(codes.contains(&code), "{}: {:#}", self.name, self.json);
        }
    }
}

//! One row of the table: a load, what its clients saw of a fault, and the line that tells it.

use std::{env, fs::OpenOptions, future::Future, io::Write, time::Duration};

use serde_json::Value;
use tempfile::TempDir;
use tokio::{
    sync::{Mutex, MutexGuard},
    task::JoinHandle,
};

use crate::{
    fleet::{INSTANT, simulated},
    support::{Process, load_test, run},
};

/// A file to add lines of the table to. Promised times are held to only where they are measured, on a machine
/// that does nothing else.
const REPORT: &str = "STOKER_FAULT_REPORT";

/// Rows take turns: one would disturb another's times.
static TURN: Mutex<()> = Mutex::const_new(());

/// A row that is being made.
pub struct Row {
    name: &'static str,
    digests: TempDir,
    load: String,
    _turn: MutexGuard<'static, ()>,
}

impl Row {
    /// Waits for its turn, and asks an undisturbed simulated worker for the answers to `load`: flags of
    /// `stoker-loadtest`. On a simulated device they depend on the request alone, however fast it is.
    pub async fn new(name: &'static str, load: &str) -> Self {
        let turn = TURN.lock().await;
        Self::undisturbed(name, load, &simulated(INSTANT, &[]), turn).await
    }

    /// The same with the bundled model, at `worker`.
    pub async fn of_storyteller(name: &'static str, load: &str) -> Self {
        let turn = TURN.lock().await;
        Self::undisturbed(name, load, &crate::fleet::storyteller(), turn).await
    }

    async fn undisturbed(
        name: &'static str,
        load: &str,
        worker: &Process,
        turn: MutexGuard<'static, ()>,
    ) -> Self {
        let row = Self {
            name,
            digests: tempfile::tempdir().unwrap(),
            load: load.to_owned(),
            _turn: turn,
        };
        let save = format!("{load} --save-digests {}", row.digests());
        let (code, json) = run(load_test(&worker.address, &save)).await;
        assert_eq!(code, Some(0), "{name}: nobody disturbed these: {json:#}");
        row
    }

    /// Sends the load to `address`.
    pub fn start(&self, address: &str) -> Running {
        self.start_with(address, "")
    }

    /// Sends the load with more flags.
    pub fn start_with(&self, address: &str, flags: &str) -> Running {
        let flags = format!("{} {flags} --expect {}", self.load, self.digests());
        Running { name: self.name, task: tokio::spawn(run(load_test(address, &flags))) }
    }

    fn digests(&self) -> String {
        self.digests.path().join("digests.jsonl").to_string_lossy().into_owned()
    }

    /// Tells the row. `promise` is the longest pause that hardly any client (p99) may see of the fault.
    pub fn tell(&self, seen: &Seen, promise: Option<Duration>, note: &str) {
        let pause = seen.recovery();
        let shown = |key: &str| match &pause[key] {
            Value::Null => "-".to_owned(),
            seconds => format!("{:.2} s", seconds.as_f64().unwrap()),
        };
        let promised = promise.map(|limit| format!("{:.1} s", limit.as_secs_f64()));
        let cells = [
            self.name,
            &seen.sent().to_string(),
            &seen.failed().to_string(),
            &seen.changed().to_string(),
            &seen.resumed().to_string(),
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

/// A load that is on its way.
pub struct Running {
    name: &'static str,
    task: JoinHandle<(Option<i32>, Value)>,
}

impl Running {
    /// What its clients saw. Fails if anything happened after the last of them had left: they would have seen
    /// nothing of it.
    pub async fn during<F: Future>(self, fault: F) -> Seen {
        fault.await;
        assert!(!self.task.is_finished(), "{}: the load was over before the fault", self.name);
        self.end().await
    }

    /// What its clients saw.
    pub async fn end(self) -> Seen {
        Seen { name: self.name, json: self.task.await.unwrap().1 }
    }
}

/// What the clients of a row saw.
pub struct Seen {
    name: &'static str,
    pub json: Value,
}

impl Seen {
    /// The count at `path`, for instance `requests.lost`.
    pub fn count(&self, path: &str) -> u64 {
        let value = path.split('.').fold(&self.json, |value, key| &value[key]);
        value.as_u64().unwrap_or_else(|| panic!("{}: no {path} in {:#}", self.name, self.json))
    }

    /// Requests.
    pub fn sent(&self) -> u64 {
        self.count("requests.sent")
    }

    /// Requests without a complete answer.
    pub fn failed(&self) -> u64 {
        self.sent() - self.count("requests.complete")
    }

    /// Answers that are not what an undisturbed worker gave.
    pub fn changed(&self) -> u64 {
        self.count("verify.mismatched")
    }

    /// Answers that another worker took over.
    pub fn resumed(&self) -> u64 {
        self.json["latency_seconds"]["longest_pause_resumed"]["count"].as_u64().unwrap_or_default()
    }

    /// The longest pause between two tokens that each client saw: of those whose answer was resumed, if there
    /// are any.
    fn recovery(&self) -> &Value {
        let latency = &self.json["latency_seconds"];
        match &latency["longest_pause_resumed"] {
            Value::Null => &latency["longest_pause"],
            resumed => resumed,
        }
    }

    /// Every answer came, and is the one that would have come anyway.
    pub fn nobody_noticed(&self) {
        self.nobody_got_other_text();
        assert_eq!(self.failed(), 0, "{}: {:#}", self.name, self.json);
        assert_eq!(self.count("verify.matched"), self.sent(), "{}: {:#}", self.name, self.json);
    }

    /// Every answer that came is the one that would have come anyway.
    pub fn nobody_got_other_text(&self) {
        assert!(self.sent() > 0, "{}: nothing was sent: {:#}", self.name, self.json);
        assert_eq!(self.changed(), 0, "{}: {:#}", self.name, self.json);
    }

    /// Whoever failed was told one of `codes`.
    pub fn failures_are(&self, codes: &[&str]) {
        for error in self.json["errors"].as_array().unwrap() {
            let code = error["code"].as_str().unwrap();
            assert!(codes.contains(&code), "{}: {:#}", self.name, self.json);
        }
    }
}

//! `stoker status`: the workers of a router, as tables for people or JSON for programs.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, Write as _},
    time::Duration,
};

use serde::Serialize;
use stoker_proto::v1::{ListWorkersRequest, ListWorkersResponse, WorkerState, WorkerStatus};
use tokio::time::timeout;

use crate::{
    admin::Operator,
    cli::StatusArgs,
    error::Error,
    table::{Cell, one_line, table},
};

/// Time limit of the call, which needs no work of the router.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Characters of a digest in a table.
const SHORT_DIGEST: usize = 12;

/// Runs the command.
pub async fn run(args: StatusArgs) -> Result<(), Error> {
    let mut operator = Operator::connect(args.endpoint, &args.credentials).await?;
    let endpoint = operator.endpoint().to_string();
    let call = operator.admin.list_workers(ListWorkersRequest {});
    let listed = timeout(TIMEOUT, call).await.map_err(|_| {
        let seconds = TIMEOUT.as_secs();
        Error::Failed(format!("--endpoint {endpoint}: no response within {seconds} s"))
    })?;
    let listed = listed.map_err(|status| operator.error("a router", status))?.into_inner();
    let text = if args.json { json(&endpoint, &listed)? } else { tables(&endpoint, &listed) };
    match io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Error::Failed(format!("standard output: {error}")))
        }
        _ => Ok(()),
    }
}

/// The object of `--json`.
#[derive(Serialize)]
struct Report<'a> {
    endpoint: &'a str,
    version: &'a str,
    serving: bool,
    /// Why the router does not serve.
    not_serving: Option<&'a str>,
    workers: Vec<Row<'a>>,
}

/// One worker. Numbers are missing if it is gone.
#[derive(Serialize)]
struct Row<'a> {
    worker: &'a str,
    address: &'a str,
    instance_id: &'a str,
    model: &'a str,
    digest: &'a str,
    version: &'a str,
    state: &'static str,
    /// Why it is gone.
    reason: Option<&'a str>,
    running: Option<u32>,
    waiting: Option<u32>,
    queued_tokens: Option<u64>,
    free_kv_blocks: Option<u32>,
    total_kv_blocks: Option<u32>,
    outstanding_requests: u32,
}

impl<'a> Row<'a> {
    fn new(status: &'a WorkerStatus) -> Self {
        let load = status.load.as_ref();
        Self {
            worker: &status.worker,
            address: &status.address,
            instance_id: &status.instance_id,
            model: &status.model,
            digest: &status.digest,
            version: &status.version,
            state: state_name(status.state()),
            reason: present(&status.reason),
            running: load.map(|load| load.running),
            waiting: load.map(|load| load.waiting),
            queued_tokens: load.map(|load| load.queued_tokens),
            free_kv_blocks: load.map(|load| load.free_kv_blocks),
            total_kv_blocks: load.map(|load| load.total_kv_blocks),
            outstanding_requests: status.outstanding_requests,
        }
    }
}

fn present(text: &str) -> Option<&str> {
    (!text.is_empty()).then_some(text)
}

/// Returns the name of a state, as in metrics, where half-open workers count as ejected.
pub fn state_name(state: WorkerState) -> &'static str {
    match state {
        WorkerState::Unspecified => "unknown",
        WorkerState::Live => "live",
        WorkerState::Ejected => "ejected",
        WorkerState::HalfOpen => "half-open",
        WorkerState::Stalled => "stalled",
        WorkerState::Draining => "draining",
        WorkerState::Gone => "gone",
    }
}

fn json(endpoint: &str, listed: &ListWorkersResponse) -> Result<String, Error> {
    let report = Report {
        endpoint,
        version: &listed.version,
        serving: listed.not_serving.is_empty(),
        not_serving: present(&listed.not_serving),
        workers: listed.workers.iter().map(Row::new).collect(),
    };
    let text = serde_json::to_string(&report).map_err(|error| Error::Failed(error.to_string()))?;
    Ok(text + "\n")
}

/// Returns a line about the router, a table of models and a table of workers.
fn tables(endpoint: &str, listed: &ListWorkersResponse) -> String {
    let state = match present(&listed.not_serving) {
        None => "serving".to_owned(),
        Some(why) => format!("not serving: {}", one_line(why)),
    };
    let mut text = format!("router {} at {endpoint}: {state}\n", one_line(&listed.version));
    let rows: Vec<_> = listed.workers.iter().map(Row::new).collect();
    if rows.is_empty() {
        text.push_str("no workers are known\n");
        return text;
    }
    let models = models(&rows);
    if !models.is_empty() {
        let header = [
            "MODEL",
            "WORKERS",
            "LIVE",
            "RUNNING",
            "WAITING",
            "QUEUED TOKENS",
            "FREE KV BLOCKS",
            "DIGESTS",
        ];
        text.push('\n');
        table(&mut text, &header, models);
    }
    let header = [
        "WORKER",
        "STATE",
        "MODEL",
        "RUNNING",
        "WAITING",
        "QUEUED TOKENS",
        "FREE KV BLOCKS",
        "OUTSTANDING",
        "ADDRESS",
        "VERSION",
        "DIGEST",
        "INSTANCE",
        "REASON",
    ];
    text.push('\n');
    table(&mut text, &header, rows.iter().map(worker).collect());
    text
}

/// Returns a row for each model: its workers, and the sum of the load of those that are not gone.
fn models(rows: &[Row<'_>]) -> Vec<Vec<Cell>> {
    let mut models: BTreeMap<&str, Vec<&Row<'_>>> = BTreeMap::new();
    for row in rows.iter().filter(|row| !row.model.is_empty()) {
        models.entry(row.model).or_default().push(row);
    }
    let sum = |workers: &[&Row<'_>], of: fn(&Row<'_>) -> Option<u64>| {
        Cell::Number(workers.iter().filter_map(|row| of(row)).sum())
    };
    let row = |(model, workers): (&str, Vec<&Row<'_>>)| {
        let live = workers.iter().filter(|row| row.state == "live").count();
        let digests: BTreeSet<_> = workers.iter().map(|row| row.digest).collect();
        vec![
            Cell::text(model),
            Cell::Number(workers.len() as u64),
            Cell::Number(live as u64),
            sum(&workers, |row| row.running.map(u64::from)),
            sum(&workers, |row| row.waiting.map(u64::from)),
            sum(&workers, |row| row.queued_tokens),
            Cell::blocks(
                workers.iter().filter_map(|row| row.free_kv_blocks.map(u64::from)).sum(),
                workers.iter().filter_map(|row| row.total_kv_blocks.map(u64::from)).sum(),
            ),
            Cell::Number(digests.len() as u64),
        ]
    };
    models.into_iter().map(row).collect()
}

fn worker(row: &Row<'_>) -> Vec<Cell> {
    let number = |n: Option<u64>| n.map_or_else(Cell::unknown, Cell::Number);
    let blocks = row.free_kv_blocks.zip(row.total_kv_blocks);
    let digest: String = row.digest.chars().take(SHORT_DIGEST).collect();
    vec![
        Cell::text(row.worker),
        Cell::text(row.state),
        Cell::text(row.model),
        number(row.running.map(u64::from)),
        number(row.waiting.map(u64::from)),
        number(row.queued_tokens),
        blocks.map_or_else(Cell::unknown, |(free, total)| Cell::blocks(free.into(), total.into())),
        Cell::Number(row.outstanding_requests.into()),
        Cell::text(row.address),
        Cell::text(row.version),
        Cell::text(&digest),
        Cell::text(row.instance_id),
        // Only the last column may be empty, so that every row has the same fields before it.
        row.reason.map_or_else(|| Cell::Text(String::new()), Cell::text),
    ]
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use stoker_proto::v1::Load;

    use super::*;

    fn listed() -> ListWorkersResponse {
        let load = Load { running: 3, free_kv_blocks: 90, total_kv_blocks: 100, ..Load::default() };
        let live = WorkerStatus {
            worker: "worker-0:50052".into(),
            address: "10.0.0.7:50052".into(),
            instance_id: "01a2".into(),
            model: "story".into(),
            digest: "0123456789abcdef".into(),
            version: "0.1.0".into(),
            state: WorkerState::Live.into(),
            load: Some(load),
            outstanding_requests: 2,
            ..WorkerStatus::default()
        };
        let draining = WorkerStatus {
            worker: "worker-1:50052".into(),
            digest: "fedcba".into(),
            state: WorkerState::Draining.into(),
            ..live.clone()
        };
        let gone = WorkerStatus {
            worker: "10.0.0.9:50052".into(),
            address: "10.0.0.9:50052".into(),
            state: WorkerState::Gone.into(),
            reason: "connection\x1b[2J refused".into(),
            ..WorkerStatus::default()
        };
        let workers = vec![gone, live, draining];
        ListWorkersResponse { workers, version: "0.1.0".into(), not_serving: String::new() }
    }

    /// Returns the fields of the lines of a table.
    fn fields(text: &str) -> Vec<Vec<&str>> {
        text.lines().map(|line| line.split("  ").map(str::trim).collect()).collect()
    }

    #[test]
    fn tables_have_a_row_for_each_model_and_worker() {
        let text = tables("h:1", &listed());
        assert!(text.starts_with("router 0.1.0 at h:1: serving\n\nMODEL "), "{text}");
        assert!(!text.contains('\x1b'), "{text}");
        let mut lines = fields(&text);
        lines.iter_mut().for_each(|line| line.retain(|field| !field.is_empty()));
        let model = ["story", "2", "1", "6", "0", "0", "180/200", "2"];
        assert_eq!(lines[3], model, "{text}");
        let live = [
            "worker-0:50052",
            "live",
            "story",
            "3",
            "0",
            "0",
            "90/100",
            "2",
            "10.0.0.7:50052",
            "0.1.0",
            "0123456789ab",
            "01a2",
        ];
        assert_eq!(lines[7], live, "{text}");
        assert_eq!(lines[6][..4], ["10.0.0.9:50052", "gone", "-", "-"], "{text}");
        assert_eq!(lines[6].last(), Some(&"connection [2J refused"), "{text}");
        assert_eq!(lines.len(), 9, "{text}");
    }

    #[test]
    fn a_router_that_does_not_serve_says_why() {
        let not_serving = "no worker is ready; none is known".to_owned();
        let listed = ListWorkersResponse { not_serving, ..ListWorkersResponse::default() };
        let text = tables("h:1", &listed);
        assert!(text.contains("h:1: not serving: no worker is ready; none is known\n"), "{text}");
        assert!(text.ends_with("no workers are known\n"), "{text}");
    }

    #[test]
    fn json_has_every_field() {
        let text = json("h:1", &listed()).unwrap();
        let report: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(text.lines().count(), 1);
        assert_eq!((&report["serving"], &report["not_serving"]), (&true.into(), &().into()));
        let [gone, live, draining] = [0, 1, 2].map(|at| &report["workers"][at]);
        assert_eq!((&gone["state"], &gone["running"]), (&"gone".into(), &().into()));
        assert_eq!((&live["state"], &live["running"]), (&"live".into(), &3.into()));
        assert_eq!(live["digest"], "0123456789abcdef");
        assert_eq!(draining["state"], "draining");
        assert_eq!(live.as_object().unwrap().len(), 14);
    }
}

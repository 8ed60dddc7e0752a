//! What is shown of a cluster: what its routers returned, put together. Pure.

use std::{collections::BTreeMap, time::Duration};

use stoker_proto::{
    duration::{from_wire, or_zero},
    v1::{ListRequestsResponse, ListWorkersResponse, RequestRecord, RouterTotals, WorkerStatus},
};
use tokio::time::Instant;

use crate::{
    routers::{Returned, Unreachable},
    status::state_name,
    table::one_line,
    trace::{longest_stage, outcome},
};

/// Maximum number of slow requests that are kept for the screen.
const MAX_SLOW: usize = 50;

/// What the routers returned at one time.
pub(super) struct Sample {
    pub(super) at: Instant,
    pub(super) workers: Returned<ListWorkersResponse>,
    pub(super) requests: Returned<ListRequestsResponse>,
}

/// The cluster.
#[derive(Debug, Default)]
pub(super) struct ClusterView {
    /// Number of routers that responded.
    pub(super) routers: usize,
    /// Versions of routers and workers.
    pub(super) versions: Vec<String>,
    /// Routers that did not respond or do not serve, and why.
    pub(super) warnings: Vec<String>,
    pub(super) running: u64,
    pub(super) queued: u64,
    /// Rates since the last sample; `None` for the first one.
    pub(super) rates: Option<Rates>,
    pub(super) workers: Vec<WorkerRow>,
    /// Running and recent requests, the slowest first.
    pub(super) slow: Vec<RequestRow>,
}

/// Rates of all routers together, per second.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Rates {
    pub(super) requests: f64,
    pub(super) failed: f64,
    pub(super) prompt_tokens: f64,
    pub(super) tokens: f64,
}

/// A worker.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct WorkerRow {
    pub(super) worker: String,
    /// Its state; if routers disagree, all of them.
    pub(super) state: String,
    pub(super) model: String,
    pub(super) running: u32,
    pub(super) waiting: u32,
    pub(super) queued_tokens: u64,
    /// Share of its KV cache that is in use, from 0 to 1.
    pub(super) kv_usage: Option<f64>,
    /// Requests that the routers have there.
    pub(super) outstanding: u32,
    /// Engine steps per second.
    pub(super) steps: Option<f64>,
}

/// A request.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct RequestRow {
    pub(super) request_id: String,
    pub(super) model: String,
    pub(super) outcome: String,
    pub(super) duration: Duration,
    pub(super) first_token: Option<Duration>,
    pub(super) tokens: u64,
    pub(super) attempts: usize,
    pub(super) longest_stage: &'static str,
}

impl ClusterView {
    pub(super) fn new(now: &Sample, before: Option<&Sample>, unreachable: &[Unreachable]) -> Self {
        let mut view = Self::default();
        view.warnings.extend(unreachable.iter().map(ToString::to_string));
        for (address, listed) in &now.workers {
            match listed {
                Ok(listed) => {
                    view.routers += 1;
                    view.add_version(&listed.version);
                    if !listed.not_serving.is_empty() {
                        let why = one_line(&listed.not_serving);
                        view.warnings.push(format!("router {address} does not serve: {why}"));
                    }
                }
                Err(failed) => view.warnings.push(failed.to_string()),
            }
        }
        view.workers = workers(now, before);
        for status in statuses(now) {
            view.add_version(&status.version);
        }
        for (address, listed) in &now.requests {
            match listed {
                Ok(listed) => view.add_requests(listed),
                // Named already if the router does not respond at all.
                Err(failed) if responds(now, address) => view.warnings.push(failed.to_string()),
                Err(_) => {}
            }
        }
        view.slow.sort_by_key(|row| std::cmp::Reverse(row.duration));
        view.slow.truncate(MAX_SLOW);
        view.rates = before.and_then(|before| rates(now, before));
        view
    }

    fn add_version(&mut self, version: &str) {
        let version = one_line(version);
        if !version.is_empty() && !self.versions.contains(&version) {
            self.versions.push(version);
        }
    }

    fn add_requests(&mut self, listed: &ListRequestsResponse) {
        let totals = listed.totals.unwrap_or_default();
        self.running += u64::from(totals.running);
        self.queued += u64::from(totals.queued);
        self.slow.extend(listed.requests.iter().map(RequestRow::new));
    }

    /// Returns the number of workers in `state`.
    pub(super) fn in_state(&self, state: &str) -> usize {
        self.workers.iter().filter(|worker| worker.state == state).count()
    }

    /// Returns the mean share of the KV caches in use; `None` without a worker.
    pub(super) fn kv_usage(&self) -> Option<f64> {
        let known: Vec<_> = self.workers.iter().filter_map(|worker| worker.kv_usage).collect();
        (!known.is_empty()).then(|| known.iter().sum::<f64>() / known.len() as f64)
    }
}

impl RequestRow {
    fn new(record: &RequestRecord) -> Self {
        Self {
            request_id: one_line(&record.request_id),
            model: one_line(&record.model),
            outcome: outcome(record),
            duration: or_zero(record.duration),
            first_token: from_wire(record.time_to_first_token),
            tokens: record.generated_tokens,
            attempts: record.attempts.len(),
            longest_stage: longest_stage(record),
        }
    }
}

fn responds(sample: &Sample, address: &stoker_shared::client::Address) -> bool {
    sample.workers.iter().any(|(other, listed)| other == address && listed.is_ok())
}

fn statuses(sample: &Sample) -> impl Iterator<Item = &WorkerStatus> {
    sample.workers.iter().filter_map(|(_, listed)| listed.as_ref().ok()).flat_map(|l| &l.workers)
}

/// Returns the workers of all routers, each once.
fn workers(now: &Sample, before: Option<&Sample>) -> Vec<WorkerRow> {
    let mut rows = BTreeMap::<(&str, &str), WorkerRow>::new();
    for status in statuses(now) {
        let load = status.load.unwrap_or_default();
        let row = rows.entry((&status.worker, &status.address)).or_insert_with(|| WorkerRow {
            worker: one_line(&status.worker),
            model: one_line(&status.model),
            running: load.running,
            waiting: load.waiting,
            queued_tokens: load.queued_tokens,
            kv_usage: (load.total_kv_blocks > 0)
                .then(|| 1.0 - f64::from(load.free_kv_blocks) / f64::from(load.total_kv_blocks)),
            steps: before.and_then(|before| steps(status, now, before)),
            ..WorkerRow::default()
        });
        row.outstanding += status.outstanding_requests;
        let state = state_name(status.state());
        if !row.state.split('/').any(|known| known == state) {
            row.state = [row.state.as_str(), state].join("/").trim_start_matches('/').to_owned();
        }
    }
    rows.into_values().collect()
}

/// Returns the steps per second of a worker since the last sample.
fn steps(status: &WorkerStatus, now: &Sample, before: &Sample) -> Option<f64> {
    let same = |other: &&WorkerStatus| {
        other.instance_id == status.instance_id && other.address == status.address
    };
    let earlier = statuses(before).find(same)?;
    let steps = status.load?.step.checked_sub(earlier.load?.step)?;
    Some(steps as f64 / seconds(now, before))
}

/// Returns the sums over the routers that are in both samples and were not restarted in between.
fn rates(now: &Sample, before: &Sample) -> Option<Rates> {
    let seconds = seconds(now, before);
    let mut sum: Option<Rates> = None;
    for (address, listed) in &now.requests {
        let earlier = before.requests.iter().find(|(other, _)| other == address);
        let (Ok(listed), Some((_, Ok(earlier)))) = (listed, earlier) else { continue };
        let (Some(now), Some(then)) = (listed.totals, earlier.totals) else { continue };
        let since = |of: fn(&RouterTotals) -> u64| {
            of(&now).checked_sub(of(&then)).map(|count| count as f64 / seconds)
        };
        let rates = (
            since(|totals| totals.finished),
            since(|totals| totals.failed),
            since(|totals| totals.prompt_tokens),
            since(|totals| totals.generated_tokens),
        );
        let (Some(requests), Some(failed), Some(prompt_tokens), Some(tokens)) = rates else {
            continue;
        };
        let sum = sum.get_or_insert_default();
        sum.requests += requests;
        sum.failed += failed;
        sum.prompt_tokens += prompt_tokens;
        sum.tokens += tokens;
    }
    sum
}

fn seconds(now: &Sample, before: &Sample) -> f64 {
    (now.at - before.at).as_secs_f64().max(1e-3)
}

#[cfg(test)]
pub(super) mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use stoker_proto::{
        duration::to_wire,
        v1::{Load, WorkerState},
    };

    use super::*;

    fn status(worker: &str, state: WorkerState, step: u64) -> WorkerStatus {
        let load =
            Load { running: 3, free_kv_blocks: 25, total_kv_blocks: 100, step, ..Load::default() };
        WorkerStatus {
            worker: worker.into(),
            address: format!("{worker}:1"),
            model: "story".into(),
            version: "0.1.0".into(),
            state: state.into(),
            load: Some(load),
            outstanding_requests: 2,
            ..WorkerStatus::default()
        }
    }

    fn record(id: &str, millis: u64) -> RequestRecord {
        RequestRecord {
            request_id: id.into(),
            duration: to_wire(Duration::from_millis(millis)),
            code: "OK".into(),
            outcome: "stop".into(),
            ..RequestRecord::default()
        }
    }

    /// Two routers that see two workers, one of them differently.
    fn sample(at: Instant, finished: u64, tokens: u64, step: u64) -> Sample {
        let addresses = ["a:1", "b:1"].map(|address| address.parse().unwrap());
        let states = [WorkerState::Live, WorkerState::Ejected];
        let workers = addresses.iter().cloned().zip(states).map(|(address, state)| {
            let workers = vec![status("w0", WorkerState::Live, step), status("w1", state, step)];
            let version = "0.1.0".into();
            (address, Ok(ListWorkersResponse { workers, version, ..Default::default() }))
        });
        let requests = addresses.iter().cloned().map(|address| {
            let totals = RouterTotals {
                running: 4,
                finished,
                generated_tokens: tokens,
                ..RouterTotals::default()
            };
            let requests = vec![record("quick", 5), record("slow", 5_000)];
            (
                address,
                Ok(ListRequestsResponse { requests, totals: Some(totals), ..Default::default() }),
            )
        });
        Sample { at, workers: workers.collect(), requests: requests.collect() }
    }

    /// Returns the view of that cluster after two seconds.
    pub(in super::super) fn view() -> ClusterView {
        let now = Instant::now();
        let (before, after) =
            (sample(now, 10, 1_000, 7), sample(now + Duration::from_secs(2), 20, 3_000, 27));
        ClusterView::new(&after, Some(&before), &[])
    }

    #[test]
    fn routers_are_put_together() {
        let view = view();
        assert_eq!((view.routers, view.running, view.versions.len()), (2, 8, 1));
        let rates = Rates { requests: 10.0, tokens: 2_000.0, ..Rates::default() };
        assert_eq!(view.rates, Some(rates));
        let [first, second] = &view.workers[..] else { panic!("{view:?}") };
        assert_eq!((first.state.as_str(), second.state.as_str()), ("live", "live/ejected"));
        assert_eq!((first.outstanding, first.steps, first.kv_usage), (4, Some(10.0), Some(0.75)));
        let slow: Vec<_> = view.slow.iter().map(|row| row.request_id.as_str()).collect();
        assert_eq!(slow, ["slow", "slow", "quick", "quick"]);
    }

    #[test]
    fn a_router_that_was_restarted_has_no_rate() {
        let now = Instant::now();
        let (before, after) =
            (sample(now, 10, 10, 7), sample(now + Duration::from_secs(1), 2, 5, 3));
        let view = ClusterView::new(&after, Some(&before), &[]);
        assert_eq!((view.rates, view.workers[0].steps), (None, None));
    }
}

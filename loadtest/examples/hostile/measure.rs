//! What the polite client measured, by window.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use serde::Serialize;
use stoker_loadtest::{measure::latency::Latency, targets::outcome::CallOutcome};
use tokio::time::Instant;

use crate::timetable::{Slot, Timetable};

/// Errors that are kept with their texts.
const KEPT_ERRORS: usize = 20;

/// What is measured of a request, with the name of each.
pub const METRICS: [&str; 2] = ["time to first token", "whole response"];

/// The latencies of one way in one window.
#[derive(Debug, Clone, Default)]
struct Window {
    latencies: [Latency; METRICS.len()],
    /// How late the client itself was.
    late: Latency,
}

/// Measurements of all ways and windows.
#[derive(Debug)]
pub struct Measure(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// By way, then by window.
    windows: Vec<Vec<Window>>,
    requests: u64,
    failed: u64,
    errors: Vec<Failed>,
}

/// A request that failed.
#[derive(Debug, Clone, Serialize)]
pub struct Failed {
    /// Number of the window.
    pub window: usize,
    /// Name of the way.
    pub way: usize,
    /// Time since the planned start, in seconds.
    pub after_seconds: f64,
    /// What happened.
    pub error: String,
}

/// Latencies in windows of one kind, in seconds.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Distribution {
    /// Number of requests.
    pub count: u64,
    /// Median.
    pub p50: f64,
    /// 99th percentile over all windows together.
    pub p99: f64,
    /// The longest.
    pub max: f64,
    /// 99th percentile of each window.
    pub p99_of_windows: Vec<f64>,
    /// Median of those.
    pub median_p99: f64,
}

/// A metric of a way in both kinds of windows.
#[derive(Debug, Clone, Serialize)]
pub struct Comparison {
    /// Which way.
    pub way: &'static str,
    /// Which metric.
    pub metric: &'static str,
    /// In quiet windows.
    pub quiet: Distribution,
    /// In hostile windows.
    pub hostile: Distribution,
    /// Median of the windows' p99s, hostile to quiet.
    pub ratio: f64,
}

/// All that the polite client measured.
#[derive(Debug, Clone, Serialize)]
pub struct Measured {
    /// Requests that ended.
    pub requests: u64,
    /// Those that failed.
    pub failed: u64,
    /// The first errors.
    pub errors: Vec<Failed>,
    /// Latencies.
    pub comparisons: Vec<Comparison>,
    /// 99th percentile of how late the client itself was, in seconds, in quiet and hostile windows: of
    /// the way in which it was the latest.
    pub lateness_p99: BTreeMap<&'static str, f64>,
}

impl Measure {
    /// Creates empty measurements.
    pub fn new(ways: usize, windows: usize) -> Self {
        let windows = vec![vec![Window::default(); windows]; ways];
        Self(Mutex::new(State { windows, ..State::default() }))
    }

    /// Adds the end of a request.
    pub fn record(
        &self,
        way: usize,
        slot: Slot,
        planned: Instant,
        outcome: Result<CallOutcome, String>,
    ) {
        let mut state = self.lock();
        state.requests += 1;
        match outcome {
            Err(error) => {
                state.failed += 1;
                if state.errors.len() < KEPT_ERRORS {
                    let after_seconds = planned.elapsed().as_secs_f64();
                    state.errors.push(Failed { window: slot.window, way, after_seconds, error });
                }
            }
            Ok(outcome) if slot.measured => {
                let window = &mut state.windows[way][slot.window];
                let response = &outcome.response;
                let values = [response.first_token.unwrap_or_default(), response.end_to_end];
                for (latency, value) in window.latencies.iter_mut().zip(values) {
                    latency.add(value);
                }
                window.late.add(outcome.send_lag);
            }
            Ok(_) => {}
        }
    }

    /// Returns the p99s of the time to first token of a window, by way, and all errors so far.
    pub fn of_window(&self, window: usize) -> (Vec<Option<Duration>>, u64) {
        let state = self.lock();
        let p99 = |way: &Vec<Window>| way[window].latencies[0].quantile(0.99);
        let p99s = state.windows.iter().map(|way| p99(way).map(Duration::from_secs_f64));
        (p99s.collect(), state.failed)
    }

    /// Summarizes the first `complete` windows.
    pub fn summary(&self, ways: &[&'static str], complete: usize) -> Measured {
        let state = self.lock();
        let mut comparisons = Vec::new();
        for (name, windows) in ways.iter().zip(&state.windows) {
            for (index, metric) in METRICS.into_iter().enumerate() {
                let latency = |window: &Window| window.latencies[index].clone();
                let quiet = distribution(&windows[..complete], false, latency);
                let hostile = distribution(&windows[..complete], true, latency);
                let ratio = hostile.median_p99 / quiet.median_p99;
                comparisons.push(Comparison { way: name, metric, quiet, hostile, ratio });
            }
        }
        let late = |hostile| {
            let of = |way: &Vec<Window>| {
                distribution(&way[..complete], hostile, |window| window.late.clone()).p99
            };
            state.windows.iter().map(of).fold(0.0, f64::max)
        };
        Measured {
            requests: state.requests,
            failed: state.failed,
            errors: state.errors.clone(),
            comparisons,
            lateness_p99: [("quiet", late(false)), ("hostile", late(true))].into(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn distribution(
    windows: &[Window],
    hostile: bool,
    latency: impl Fn(&Window) -> Latency,
) -> Distribution {
    let mut all = Latency::default();
    let mut p99_of_windows = Vec::new();
    for (_, window) in
        windows.iter().enumerate().filter(|(index, _)| Timetable::is_hostile(*index) == hostile)
    {
        let latency = latency(window);
        all.merge(&latency);
        p99_of_windows.extend(latency.quantile(0.99));
    }
    let of = |quantile| all.quantile(quantile).unwrap_or_default();
    let median_p99 = median(&p99_of_windows);
    Distribution {
        count: all.count(),
        p50: of(0.5),
        p99: of(0.99),
        max: of(1.0),
        p99_of_windows,
        median_p99,
    }
}

/// Returns the median: the mean of the two in the middle where there are two.
fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        count if count % 2 == 1 => values[count / 2],
        count => (values[count / 2 - 1] + values[count / 2]) / 2.0,
    }
}

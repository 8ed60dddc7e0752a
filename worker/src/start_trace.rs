//! The trace of a worker's start.

use std::time::Instant;

use stoker_engine::model::LoadTimings;
use stoker_shared::{
    names::{attribute, span},
    telemetry::trace::{Attribute, Clock, TraceSpan},
};

/// When the phases of a start ended: each begins where the one before it ends.
#[derive(Debug, Clone, Copy)]
pub struct StartTimes {
    /// Begin of the start.
    pub began: Instant,
    /// The weights were on the device.
    pub loaded: Instant,
    /// The worker served.
    pub ready: Instant,
}

/// Records the start of `worker`, which serves `model`.
///
/// Weights are read, quantised, packed and hashed a tensor at a time. Their spans have the total of
/// each, one after the other.
pub fn record(times: &StartTimes, timings: &LoadTimings, worker: &str, model: &str) {
    let clock = Clock::now();
    let StartTimes { began, loaded, ready } = *times;
    let attributes = vec![
        Attribute::new(attribute::WORKER, worker.to_owned()),
        Attribute::new(attribute::REQUEST_MODEL, model.to_owned()),
    ];
    let root = TraceSpan::root(span::START, clock.at(began), attributes, [].into_iter());
    let Some(root) = root else { return };
    let LoadTimings { read, quantize, pack, digest, total } = *timings;
    let mut start = loaded.checked_sub(total).unwrap_or(began).max(began);
    for (name, took) in [
        (span::START_READ, read),
        (span::START_QUANTIZE, quantize),
        (span::START_PACK, pack),
        (span::START_DIGEST, digest),
    ] {
        let end = (start + took).min(loaded);
        root.stage(name, clock.at(start), clock.at(end), Vec::new);
        start = end;
    }
    root.stage(span::START_WARM_UP, clock.at(loaded), clock.at(ready), Vec::new);
    root.end_at(clock.at(ready));
}

//! The load and its description, with defaults filled in.

use std::{num::NonZeroUsize, path::PathBuf, sync::Arc, time::Duration};

use crate::{
    arrivals::{
        rate::RateProfile,
        schedule::{Arrivals, End, OpenLoop},
    },
    cli::RunArgs,
    drive::pass::LoadConfig,
    report::config::Config,
    requests::trace::Trace,
};

/// Default number of streams without a rate.
pub(super) const CONCURRENCY: usize = 16;
/// Default maximum number of streams with a rate.
const OPEN_LOOP_CONCURRENCY: usize = 1_024;
/// Default number of requests.
const REQUESTS: u64 = 100;
/// Default time of a run of a sweep.
const SWEEP_DURATION: Duration = Duration::from_secs(30);
/// Few servers and proxies have a lower limit.
const STREAMS_PER_CONNECTION: usize = 100;

/// Returns the load: `expected` is the number of requests of `--expect`.
pub(super) fn load(args: &RunArgs, expected: Option<u64>, trace: Option<Arc<Trace>>) -> LoadConfig {
    let load = &args.load;
    let open = load.rate.is_some() || trace.is_some() || args.sweep.sweep.is_some();
    let streams = if open { OPEN_LOOP_CONCURRENCY } else { CONCURRENCY };
    let stages = load.rate.as_ref().and_then(RateProfile::total);
    let sweep = args.sweep.sweep.map(|_| SWEEP_DURATION);
    let traced = trace.as_ref().map(|trace| trace.requests.len() as u64);
    let end = match (load.duration, load.requests, expected.or(traced), stages.or(sweep)) {
        (Some(duration), ..) => End::After(duration),
        (None, Some(requests), ..) => End::Requests(requests.get()),
        (None, None, Some(count), _) => End::Requests(count),
        (None, None, None, Some(time)) => End::After(time),
        (None, None, None, None) => End::Requests(REQUESTS),
    };
    let process = load.arrivals;
    let generated = load.rate.clone().map(|rate| OpenLoop::Generated { rate, process });
    let open_loop = generated.or(trace.map(OpenLoop::Traced));
    LoadConfig {
        concurrency: load.concurrency.or(NonZeroUsize::new(streams)).unwrap_or(NonZeroUsize::MIN),
        arrivals: Arrivals { open_loop, seed: args.requests.seed, end },
        deadline: load.deadline,
        think_time: args.requests.think_time,
        objectives: args.output.slo,
        max_missed: None,
    }
}

/// Returns the number of connections.
pub(super) fn connections(args: &RunArgs, load: &LoadConfig) -> NonZeroUsize {
    let default = load.streams(args.requests.turns.get()).div_ceil(STREAMS_PER_CONNECTION);
    args.target.connections.or(NonZeroUsize::new(default)).unwrap_or(NonZeroUsize::MIN)
}

/// Returns the description of a run.
pub(super) fn config(args: &RunArgs, load: &LoadConfig) -> Config {
    let path = |path: &PathBuf| path.display().to_string();
    let RunArgs { target, requests: request, .. } = args;
    let (rate, arrivals) = match &load.arrivals.open_loop {
        Some(OpenLoop::Generated { rate, process }) => {
            (Some(rate.to_string()), Some(process.to_string()))
        }
        Some(OpenLoop::Traced(_)) | None => (None, None),
    };
    let synthetic = request.prompts.is_none() && request.trace.is_none();
    let (requests, duration) = match load.arrivals.end {
        End::Requests(count) => (Some(count), None),
        End::After(time) => (None, Some(time.as_secs_f64())),
    };
    Config {
        target: target.target.name().into(),
        endpoint: target.endpoint.to_string(),
        connections: connections(args, load).get(),
        concurrency: load.concurrency.get(),
        warm_up: args.load.warm_up.map(|count| count.get()),
        rate,
        arrivals,
        sweep: args.sweep.sweep.map(|range| range.to_string()),
        trace: request.trace.as_ref().map(path),
        trace_speed: request.trace.as_ref().map(|_| request.trace_speed),
        trace_length: request.trace.as_ref().map(|_| request.trace_length),
        slo: load.objectives.map(|objectives| objectives.to_string()),
        requests,
        duration_seconds: duration,
        deadline_seconds: load.deadline.map(|time| time.as_secs_f64()),
        prompts: request.prompts.as_ref().map(path),
        synthetic: synthetic.then(|| request.synthetic.to_string()),
        shared_prefix: request.shared_prefix.map(|prefix| prefix.to_string()),
        turns: request.turns.get(),
        think_time_seconds: request.think_time.as_secs_f64(),
        cancel: request.cancel.map(|cancel| cancel.to_string()),
        max_tokens: request.max_tokens.map(|tokens| tokens.get()),
        ignore_eos: request.ignore_eos || request.prompts.is_none(),
        temperature: request.temperature,
        seed: request.seed,
        verify: args.verify.verify,
        expect: args.verify.expect.as_ref().map(path),
        faults: args.load.fault.iter().map(ToString::to_string).collect(),
    }
}

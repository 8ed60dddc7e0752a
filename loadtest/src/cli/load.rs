//! Flags for the load.

use std::{
    num::{NonZeroU32, NonZeroU64, NonZeroUsize},
    time::Duration,
};

use clap::Args;
use stoker_shared::{count, duration};

use crate::{
    arrivals::{process::ArrivalProcess, rate::RateProfile},
    drive::faults::Fault,
    sweep::SweepRange,
};

/// Flags for the load.
#[derive(Debug, Args)]
#[command(next_help_heading = "Load")]
pub struct LoadArgs {
    /// Number of concurrent streams: a request starts when another one ends. With --rate, the
    /// maximum [default: 16; 1024 with --rate]
    #[arg(long, value_parser = count::parse::<NonZeroUsize>, env = "STOKER_LOADTEST_CONCURRENCY", value_name = "STREAMS")]
    pub concurrency: Option<NonZeroUsize>,

    /// Requests per second (with --turns, conversations), started independently of the responses: one
    /// rate, or stages RATE:TIME and ramps FROM-TO:TIME, as in 10:30s,10-50:1m
    #[arg(long, env = "STOKER_LOADTEST_RATE", group = "open_loop", value_name = "REQUESTS")]
    pub rate: Option<RateProfile>,

    /// How evenly requests arrive at a rate: poisson, constant, gamma:CV (a coefficient of
    /// variation; above 1 in clusters) or burst:COUNT (this many at once)
    #[arg(
        long,
        env = "STOKER_LOADTEST_ARRIVALS",
        default_value = "poisson",
        requires = "open_loop",
        value_name = "PROCESS"
    )]
    pub arrivals: ArrivalProcess,

    /// Total number of requests [default: those of the stages of --rate or of --trace, else 100;
    /// with --expect, as many as its file has]
    #[arg(
        long, value_parser = count::parse::<NonZeroU64>,
        env = "STOKER_LOADTEST_REQUESTS",
        conflicts_with = "duration",
        value_name = "COUNT"
    )]
    pub requests: Option<NonZeroU64>,

    /// Start requests for this time, and wait for their responses
    #[arg(
        long,
        env = "STOKER_LOADTEST_DURATION",
        value_parser = duration::parse_positive,
        value_name = "TIME"
    )]
    pub duration: Option<Duration>,

    /// Requests to send before the measured ones, with other synthetic prompts; they are not part
    /// of the results [default: none]
    #[arg(long, value_parser = count::parse::<NonZeroU64>, env = "STOKER_LOADTEST_WARM_UP", value_name = "COUNT")]
    pub warm_up: Option<NonZeroU64>,

    /// Deadline of a request; a slower one fails with DEADLINE_EXCEEDED [default: none]
    #[arg(
        long,
        env = "STOKER_LOADTEST_DEADLINE",
        value_parser = duration::parse_positive,
        value_name = "TIME"
    )]
    pub deadline: Option<Duration>,

    /// Run a shell command this long after the start, for instance to inject a fault. May be given
    /// several times; in the variable, one per line
    #[arg(
        long,
        env = "STOKER_LOADTEST_FAULT",
        value_delimiter = '\n',
        value_name = "TIME=COMMAND"
    )]
    pub fault: Vec<Fault>,
}

/// Flags for the search for the highest rate.
#[derive(Debug, Args)]
#[command(next_help_heading = "Sweep")]
pub struct SweepArgs {
    /// Search the highest rate in this range, in requests per second, that meets the objectives of
    /// --slo. --duration or --requests are of each run [default: 30s]
    #[arg(
        long,
        env = "STOKER_LOADTEST_SWEEP",
        group = "open_loop",
        requires = "slo",
        conflicts_with_all = ["trace", "fault", "verify", "save_digests", "expect"],
        value_name = "FROM-TO"
    )]
    pub sweep: Option<SweepRange>,

    /// Number of runs at each rate: the more, the surer. Runs that differ too much are repeated
    /// once more
    #[arg(
        long, value_parser = count::parse::<NonZeroU32>,
        env = "STOKER_LOADTEST_REPEATS",
        default_value = "3",
        requires = "sweep",
        value_name = "COUNT"
    )]
    pub repeats: NonZeroU32,

    /// Share of requests that must meet the objectives
    #[arg(
        long,
        env = "STOKER_LOADTEST_SLO_SHARE",
        default_value_t = 0.99,
        value_parser = share,
        requires = "sweep",
        value_name = "SHARE"
    )]
    pub slo_share: f64,
}

fn share(text: &str) -> Result<f64, &'static str> {
    match text.parse() {
        Ok(share) if (0.01..=1.0).contains(&share) => Ok(share),
        _ => Err("write a share from 0.01 to 1, as in 0.99"),
    }
}

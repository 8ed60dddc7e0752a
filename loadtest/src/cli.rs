//! The command line.

use std::{
    num::{NonZeroU32, NonZeroU64, NonZeroUsize},
    path::PathBuf,
    time::Duration,
};

use clap::{Args, Parser};
use stoker_shared::{VERSION, client::Address, duration};

use crate::{
    objectives::Objectives, process::ArrivalProcess, rate::RateProfile, synthetic::SyntheticShape,
};

const EXAMPLES: &str = "\
Examples:
  32 concurrent streams until 500 requests are complete:
    stoker-loadtest --endpoint 127.0.0.1:50051 --concurrency 32 --requests 500
  20 requests per second for a minute, prompts of 100 to 400 tokens, responses of 64:
    stoker-loadtest --rate 20 --duration 60s --synthetic 100-400:64
  A ramp from 5 to 50 requests per second, and how many responses meet objectives:
    stoker-loadtest --rate 5:30s,5-50:2m --slo ttft=500ms,itl=50ms
  An hour of a recorded trace in six minutes, with half of its lengths:
    stoker-loadtest --trace AzureLLMInferenceTrace_conv.csv --trace-speed 10 --trace-length 0.5
  Prompts from a file, and machine-readable results:
    stoker-loadtest --prompts prompts.txt --max-tokens 200 --json results.json
  Compare the responses of a disturbed cluster with those of an undisturbed one:
    stoker-loadtest --requests 500 --save-digests quiet.jsonl
    stoker-loadtest --requests 500 --expect quiet.jsonl

Latency is measured from the scheduled time of a request: with --rate, it includes waiting for a
free stream. The longest pause is the longest time between two tokens of a response, also reported
separately for responses that another worker resumed. Latencies are those of complete responses;
failures are counted by code.

Exit codes: 0 if all responses are complete and as expected; 1 if one is not, or after Ctrl-C,
which prints the results so far; 2 for bad usage. loadtest/README.md describes the JSON file.";

/// Loads a cluster, measures what its clients see, and checks that no response is lost or altered
#[derive(Debug, Parser)]
#[command(name = "stoker-loadtest", version = VERSION, after_help = EXAMPLES)]
pub struct Cli {
    /// The cluster.
    #[command(flatten)]
    pub cluster: ClusterArgs,
    /// The load.
    #[command(flatten)]
    pub load: LoadArgs,
    /// The requests.
    #[command(flatten)]
    pub request: RequestArgs,
    /// The verification of responses.
    #[command(flatten)]
    pub verify: VerifyArgs,

    /// Objectives of latency: reports how many responses meet them (goodput). ttft=TIME (first
    /// token), itl=TIME (mean between tokens) and e2e=TIME (whole), as in ttft=500ms,itl=50ms
    #[arg(long, env = "STOKER_LOADTEST_SLO", value_name = "OBJECTIVES", help_heading = "Output")]
    pub slo: Option<Objectives>,

    /// Write all measurements to this file as JSON; `-` prints them instead of the table
    #[arg(long, env = "STOKER_LOADTEST_JSON", value_name = "FILE", help_heading = "Output")]
    pub json: Option<PathBuf>,
}

/// Flags for the cluster.
#[derive(Debug, Args)]
#[command(next_help_heading = "Cluster")]
pub struct ClusterArgs {
    /// Address of a router, or of a single worker
    #[arg(
        long,
        env = "STOKER_LOADTEST_ENDPOINT",
        default_value = "127.0.0.1:50051",
        value_name = "ADDR"
    )]
    pub endpoint: Address,

    /// Name of the model [default: the only one that the cluster serves]
    #[arg(
        long,
        env = "STOKER_LOADTEST_MODEL",
        default_value = "",
        hide_default_value = true,
        value_name = "NAME"
    )]
    pub model: String,

    /// Number of HTTP/2 connections that the streams share [default: one per 100 streams]
    #[arg(long, env = "STOKER_LOADTEST_CONNECTIONS", value_name = "COUNT")]
    pub connections: Option<NonZeroUsize>,
}

/// Flags for the load.
#[derive(Debug, Args)]
#[command(next_help_heading = "Load")]
pub struct LoadArgs {
    /// Number of concurrent streams: a request starts when another one ends. With --rate, the
    /// maximum [default: 16; 1024 with --rate]
    #[arg(long, env = "STOKER_LOADTEST_CONCURRENCY", value_name = "STREAMS")]
    pub concurrency: Option<NonZeroUsize>,

    /// Requests per second, started independently of the responses: one rate, or stages RATE:TIME
    /// and ramps FROM-TO:TIME, as in 10:30s,10-50:1m
    #[arg(long, env = "STOKER_LOADTEST_RATE", value_name = "REQUESTS")]
    pub rate: Option<RateProfile>,

    /// How evenly requests arrive at --rate: poisson, constant, gamma:CV (a coefficient of
    /// variation; above 1 in clusters) or burst:COUNT (this many at once)
    #[arg(
        long,
        env = "STOKER_LOADTEST_ARRIVALS",
        default_value = "poisson",
        requires = "rate",
        value_name = "PROCESS"
    )]
    pub arrivals: ArrivalProcess,

    /// Total number of requests [default: those of the stages of --rate or of --trace, else 100;
    /// with --expect, as many as its file has]
    #[arg(
        long,
        env = "STOKER_LOADTEST_REQUESTS",
        conflicts_with = "duration",
        value_name = "COUNT"
    )]
    pub requests: Option<NonZeroU64>,

    /// Start requests for this time, and wait for their responses
    #[arg(
        long,
        env = "STOKER_LOADTEST_DURATION",
        value_parser = duration::parse,
        value_name = "TIME"
    )]
    pub duration: Option<Duration>,

    /// Requests to send before the measured ones, with other synthetic prompts; they are not part
    /// of the results [default: none]
    #[arg(long, env = "STOKER_LOADTEST_WARM_UP", value_name = "COUNT")]
    pub warm_up: Option<NonZeroU64>,

    /// Deadline of a request; a slower one fails with DEADLINE_EXCEEDED [default: none]
    #[arg(
        long,
        env = "STOKER_LOADTEST_DEADLINE",
        value_parser = duration::parse,
        value_name = "TIME"
    )]
    pub deadline: Option<Duration>,
}

/// Flags for the requests.
#[derive(Debug, Args)]
#[command(next_help_heading = "Requests")]
pub struct RequestArgs {
    /// File with prompts, which are used cyclically: one per line, or, if the name ends in .jsonl,
    /// one object with `prompt` and optionally `max_tokens` per line
    #[arg(
        long,
        env = "STOKER_LOADTEST_PROMPTS",
        conflicts_with = "synthetic",
        value_name = "FILE"
    )]
    pub prompts: Option<PathBuf>,

    /// Synthetic prompts of IN tokens and responses of OUT, as far as the context allows; either
    /// may be a range, as in 100-400:64
    #[arg(
        long,
        env = "STOKER_LOADTEST_SYNTHETIC",
        default_value = "128:128",
        value_name = "IN:OUT"
    )]
    pub synthetic: SyntheticShape,

    /// Replay a recorded trace: the arrival times and lengths of its requests, with synthetic
    /// prompts. CSV of Azure or BurstGPT, or JSON lines of Mooncake, whose prefixes are shared
    #[arg(
        long,
        env = "STOKER_LOADTEST_TRACE",
        conflicts_with_all = ["prompts", "synthetic", "rate"],
        value_name = "FILE"
    )]
    pub trace: Option<PathBuf>,

    /// How many times as fast as recorded requests arrive
    #[arg(
        long,
        env = "STOKER_LOADTEST_TRACE_SPEED",
        default_value_t = 1.0,
        value_parser = factor,
        value_name = "FACTOR"
    )]
    pub trace_speed: f64,

    /// Factor of the lengths of a trace, for a model with a shorter context
    #[arg(
        long,
        env = "STOKER_LOADTEST_TRACE_LENGTH",
        default_value_t = 1.0,
        value_parser = factor,
        value_name = "FACTOR"
    )]
    pub trace_length: f64,

    /// Maximum number of new tokens for prompts of --prompts [default: as many as the context
    /// allows]
    #[arg(long, env = "STOKER_LOADTEST_MAX_TOKENS", requires = "prompts", value_name = "TOKENS")]
    pub max_tokens: Option<NonZeroU32>,

    /// Continue responses to --prompts after an end-of-text token
    #[arg(long, env = "STOKER_LOADTEST_IGNORE_EOS", requires = "prompts")]
    pub ignore_eos: bool,

    /// Sampling temperature; 0 is greedy [default: that of the cluster, 1]
    #[arg(long, env = "STOKER_LOADTEST_TEMPERATURE", value_name = "NUMBER")]
    pub temperature: Option<f32>,

    /// Seed of requests and their times; request i is sampled with this seed plus i
    #[arg(long, env = "STOKER_LOADTEST_SEED", default_value_t = 0, value_name = "NUMBER")]
    pub seed: u64,
}

/// Flags for the verification of responses.
#[derive(Debug, Args)]
#[command(next_help_heading = "Verification")]
pub struct VerifyArgs {
    /// Send all requests twice: the responses of the second pass must equal those of the first,
    /// which must be undisturbed
    #[arg(
        long,
        env = "STOKER_LOADTEST_VERIFY",
        conflicts_with_all = ["save_digests", "expect"]
    )]
    pub verify: bool,

    /// Write a digest of every response to this file, for --expect
    #[arg(
        long,
        env = "STOKER_LOADTEST_SAVE_DIGESTS",
        conflicts_with = "expect",
        value_name = "FILE"
    )]
    pub save_digests: Option<PathBuf>,

    /// Compare every response with the digests that an undisturbed run with the same flags has
    /// saved
    #[arg(long, env = "STOKER_LOADTEST_EXPECT", conflicts_with = "duration", value_name = "FILE")]
    pub expect: Option<PathBuf>,
}

fn factor(text: &str) -> Result<f64, &'static str> {
    match text.parse() {
        Ok(factor) if (0.001..=1e6).contains(&factor) => Ok(factor),
        _ => Err("write a factor from 0.001 to 1000000"),
    }
}

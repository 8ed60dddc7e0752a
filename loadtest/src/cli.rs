//! The command line.

mod load;
mod requests;

use std::{num::NonZeroUsize, path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand};
use stoker_shared::{
    VERSION,
    client::{Address, Credentials},
    count, duration,
};

use crate::{drive::scrape::MetricsUrl, measure::objectives::Objectives, targets::Api};
pub use load::{LoadArgs, SweepArgs};
pub use requests::RequestArgs;

const EXAMPLES: &str = "\
Examples:
  32 concurrent streams until 500 requests are complete:
    stoker-loadtest --endpoint 127.0.0.1:50051 --concurrency 32 --requests 500
  20 requests per second for a minute, prompts of 100 to 400 tokens, responses of 64:
    stoker-loadtest --rate 20 --duration 60s --synthetic 100-400:64
  A ramp from 5 to 50 requests per second, how many responses meet objectives, and a page with charts:
    stoker-loadtest --rate 5:30s,5-50:2m --slo ttft=500ms,itl=50ms --html results.html
  The highest rate at which 99 % of responses meet objectives:
    stoker-loadtest --sweep 1-100 --slo ttft=500ms,itl=50ms
  An hour of a recorded trace in six minutes, with half of its lengths:
    stoker-loadtest --trace AzureLLMInferenceTrace_conv.csv --trace-speed 10 --trace-length 0.5
  Conversations of five turns after a system prompt that they share:
    stoker-loadtest --turns 5 --think-time 2s --shared-prefix 512 --synthetic 50:100
  A worker is killed after ten seconds, while its metrics are read:
    stoker-loadtest --rate 20 --duration 30s --fault '10s=kill -9 1234' --scrape 127.0.0.1:9092
  Another server, over OpenAI's HTTP API:
    stoker-loadtest --target openai --endpoint 127.0.0.1:8000
  Compare the responses of a disturbed cluster with those of an undisturbed one:
    stoker-loadtest --requests 500 --save-digests quiet.jsonl
    stoker-loadtest --requests 500 --expect quiet.jsonl

Latency is measured from the scheduled time of a request: with --rate, it includes waiting for a
free stream. The longest pause is the longest time between two tokens of a response, also reported
separately for responses that another worker resumed. Latencies are those of complete responses;
failures are counted by code.

Exit codes: 0 if all responses are complete and as expected; 1 if one is not, if the load test itself
was too late to measure, or after Ctrl-C, which prints the results so far; 2 for bad usage.
loadtest/README.md describes the JSON file.";

/// Loads a cluster, measures what its clients see, and checks that no response is lost or altered
#[derive(Debug, Parser)]
#[command(
    name = "stoker-loadtest",
    version = VERSION,
    after_help = EXAMPLES,
    args_conflicts_with_subcommands = true
)]
pub struct Cli {
    /// What to do instead of a load test.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// The load test.
    #[command(flatten)]
    pub run: RunArgs,
}

/// What to do instead of a load test.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Compare the results of runs, and say what differs beyond noise
    Compare(CompareArgs),
}

/// Flags of a load test.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// The target.
    #[command(flatten)]
    pub target: TargetArgs,
    /// The load.
    #[command(flatten)]
    pub load: LoadArgs,
    /// The search for the highest rate.
    #[command(flatten)]
    pub sweep: SweepArgs,
    /// The requests.
    #[command(flatten)]
    pub requests: RequestArgs,
    /// The verification of responses.
    #[command(flatten)]
    pub verify: VerifyArgs,
    /// The results.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// Flags for the target.
#[derive(Debug, Args)]
#[command(next_help_heading = "Target")]
pub struct TargetArgs {
    /// What the target speaks: stoker (gRPC), openai (OpenAI's /v1/completions over HTTP), or
    /// openai-chat (/v1/chat/completions)
    #[arg(
        long,
        env = "STOKER_LOADTEST_TARGET",
        value_enum,
        default_value = "stoker",
        hide_possible_values = true,
        value_name = "API"
    )]
    pub target: Api,

    /// Address of a router, of a single worker, or of another server
    #[arg(
        long,
        env = "STOKER_LOADTEST_ENDPOINT",
        default_value = "127.0.0.1:50051",
        value_name = "ADDR"
    )]
    pub endpoint: Address,

    /// Certificates and API key.
    #[command(flatten)]
    pub credentials: Credentials,

    /// Name of the model [default: the only one that is served]
    #[arg(
        long,
        env = "STOKER_LOADTEST_MODEL",
        default_value = "",
        hide_default_value = true,
        value_name = "NAME"
    )]
    pub model: String,

    /// Number of HTTP/2 connections that the streams share [default: one per 100 streams]
    #[arg(long, value_parser = count::parse::<NonZeroUsize>, env = "STOKER_LOADTEST_CONNECTIONS", value_name = "COUNT")]
    pub connections: Option<NonZeroUsize>,

    /// Read Prometheus metrics here every second and report them beside the results: host:port, or a
    /// URL. May be given several times
    #[arg(long, env = "STOKER_LOADTEST_SCRAPE", value_delimiter = ',', value_name = "URL")]
    pub scrape: Vec<MetricsUrl>,
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

/// Flags for the results.
#[derive(Debug, Args)]
#[command(next_help_heading = "Output")]
pub struct OutputArgs {
    /// Objectives of latency: reports how many responses meet them (goodput). ttft=TIME (first
    /// token), itl=TIME (mean between tokens) and e2e=TIME (whole), as in ttft=500ms,itl=50ms
    #[arg(long, env = "STOKER_LOADTEST_SLO", value_name = "OBJECTIVES")]
    pub slo: Option<Objectives>,

    /// Write all measurements to this file as JSON; `-` prints them instead of the table
    #[arg(long, env = "STOKER_LOADTEST_JSON", value_name = "FILE")]
    pub json: Option<PathBuf>,

    /// Write a row for each request to this file, as CSV
    #[arg(long, env = "STOKER_LOADTEST_CSV", value_name = "FILE")]
    pub csv: Option<PathBuf>,

    /// Write a page with charts to this file, which needs no network to be read
    #[arg(long, env = "STOKER_LOADTEST_HTML", value_name = "FILE")]
    pub html: Option<PathBuf>,

    /// Fail if the load test itself wakes up later than this, in the 99th percentile [default: a
    /// tenth of the median time to the first token, at least 25ms]
    #[arg(
        long,
        env = "STOKER_LOADTEST_MAX_LATENESS",
        value_parser = duration::parse_positive,
        value_name = "TIME"
    )]
    pub max_lateness: Option<Duration>,
}

/// Arguments of `compare`.
#[derive(Debug, Args)]
#[command(after_help = COMPARE_HELP)]
pub struct CompareArgs {
    /// JSON files of the runs to compare with, separated by commas
    #[arg(num_args = 1, required = true, value_delimiter = ',', value_name = "BASE")]
    pub base: Vec<PathBuf>,

    /// JSON files of the new runs, separated by commas
    #[arg(num_args = 1, required = true, value_delimiter = ',', value_name = "NEW")]
    pub new: Vec<PathBuf>,

    /// Smallest relative difference that counts, as in 0.05 [default: 0.05 if a side has one run,
    /// else 0]
    #[arg(
        long,
        env = "STOKER_LOADTEST_THRESHOLD",
        value_parser = threshold,
        value_name = "SHARE"
    )]
    pub threshold: Option<f64>,

    /// Compare runs whose configurations or models differ
    #[arg(long, env = "STOKER_LOADTEST_UNLIKE")]
    pub unlike: bool,
}

const COMPARE_HELP: &str = "\
Examples:
  Two runs:
    stoker-loadtest compare before.json after.json
  Several runs of each, whose spread says what is noise:
    stoker-loadtest compare before1.json,before2.json,before3.json after1.json,after2.json,after3.json

Intervals have 95 % confidence. With several runs on both sides, they are of the runs (Welch's t test of
logarithms); else of blocks of consecutive requests and slices of time that are drawn again (bootstrap).

Exit codes: 0 if nothing is worse, 1 if something is, 2 for bad usage.";

fn threshold(text: &str) -> Result<f64, &'static str> {
    match text.parse() {
        Ok(share) if (0.0..=10.0).contains(&share) => Ok(share),
        _ => Err("write a share from 0 to 10, as in 0.05"),
    }
}

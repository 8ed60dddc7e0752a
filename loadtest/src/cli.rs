//! The command line.

use std::{
    num::{NonZeroU32, NonZeroU64, NonZeroUsize},
    path::PathBuf,
    time::Duration,
};

use clap::{Args, Parser};
use stoker_shared::{VERSION, client::Address, duration};

use crate::synthetic::Shape;

const EXAMPLES: &str = "\
Examples:
  32 streams at once until 500 requests are answered:
    stoker-loadtest --endpoint 127.0.0.1:50051 --concurrency 32 --requests 500
  20 requests a second for a minute, prompts of 100 to 400 tokens, answers of 64:
    stoker-loadtest --rate 20 --duration 60s --synthetic 100-400:64
  Prompts of your own, and the results for a program:
    stoker-loadtest --prompts prompts.txt --max-tokens 200 --json results.json
  Is every answer the same while the cluster is disturbed?
    stoker-loadtest --requests 500 --save-digests quiet.jsonl
    stoker-loadtest --requests 500 --expect quiet.jsonl

A request's latency counts from when it was meant to begin: with --rate, waiting for a free
stream is part of it. The longest pause is the longest time that an answer stood still between two
tokens, also told for those answers alone that another worker took over. Latencies are of complete answers; whatever failed is counted and named.

Exit codes: 0 if every answer came, complete and as expected; 1 if one did not, or after Ctrl-C,
which prints what is known; 2 for bad usage. loadtest/README.md describes the JSON file.";

/// Loads a cluster, measures what its clients see, and checks that no answer is lost or altered
#[derive(Debug, Parser)]
#[command(name = "stoker-loadtest", version = VERSION, after_help = EXAMPLES)]
pub struct Cli {
    /// Whom to ask.
    #[command(flatten)]
    pub cluster: ClusterArgs,
    /// How much at once, and how long.
    #[command(flatten)]
    pub load: LoadArgs,
    /// What to ask.
    #[command(flatten)]
    pub request: RequestArgs,
    /// What to compare answers with.
    #[command(flatten)]
    pub verify: VerifyArgs,

    /// Write everything that was measured to this file, as JSON; `-` prints it instead of the table
    #[arg(long, env = "STOKER_LOADTEST_JSON", value_name = "FILE", help_heading = "Output")]
    pub json: Option<PathBuf>,
}

/// Whom to ask.
#[derive(Debug, Args)]
#[command(next_help_heading = "Cluster")]
pub struct ClusterArgs {
    /// A router, or a worker by itself
    #[arg(
        long,
        env = "STOKER_LOADTEST_ENDPOINT",
        default_value = "127.0.0.1:50051",
        value_name = "ADDR"
    )]
    pub endpoint: Address,

    /// The model to ask for [default: the only one that the cluster serves]
    #[arg(
        long,
        env = "STOKER_LOADTEST_MODEL",
        default_value = "",
        hide_default_value = true,
        value_name = "NAME"
    )]
    pub model: String,

    /// HTTP/2 connections that the streams share [default: one for every 100 streams]
    #[arg(long, env = "STOKER_LOADTEST_CONNECTIONS", value_name = "COUNT")]
    pub connections: Option<NonZeroUsize>,
}

/// How much at once, and how long.
#[derive(Debug, Args)]
#[command(next_help_heading = "Load")]
pub struct LoadArgs {
    /// Streams at once: the next request begins when one ends. With --rate, the most that may run
    /// [default: 16; 1024 with --rate]
    #[arg(long, env = "STOKER_LOADTEST_CONCURRENCY", value_name = "STREAMS")]
    pub concurrency: Option<NonZeroUsize>,

    /// Begin this many requests a second at random moments (Poisson), however long answers take
    #[arg(
        long,
        env = "STOKER_LOADTEST_RATE",
        value_parser = rate,
        value_name = "REQUESTS"
    )]
    pub rate: Option<f64>,

    /// Requests in all [default: 100; with --expect, as many as its file holds]
    #[arg(
        long,
        env = "STOKER_LOADTEST_REQUESTS",
        conflicts_with = "duration",
        value_name = "COUNT"
    )]
    pub requests: Option<NonZeroU64>,

    /// Begin requests for this long, and wait for their answers
    #[arg(
        long,
        env = "STOKER_LOADTEST_DURATION",
        value_parser = duration::parse,
        value_name = "TIME"
    )]
    pub duration: Option<Duration>,

    /// Give an answer this long; one that takes longer is DEADLINE_EXCEEDED [default: for ever]
    #[arg(
        long,
        env = "STOKER_LOADTEST_DEADLINE",
        value_parser = duration::parse,
        value_name = "TIME"
    )]
    pub deadline: Option<Duration>,
}

/// What to ask.
#[derive(Debug, Args)]
#[command(next_help_heading = "Requests")]
pub struct RequestArgs {
    /// Prompts in turn from this file: one a line, or, if it ends in .jsonl, an object with `prompt` and
    /// perhaps `max_tokens` a line
    #[arg(
        long,
        env = "STOKER_LOADTEST_PROMPTS",
        conflicts_with = "synthetic",
        value_name = "FILE"
    )]
    pub prompts: Option<PathBuf>,

    /// Prompts of IN tokens and answers of OUT, as far as the context reaches; either may be a range,
    /// 100-400:64
    #[arg(
        long,
        env = "STOKER_LOADTEST_SYNTHETIC",
        default_value = "128:128",
        value_name = "IN:OUT"
    )]
    pub synthetic: Shape,

    /// New tokens at most for a prompt of --prompts [default: as many as the context leaves]
    #[arg(long, env = "STOKER_LOADTEST_MAX_TOKENS", requires = "prompts", value_name = "TOKENS")]
    pub max_tokens: Option<NonZeroU32>,

    /// Let answers to --prompts go on after the model's end of text
    #[arg(long, env = "STOKER_LOADTEST_IGNORE_EOS", requires = "prompts")]
    pub ignore_eos: bool,

    /// 0 always takes the likeliest token [default: the cluster's, 1]
    #[arg(long, env = "STOKER_LOADTEST_TEMPERATURE", value_name = "NUMBER")]
    pub temperature: Option<f32>,

    /// The same seed makes the same requests at the same moments: request i is sampled with this plus i
    #[arg(long, env = "STOKER_LOADTEST_SEED", default_value_t = 0, value_name = "NUMBER")]
    pub seed: u64,
}

/// What to compare answers with.
#[derive(Debug, Args)]
#[command(next_help_heading = "Verification")]
pub struct VerifyArgs {
    /// Ask everything twice: the second pass must give the answers of the first, which must be undisturbed
    #[arg(
        long,
        env = "STOKER_LOADTEST_VERIFY",
        conflicts_with_all = ["save_digests", "expect"]
    )]
    pub verify: bool,

    /// Write a digest of every answer to this file, for --expect
    #[arg(
        long,
        env = "STOKER_LOADTEST_SAVE_DIGESTS",
        conflicts_with = "expect",
        value_name = "FILE"
    )]
    pub save_digests: Option<PathBuf>,

    /// Compare every answer with the digests that an undisturbed run with the same flags saved
    #[arg(long, env = "STOKER_LOADTEST_EXPECT", conflicts_with = "duration", value_name = "FILE")]
    pub expect: Option<PathBuf>,
}

fn rate(text: &str) -> Result<f64, &'static str> {
    match text.parse() {
        Ok(rate) if (0.001..=1e6).contains(&rate) => Ok(rate),
        _ => Err("write requests a second, from 0.001 to 1000000"),
    }
}

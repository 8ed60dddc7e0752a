//! Flags for the requests.

use std::{
    num::{NonZeroU32, NonZeroU64},
    path::PathBuf,
    time::Duration,
};

use clap::Args;
use stoker_shared::{count, duration};

use crate::requests::{
    cancellation::Cancellation,
    shape::{SharedPrefix, SyntheticShape},
};

/// Flags for the requests.
#[derive(Debug, Args)]
#[command(next_help_heading = "Requests")]
pub struct RequestArgs {
    /// File with prompts, which are used cyclically: one per line, or, if the name ends in .jsonl or
    /// .ndjson, one object with `prompt` and optionally `max_tokens` per line; .json may be a list
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

    /// Begin synthetic prompts with one of COUNT prefixes of TOKENS more tokens, as in 512:8
    #[arg(
        long,
        env = "STOKER_LOADTEST_SHARED_PREFIX",
        conflicts_with_all = ["prompts", "trace"],
        value_name = "TOKENS[:COUNT]"
    )]
    pub shared_prefix: Option<SharedPrefix>,

    /// Number of requests of a conversation, each of which continues the text of the last one and its
    /// response
    #[arg(
        long, value_parser = count::parse::<NonZeroU64>,
        env = "STOKER_LOADTEST_TURNS",
        default_value = "1",
        conflicts_with = "trace",
        value_name = "COUNT"
    )]
    pub turns: NonZeroU64,

    /// Time between a response and the next turn of its conversation
    #[arg(
        long,
        env = "STOKER_LOADTEST_THINK_TIME",
        default_value = "0s",
        value_parser = duration::parse,
        value_name = "TIME"
    )]
    pub think_time: Duration,

    /// Cancel this share of requests after TOKENS tokens, as in 0.1:16 [default: none; without
    /// TOKENS, at random]
    #[arg(long, env = "STOKER_LOADTEST_CANCEL", value_name = "SHARE[:TOKENS]")]
    pub cancel: Option<Cancellation>,

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
    #[arg(long, value_parser = count::parse::<NonZeroU32>, env = "STOKER_LOADTEST_MAX_TOKENS", requires = "prompts", value_name = "TOKENS")]
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

fn factor(text: &str) -> Result<f64, &'static str> {
    match text.parse() {
        Ok(factor) if (0.001..=1e6).contains(&factor) => Ok(factor),
        _ => Err("write a factor from 0.001 to 1000000"),
    }
}

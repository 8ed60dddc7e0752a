//! The command line of `bench`.

use std::{fmt, path::PathBuf, time::Duration};

use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};
use stoker_engine::model::Quantization;
use stoker_shared::duration;

use super::{random::Shape, scenario::Scenario};
use crate::{ModelSource, config};

const EXAMPLES: &str = "\
Examples:
  4 scenarios x 2 formats x 3 runs, of random weights that are made once:
    stoker-worker bench --csv bench.csv --json bench.json
  A model of your own, one scenario, the rows alone:
    stoker-worker bench --model ./model.gguf --scenario short --runs 1 --csv - > short.csv
  How much more do many sequences give than one?
    stoker-worker bench --sweep batch
  Does it stay as fast?
    stoker-worker bench --soak 10m --batch 8
  What does guessing ahead gain, with one sequence and with many?
    stoker-worker bench --speculate draft --sweep batch
  How long do readers wait for their next token while somebody sends 2,000 tokens?
    stoker-worker bench --long-prompt 2000
  What did each step towards int8 bring?
    stoker-worker bench --ablation
  How much sooner does an answer begin whose prompt begins like another?
    stoker-worker bench --shared-prefix 1000

Every row is measured in a process of its own, which loads its own file; peak memory is that
process's. Prompts are random tokens, always the same; the likeliest token is taken, and nothing
ends an answer early. Rows with guesses (--speculate, the last one of --ablation) tell stories, by
the bundled model made as large as --random-weights say, or by --model: greedy ones and ones at
temperature 1, with and without guesses by turns.

A row's keys, in the table, in CSV and in JSON:
  model, scenario, format,          what is measured
  quantize, device, threads, batch
  run                               which of the rows that are alike, from 1; with --soak the
                                    minute
  context                           positions that a sequence holds while it decodes, on average
  load_seconds                      from opening the file to a model that can run
  prompt_tokens, output_tokens      of all sequences of the row together
  cached_prompt_tokens              with --shared-prefix: of the prompt, what the prefix cache had
  ttft_seconds                      from a sequence's submission to its first token; the median of
                                    several
  tpot_seconds                      time per output token: the median step in which all decode;
                                    with guesses, where a step may give several, time divided by
                                    tokens
  decode_tokens_per_second          batch / tpot_seconds; with --soak what came in the minute
  prefill_tokens_per_second         prompt_tokens / the time until all had their first token; with
                                    --long-prompt that prompt's
  peak_rss_bytes                    the most memory that the row's process had
  read_rate_bytes_per_second        what all threads together read from memory, the mean of two
                                    measurements in that process: before it loads the model, and
                                    after its last step; on a GPU what a copy in its memory reads
                                    and writes
  bandwidth_utilization                   bytes that a step must read, weights once and all keys and
                                    values, times steps a second, divided by the read rate
  launches_per_step                 kernels and graphs that a GPU is told to run while all decode
  gpu_utilization, gpu_power_watts, what NVIDIA's driver says while all decode: means...
  gpu_clock_hertz,
  gpu_memory_clock_hertz
  gpu_memory_used_bytes,            ...and the most
  gpu_temperature_celsius
  long_prompt_tokens                with --long-prompt: its length
  long_prompt_ttft_seconds          from its submission to its first token
  inter_token_p50_seconds,          of 128 tokens before it: the median time between two, and
  inter_token_p99_seconds           the slowest in a hundred
  itl_under_prefill_p50_seconds,   the same while it is computed
  itl_under_prefill_p99_seconds
  itl_under_prefill_p99_ratio      p99 then by p99 before
  drafted_tokens, accepted_tokens   with guesses: how many were looked at, and how many were right
  mean_accepted_length            what a sequence got in a step of the model; in the table
                                    `tok/step`
  speedup_over_plain                times as fast as without guesses; in the table `x plain`

What does not apply is null in JSON and empty in CSV. `outside %`, in the table alone, is the
share of a step that is spent outside the model's operations.

Exit codes: 0, 1 for a failure, 2 for bad usage.";

/// `stoker-worker bench`
#[derive(Debug, Clone, Args)]
#[command(after_help = EXAMPLES)]
pub struct BenchArgs {
    /// A folder (config.json, tokenizer.json, model.safetensors), a .gguf file, or `storyteller` for the
    /// bundled model [default: random weights]
    #[arg(long, env = "STOKER_MODEL", value_name = "PATH", help_heading = "Model")]
    pub model: Option<ModelSource>,

    /// Random weights of this shape, written once into --cache in both formats
    /// [default: tinyllama-1.1b]
    #[arg(
        long,
        env = "STOKER_BENCH_RANDOM_WEIGHTS",
        conflicts_with = "model",
        value_name = "SHAPE",
        help_heading = "Model"
    )]
    pub random_weights: Option<Shape>,

    /// Where random weights are kept [default: stoker in $XDG_CACHE_HOME or ~/.cache]
    #[arg(long, env = "STOKER_CACHE", value_name = "FOLDER", help_heading = "Model")]
    pub cache: Option<PathBuf>,

    /// Formats of random weights: real files, loaded as any other
    /// [default: both; gguf for all but scenarios]
    #[arg(
        long,
        env = "STOKER_BENCH_FORMAT",
        conflicts_with = "model",
        value_delimiter = ',',
        value_name = "NAME",
        help_heading = "Model"
    )]
    pub format: Vec<Format>,

    /// Who guesses tokens ahead: measures what that gains.
    #[command(flatten)]
    pub speculation: config::SpeculationConfig,

    /// Where the model computes.
    #[command(flatten)]
    pub device: config::DeviceConfig,

    /// How weights are kept and multiplied: in 8 bits with a scale for each output, or in f32
    #[arg(
        long,
        env = "STOKER_QUANTIZE",
        default_value_t = Quantization::default(),
        value_parser = config::quantization(),
        value_name = "KIND",
        help_heading = "Model"
    )]
    pub quantize: Quantization,

    /// Scenarios to measure [default: all]
    #[arg(
        long,
        env = "STOKER_BENCH_SCENARIO",
        value_delimiter = ',',
        value_name = "NAME",
        help_heading = "What to measure"
    )]
    pub scenario: Vec<Scenario>,

    /// This many sequences that decode together, each with a context of --context
    #[arg(
        long,
        env = "STOKER_BENCH_BATCH",
        conflicts_with = "scenario",
        value_parser = clap::value_parser!(u32).range(1..=4096),
        value_name = "COUNT",
        help_heading = "What to measure"
    )]
    pub batch: Option<u32>,

    /// The same with 1, 2, 4, 8, 16, 32 and 64 sequences (up to 32 with --speculate), and the factor over one
    #[arg(
        long,
        env = "STOKER_BENCH_SWEEP",
        conflicts_with_all = ["scenario", "batch", "soak", "ablation"],
        value_name = "OF",
        help_heading = "What to measure"
    )]
    pub sweep: Option<Sweep>,

    /// Keep --batch sequences running this long, new ones in the place of those that end, and print
    /// what came each minute; a row a minute [default batch: 8]
    #[arg(
        long,
        env = "STOKER_BENCH_SOAK",
        conflicts_with_all = ["scenario", "ablation"],
        value_parser = duration::parse,
        value_name = "TIME",
        help_heading = "What to measure"
    )]
    pub soak: Option<Duration>,

    /// One row for each step that made decoding faster, with its factors: plain operations in f32, fused
    /// ones in f32, int8, int8 with 8 sequences; then one sequence for which a draft model guesses, over the
    /// same without (the bundled model, padded until it costs as much: random weights tell no stories)
    #[arg(
        long,
        env = "STOKER_BENCH_ABLATION",
        conflicts_with_all = ["scenario", "batch", "quantize"],
        help_heading = "What to measure"
    )]
    pub ablation: bool,

    /// Two prompts that begin with the same so many tokens, one after the other: how soon each has its first
    /// token, and the factor
    #[arg(
        long,
        env = "STOKER_BENCH_SHARED_PREFIX",
        conflicts_with_all = ["scenario", "batch", "sweep", "soak", "ablation", "context"],
        value_parser = clap::value_parser!(u32).range(1..),
        value_name = "TOKENS",
        help_heading = "What to measure"
    )]
    pub shared_prefix: Option<u32>,

    /// What readers notice of a prompt of so many tokens: time between the tokens of --batch sequences, undisturbed and
    /// while it is computed [default batch: 1]
    #[arg(
        long,
        env = "STOKER_BENCH_LONG_PROMPT",
        conflicts_with_all = ["scenario", "sweep", "soak", "ablation"],
        value_parser = clap::value_parser!(u32).range(1..),
        value_name = "TOKENS",
        help_heading = "What to measure"
    )]
    pub long_prompt: Option<u32>,

    /// With --long-prompt: how many times as long steps may take while it is computed
    #[arg(
        long,
        env = "STOKER_MAX_DECODE_SLOWDOWN",
        default_value_t = config::MAX_DECODE_SLOWDOWN,
        value_parser = config::slowdown,
        value_name = "FACTOR",
        help_heading = "What to measure"
    )]
    pub max_decode_slowdown: f64,

    /// Positions that every sequence holds while it decodes, for all but scenarios [default: 512]
    #[arg(
        long,
        env = "STOKER_BENCH_CONTEXT",
        conflicts_with = "scenario",
        value_parser = clap::value_parser!(u32).range(8..),
        value_name = "TOKENS",
        help_heading = "What to measure"
    )]
    pub context: Option<u32>,

    /// Rows for each case [default: 3 for scenarios, otherwise 1]
    #[arg(
        long,
        env = "STOKER_BENCH_RUNS",
        conflicts_with = "soak",
        value_parser = clap::value_parser!(u32).range(1..=1000),
        value_name = "COUNT",
        help_heading = "What to measure"
    )]
    pub runs: Option<u32>,

    /// Write the rows to this file as CSV, each as it comes; `-` prints them, and the table on standard error
    #[arg(long, env = "STOKER_BENCH_CSV", value_name = "FILE", help_heading = "Output")]
    pub csv: Option<PathBuf>,

    /// Write the rows to this file as an array of JSON objects
    #[arg(long, env = "STOKER_BENCH_JSON", value_name = "FILE", help_heading = "Output")]
    pub json: Option<PathBuf>,
}

/// What is varied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Sweep {
    /// Sequences that decode together
    Batch,
}

/// A kind of model file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// One file, matrices in Q8_0
    Gguf,
    /// A folder, weights in bf16
    Safetensors,
}

impl Format {
    /// Both.
    pub(super) const ALL: [Self; 2] = [Self::Gguf, Self::Safetensors];
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Gguf => "gguf",
            Self::Safetensors => "safetensors",
        })
    }
}

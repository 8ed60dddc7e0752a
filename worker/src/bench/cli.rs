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
  4 scenarios x 2 formats x 3 runs, with random weights that are generated once:
    stoker-worker bench --csv bench.csv --json bench.json
  One scenario with a given model, only the rows:
    stoker-worker bench --model ./model.gguf --scenario short --runs 1 --csv - > short.csv
  Throughput by batch size:
    stoker-worker bench --sweep batch
  Sustained throughput:
    stoker-worker bench --soak 10m --batch 8
  Gain of speculative decoding by batch size:
    stoker-worker bench --speculate draft --sweep batch
  Inter-token latency while a prompt of 2,000 tokens is computed:
    stoker-worker bench --long-prompt 2000
  Gain of each optimization, from unfused f32 to int8:
    stoker-worker bench --ablation
  Time to first token of a prompt whose prefix is cached:
    stoker-worker bench --shared-prefix 1000

Each job runs in its own process, which loads the model file; peak memory is that process's.
Prompts are random tokens, the same in every run. Sampling is greedy, and end-of-sequence tokens are
ignored. Rows with speculative decoding (--speculate, the last one of --ablation) decode stories
with the bundled model, padded to the size of --random-weights, or with --model: greedy and at
temperature 1. Steps with and without speculative decoding alternate.

A row's keys, in the table, in CSV and in JSON:
  model, scenario, format,          what is measured
  quantize, device, threads, batch
  run                               number of the repetition, from 1; with --soak the minute
  context                           average context length of a sequence while it decodes
  load_seconds                      from opening the file until the model can run
  prompt_tokens, output_tokens      of all sequences of the row
  cached_prompt_tokens              with --shared-prefix: prompt tokens found in the prefix cache
  ttft_seconds                      time to first token from submission, median over sequences
  tpot_seconds                      time per output token: the median step in which all sequences
                                    decode; with speculative decoding, where a step may yield
                                    several tokens, time divided by tokens
  decode_tokens_per_second          batch / tpot_seconds; with --soak the mean over the minute
  prefill_tokens_per_second         prompt_tokens / the time until all sequences had their first
                                    token; with --long-prompt that prompt's
  peak_rss_bytes                    peak resident memory of the row's process
  read_rate_bytes_per_second        memory read rate of all threads, the mean of two measurements in
                                    that process: before it loads the model, and after its last
                                    step; on a GPU the bytes that a copy in its memory reads and
                                    writes
  bandwidth_utilization             bytes that a step must read (weights once, all keys and values)
                                    times steps per second, divided by the read rate
  launches_per_step                 kernel and graph launches of a GPU per decode step
  gpu_utilization, gpu_power_watts, readings of the NVIDIA driver while all sequences decode: means
  gpu_clock_hertz,
  gpu_memory_clock_hertz
  gpu_memory_used_bytes,            the same: maximums
  gpu_temperature_celsius
  long_prompt_tokens                with --long-prompt: its length
  long_prompt_ttft_seconds          its time to first token
  inter_token_p50_seconds,          inter-token latency over 128 tokens before it: median and
  inter_token_p99_seconds           99th percentile
  itl_under_prefill_p50_seconds,    the same while it is computed
  itl_under_prefill_p99_seconds
  itl_under_prefill_p99_ratio       itl_under_prefill_p99_seconds / inter_token_p99_seconds
  drafted_tokens, accepted_tokens   with speculative decoding: drafted tokens, and those accepted
  mean_accepted_length              mean tokens of a sequence per step of the model; in the table
                                    `tok/step`
  speedup_over_plain                speedup over decoding without it; in the table `x plain`

A value that does not apply is null in JSON and empty in CSV. `overhead %`, in the table only, is
the share of a step spent outside the model's operations.

Exit codes: 0, 1 for a failure, 2 for bad usage.";

/// `stoker-worker bench`
#[derive(Debug, Clone, Args)]
#[command(after_help = EXAMPLES)]
pub struct BenchArgs {
    /// A folder (config.json, tokenizer.json, model.safetensors), a .gguf file, or `storyteller`
    /// for the bundled model [default: random weights]
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

    /// Folder for generated weights [default: stoker in $XDG_CACHE_HOME or ~/.cache]
    #[arg(long, env = "STOKER_CACHE", value_name = "FOLDER", help_heading = "Model")]
    pub cache: Option<PathBuf>,

    /// File formats of random weights [default: both for scenarios, otherwise gguf]
    #[arg(
        long,
        env = "STOKER_BENCH_FORMAT",
        conflicts_with = "model",
        value_delimiter = ',',
        value_name = "NAME",
        help_heading = "Model"
    )]
    pub format: Vec<Format>,

    /// Speculative decoding; measures its gain.
    #[command(flatten)]
    pub speculation: config::SpeculationConfig,

    /// Device to run the model on.
    #[command(flatten)]
    pub device: config::DeviceConfig,

    /// Quantization of weights and products: 8 bits with a scale per output channel, or f32
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

    /// Number of sequences that decode together, each with a context of --context
    #[arg(
        long,
        env = "STOKER_BENCH_BATCH",
        conflicts_with = "scenario",
        value_parser = clap::value_parser!(u32).range(1..=4096),
        value_name = "COUNT",
        help_heading = "What to measure"
    )]
    pub batch: Option<u32>,

    /// Measure batches of 1, 2, 4, 8, 16, 32 and 64 sequences (up to 32 with --speculate), with the
    /// speedup over one sequence
    #[arg(
        long,
        env = "STOKER_BENCH_SWEEP",
        conflicts_with_all = ["scenario", "batch", "soak", "ablation"],
        value_name = "OF",
        help_heading = "What to measure"
    )]
    pub sweep: Option<Sweep>,

    /// Keep --batch sequences running for this time, replacing those that finish, and print the
    /// throughput of each minute; one row per minute [default batch: 8]
    #[arg(
        long,
        env = "STOKER_BENCH_SOAK",
        conflicts_with_all = ["scenario", "ablation"],
        value_parser = duration::parse,
        value_name = "TIME",
        help_heading = "What to measure"
    )]
    pub soak: Option<Duration>,

    /// One row per optimization of decoding, with its speedups: unfused operations in f32, fused
    /// ones in f32, int8, int8 with 8 sequences; then one sequence with a draft model, compared
    /// with the same without it (the bundled model, padded to the same size: random weights
    /// generate no predictable text)
    #[arg(
        long,
        env = "STOKER_BENCH_ABLATION",
        conflicts_with_all = ["scenario", "batch", "quantize"],
        help_heading = "What to measure"
    )]
    pub ablation: bool,

    /// Run two prompts that share a prefix of this many tokens, one after the other: time to first
    /// token of each, and the speedup
    #[arg(
        long,
        env = "STOKER_BENCH_SHARED_PREFIX",
        conflicts_with_all = ["scenario", "batch", "sweep", "soak", "ablation", "context"],
        value_parser = clap::value_parser!(u32).range(1..),
        value_name = "TOKENS",
        help_heading = "What to measure"
    )]
    pub shared_prefix: Option<u32>,

    /// Measure the effect of a prompt of this many tokens on --batch decoding sequences:
    /// inter-token latency before and while it is computed [default batch: 1]
    #[arg(
        long,
        env = "STOKER_BENCH_LONG_PROMPT",
        conflicts_with_all = ["scenario", "sweep", "soak", "ablation"],
        value_parser = clap::value_parser!(u32).range(1..),
        value_name = "TOKENS",
        help_heading = "What to measure"
    )]
    pub long_prompt: Option<u32>,

    /// With --long-prompt: maximum factor by which decode steps may slow down while it is computed
    #[arg(
        long,
        env = "STOKER_MAX_DECODE_SLOWDOWN",
        default_value_t = config::MAX_DECODE_SLOWDOWN,
        value_parser = config::slowdown,
        value_name = "FACTOR",
        help_heading = "What to measure"
    )]
    pub max_decode_slowdown: f64,

    /// Average context length of every sequence while it decodes; not for scenarios [default: 512]
    #[arg(
        long,
        env = "STOKER_BENCH_CONTEXT",
        conflicts_with = "scenario",
        value_parser = clap::value_parser!(u32).range(8..),
        value_name = "TOKENS",
        help_heading = "What to measure"
    )]
    pub context: Option<u32>,

    /// Runs of each case [default: 3 for scenarios, otherwise 1]
    #[arg(
        long,
        env = "STOKER_BENCH_RUNS",
        conflicts_with = "soak",
        value_parser = clap::value_parser!(u32).range(1..=1000),
        value_name = "COUNT",
        help_heading = "What to measure"
    )]
    pub runs: Option<u32>,

    /// Write the rows to this file as CSV, each as soon as it is measured; `-` writes them to
    /// standard output and the table to standard error
    #[arg(long, env = "STOKER_BENCH_CSV", value_name = "FILE", help_heading = "Output")]
    pub csv: Option<PathBuf>,

    /// Write the rows to this file as an array of JSON objects
    #[arg(long, env = "STOKER_BENCH_JSON", value_name = "FILE", help_heading = "Output")]
    pub json: Option<PathBuf>,
}

/// The parameter that is varied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Sweep {
    /// Number of sequences that decode together
    Batch,
}

/// A format of model files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// One file, matrices in Q8_0
    Gguf,
    /// A folder, weights in bf16
    Safetensors,
}

impl Format {
    /// All formats.
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

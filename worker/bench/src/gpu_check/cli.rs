//! The command line of `gpu-check`.

use std::path::PathBuf;

use clap::Args;
use stoker_loader::config::DeviceConfig;

use crate::models::Shape;

const EXAMPLES: &str = "\
Examples:
  All checks on the first GPU, report in ./gpu-check:
    stoker-worker gpu-check --device cuda
  A quick run on the CPU, about a minute:
    stoker-worker gpu-check --device cpu --random-weights tiny

Nothing is downloaded: correctness is checked with the bundled model, speed is measured with random
weights generated here. Writes report.md, which is also printed, and report.json after each stage.
Rows with `launched` run without graphs. On a device without graphs or tensor cores, rows with and
without them measure the same.

Exit codes: 0 if all checks pass, 1 if a check fails, 2 for bad usage or an unusable device.";

/// `stoker-worker gpu-check`
#[derive(Debug, Clone, Args)]
#[command(after_help = EXAMPLES)]
pub struct GpuCheckArgs {
    /// Device to run the model on.
    #[command(flatten)]
    pub device: DeviceConfig,

    /// Folder for the report; created if it does not exist
    #[arg(
        long,
        env = "STOKER_GPU_CHECK_OUT",
        default_value = "gpu-check",
        value_name = "FOLDER",
        help_heading = "Output"
    )]
    pub out: PathBuf,

    /// Measure random weights of this shape, written once into --cache
    #[arg(
        long,
        env = "STOKER_BENCH_RANDOM_WEIGHTS",
        default_value = "tinyllama-1.1b",
        value_name = "SHAPE",
        help_heading = "What to measure"
    )]
    pub random_weights: Shape,

    /// Folder for generated weights [default: stoker in $XDG_CACHE_HOME or ~/.cache]
    #[arg(long, env = "STOKER_CACHE", value_name = "FOLDER", help_heading = "What to measure")]
    pub cache: Option<PathBuf>,

    /// Average context length of every sequence while it decodes
    #[arg(
        long,
        env = "STOKER_BENCH_CONTEXT",
        default_value_t = 512,
        value_parser = clap::value_parser!(u32).range(128..=1536),
        value_name = "TOKENS",
        help_heading = "What to measure"
    )]
    pub context: u32,
}

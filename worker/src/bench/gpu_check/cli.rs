//! The command line of `gpu-check`.

use std::path::PathBuf;

use clap::Args;

use crate::{bench::random::Shape, config::DeviceConfig};

const EXAMPLES: &str = "\
Examples:
  Everything, on the first GPU, into ./gpu-check:
    stoker-worker gpu-check --device cuda
  Does the command work here, on the CPU and in a minute?
    stoker-worker gpu-check --device cpu --random-weights tiny

Nothing is downloaded: the model that is checked is part of this program, the one that is measured is made here.
Writes report.md, which is printed too, and report.json, again after each stage. Rows that are `launched` do without
graphs; where a device has no graphs or no tensor cores, rows with and without them are alike.

Exit codes: 0 if all is right, 1 if a check fails, 2 for bad usage and for a device that cannot be used.";

/// `stoker-worker gpu-check`
#[derive(Debug, Clone, Args)]
#[command(after_help = EXAMPLES)]
pub struct GpuCheckArgs {
    /// Where the model computes.
    #[command(flatten)]
    pub device: DeviceConfig,

    /// Where the report goes, a folder that is made if it is not there
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

    /// Where random weights are kept [default: stoker in $XDG_CACHE_HOME or ~/.cache]
    #[arg(long, env = "STOKER_CACHE", value_name = "FOLDER", help_heading = "What to measure")]
    pub cache: Option<PathBuf>,

    /// Positions that every sequence holds while it decodes
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

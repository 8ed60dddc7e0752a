//! The command line of `bench`.

use std::path::PathBuf;

use clap::Args;
use stoker_loader::{ModelSource, config::DeviceConfig};

use super::help;
use crate::{
    models::{Format, Shape},
    workloads::{Options, Workloads},
};

/// `stoker-worker bench`
#[derive(Debug, Clone, Args)]
#[command(after_help = help::text())]
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

    /// Device to run the model on.
    #[command(flatten)]
    pub device: DeviceConfig,

    /// What several workloads have in common.
    #[command(flatten)]
    pub(crate) options: Options,

    /// What to measure.
    #[command(flatten)]
    pub(crate) workloads: Workloads,

    /// Write the rows to this file as CSV, each as soon as it is measured; `-` writes them to
    /// standard output and the table to standard error
    #[arg(long, env = "STOKER_BENCH_CSV", value_name = "FILE", help_heading = "Output")]
    pub csv: Option<PathBuf>,

    /// Write the rows to this file as an array of JSON objects
    #[arg(long, env = "STOKER_BENCH_JSON", value_name = "FILE", help_heading = "Output")]
    pub json: Option<PathBuf>,
}

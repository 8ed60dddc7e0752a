//! The command line of `roofline`.

use std::path::PathBuf;

use clap::{Args, ValueEnum, builder::PossibleValuesParser};
use stoker_engine::shapes;
use stoker_loader::ModelSource;
use stoker_shared::config;

const EXAMPLES: &str = "\
Examples:
  stoker-worker roofline
  stoker-worker roofline --shape llama-3-8b --hardware h200
  stoker-worker bench --json bench.json && stoker-worker roofline --last bench.json

A decode step reads all weights once and the keys and values of every sequence, and multiplies every
weight once per sequence. Memory bandwidth and arithmetic each limit the steps per second; the lower
limit is the ceiling. Keys and values are f32 with f32 weights, otherwise 16 bits. Attention is
computed in bf16 if the weights are bf16, int8 or int4 and the hardware's bf16 rate is known,
otherwise in f32. Caches, launches and all operations but products are ignored, so measured rates
stay below the ceiling.

`measured` measures this machine, which takes some seconds. Figures of other hardware are the
vendor's, without sparsity. An unknown limit is shown as `-`; the ceiling is then the other limit.

Exit codes: 0, 1 for a failure, 2 for bad usage.";

/// `stoker-worker roofline`
#[derive(Debug, Clone, Args)]
#[command(after_help = EXAMPLES)]
pub struct RooflineArgs {
    /// A folder (config.json, tokenizer.json, model.safetensors), a .gguf file, or `storyteller`
    /// for the bundled model; only its shape is read
    #[arg(long, env = "STOKER_MODEL", value_name = "PATH")]
    pub model: Option<ModelSource>,

    /// Shape of a known model; no files are needed
    #[arg(
        long,
        env = "STOKER_ROOFLINE_SHAPE",
        default_value = shapes::NAMES[0],
        value_parser = PossibleValuesParser::new(shapes::NAMES),
        conflicts_with = "model",
        value_name = "NAME"
    )]
    pub shape: String,

    /// This machine, or hardware with known figures
    #[arg(
        long,
        env = "STOKER_ROOFLINE_HARDWARE",
        default_value = "measured",
        value_enum,
        value_name = "NAME"
    )]
    pub hardware: HardwareName,

    /// Context length of every sequence [default: 512, or the model's context if that is less]
    #[arg(long, env = "STOKER_ROOFLINE_CONTEXT", value_name = "TOKENS")]
    pub context: Option<u64>,

    /// Results of `bench --json`, to compare with the ceiling for their batch and context
    #[arg(long, env = "STOKER_ROOFLINE_LAST", value_name = "FILE")]
    pub last: Option<PathBuf>,

    /// Write the report to this file as a JSON object
    #[arg(long, env = "STOKER_ROOFLINE_JSON", value_name = "FILE")]
    pub json: Option<PathBuf>,
}

impl Default for RooflineArgs {
    fn default() -> Self {
        config::defaults()
    }
}

/// The hardware to compute ceilings for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum HardwareName {
    /// This machine, measured now
    Measured,
    /// NVIDIA GeForce RTX 4090
    #[value(name = "rtx-4090")]
    Rtx4090,
    /// NVIDIA H100 SXM
    H100,
    /// NVIDIA H200 SXM
    H200,
    /// Apple M3 Max with 40 GPU cores
    #[value(name = "m3-max")]
    M3Max,
}

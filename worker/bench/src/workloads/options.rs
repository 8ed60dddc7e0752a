//! The flags that several workloads have in common.

use clap::{Args, ValueEnum};
use stoker_engine::model::Quantization;
use stoker_loader::config;

use crate::{Error, models::Target};

/// Default of `--context`.
const CONTEXT: usize = 512;

/// The flags that several workloads have in common.
#[derive(Debug, Clone, Args)]
pub(crate) struct Options {
    /// Quantization of weights and products: 8 bits with a scale per output channel; 4 bits, with
    /// embedding and head in 8; or f32
    #[arg(
        long,
        env = "STOKER_QUANTIZE",
        default_value_t = Quantization::default(),
        value_parser = config::quantization(),
        value_name = "KIND",
        help_heading = "Model"
    )]
    pub(crate) quantize: Quantization,

    /// Number of sequences that decode together, each with a context of --context
    #[arg(
        long,
        env = "STOKER_BENCH_BATCH",
        value_parser = clap::value_parser!(u32).range(1..=4096),
        value_name = "COUNT",
        help_heading = "What to measure"
    )]
    pub(crate) batch: Option<u32>,

    /// Measure batches of 1, 2, 4, 8, 16, 32 and 64 sequences (up to 32 with --speculate), with the
    /// speedup over one sequence
    #[arg(
        long,
        env = "STOKER_BENCH_SWEEP",
        conflicts_with = "batch",
        value_name = "OF",
        help_heading = "What to measure"
    )]
    pub(crate) sweep: Option<Sweep>,

    /// One row per optimization of decoding, with its speedups: unfused operations in f32, fused
    /// ones in f32, int8, int8 with 8 sequences; then one sequence with a draft model, compared
    /// with the same without it (the bundled model, padded to the same size: random weights
    /// generate no predictable text)
    #[arg(
        long,
        env = "STOKER_BENCH_ABLATION",
        group = "workload",
        conflicts_with_all = ["batch", "sweep", "quantize"],
        help_heading = "What to measure"
    )]
    pub(crate) ablation: bool,

    /// Average context length of every sequence while it decodes; not for scenarios [default: 512]
    #[arg(
        long,
        env = "STOKER_BENCH_CONTEXT",
        value_parser = clap::value_parser!(u32).range(8..),
        value_name = "TOKENS",
        help_heading = "What to measure"
    )]
    pub(crate) context: Option<u32>,

    /// Runs of each case [default: 3 for scenarios, otherwise 1]
    #[arg(
        long,
        env = "STOKER_BENCH_RUNS",
        value_parser = clap::value_parser!(u32).range(1..=1000),
        value_name = "COUNT",
        help_heading = "What to measure"
    )]
    pub(crate) runs: Option<u32>,
}

/// The parameter that is varied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Sweep {
    /// Number of sequences that decode together
    Batch,
}

impl Options {
    /// Returns `--context`, or its default.
    pub(super) fn context(&self) -> usize {
        self.context.map_or(CONTEXT, |tokens| tokens as usize)
    }

    /// Returns `--batch`, or `default`.
    pub(super) fn batch_or(&self, default: usize) -> usize {
        self.batch.map_or(default, |count| count as usize)
    }
}

/// Rejects a context in which sequences of `longest` tokens exceed that of the model.
pub(super) fn check_context(target: &Target, context: usize, longest: usize) -> Result<(), Error> {
    let limit = target.config.context_length;
    if longest <= limit {
        return Ok(());
    }
    Err(Error::Usage(format!(
        "--context {context} needs sequences of {longest} tokens, above {limit}, the context of {}; \
         lower it",
        target.name
    )))
}

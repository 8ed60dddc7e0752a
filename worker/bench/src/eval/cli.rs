//! The command line of `eval`.

use std::{num::NonZeroUsize, path::PathBuf};

use clap::Args;
use stoker_engine::model::Quantization;
use stoker_loader::{
    ModelSource,
    config::{DeviceConfig, quantization},
};
use stoker_shared::{config, count};

const EXAMPLES: &str = "\
Examples:
  stoker-worker eval
  stoker-worker eval --model ./TinyLlama-1.1B --text held-out.txt --max-tokens 20000
  stoker-worker eval --quantize int8 --json eval.json

A text longer than a window is cut into windows that do not overlap. Each starts with the BOS token,
if the model has one, and does not attend to earlier windows. Every token but the first of a window
is scored. The default text of the bundled model is its held-out stories, each with its end token.

Difference, same top token and mean |logit difference| are relative to f32 (none) if it is measured
too, otherwise to the first quantization.

Exit codes: 0, 1 for a failure, 2 for bad usage.";

/// `stoker-worker eval`
#[derive(Debug, Clone, Args)]
#[command(after_help = EXAMPLES)]
pub struct EvalArgs {
    /// A folder (config.json, tokenizer.json, model.safetensors), a .gguf file, or `storyteller`
    /// for the bundled model
    #[arg(long, env = "STOKER_MODEL", default_value = "storyteller", value_name = "PATH")]
    pub model: ModelSource,

    /// Device to run the model on.
    #[command(flatten)]
    pub device: DeviceConfig,

    /// The text, in UTF-8 [default for the bundled model: stories that it was not trained on]
    #[arg(long, env = "STOKER_EVAL_TEXT", value_name = "FILE")]
    pub text: Option<PathBuf>,

    /// Quantizations to compare, one or several [default: all]
    #[arg(
        long,
        env = "STOKER_EVAL_QUANTIZE",
        value_parser = quantization(),
        value_delimiter = ',',
        value_name = "KIND"
    )]
    pub quantize: Vec<Quantization>,

    /// Maximum number of tokens to score, from the start of the text [default: all]
    #[arg(long, value_parser = count::parse::<NonZeroUsize>, env = "STOKER_EVAL_MAX_TOKENS", value_name = "TOKENS")]
    pub max_tokens: Option<NonZeroUsize>,

    /// Window length in tokens [default: the model's context, at most 2048]
    #[arg(long, env = "STOKER_EVAL_WINDOW", value_name = "TOKENS")]
    pub window: Option<usize>,

    /// Write the results to this file as an array of JSON objects, one per quantization
    #[arg(long, env = "STOKER_EVAL_JSON", value_name = "FILE")]
    pub json: Option<PathBuf>,
}

impl Default for EvalArgs {
    fn default() -> Self {
        config::defaults()
    }
}

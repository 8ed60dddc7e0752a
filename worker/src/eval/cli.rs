//! The command line of `eval`.

use std::{num::NonZeroUsize, path::PathBuf};

use clap::Args;
use stoker_engine::model::Quantization;

use crate::{ModelSource, config};

const EXAMPLES: &str = "\
Examples:
  stoker-worker eval
  stoker-worker eval --model ./TinyLlama-1.1B --text held-out.txt --max-tokens 20000
  stoker-worker eval --quantize int8 --json eval.json

A text longer than a window is cut into windows that do not overlap. Each begins with the token that begins
a text, where the model has one, and sees nothing of those before it. Every token but the first of a window
is scored. Of the bundled model it is each held-out story with the token that ends it.

Difference, same top token and mean |logit difference| are against f32 (none) where that is measured too,
otherwise against the first kind.

Exit codes: 0, 1 for a failure, 2 for bad usage.";

/// `stoker-worker eval`
#[derive(Debug, Clone, Args)]
#[command(after_help = EXAMPLES)]
pub struct EvalArgs {
    /// A folder (config.json, tokenizer.json, model.safetensors), a .gguf file, or `storyteller` for the
    /// bundled model
    #[arg(long, env = "STOKER_MODEL", default_value = "storyteller", value_name = "PATH")]
    pub model: ModelSource,

    /// Where the model computes.
    #[command(flatten)]
    pub device: config::DeviceConfig,

    /// The text, in UTF-8 [default for the bundled model: stories that it has not learned from]
    #[arg(long, env = "STOKER_EVAL_TEXT", value_name = "FILE")]
    pub text: Option<PathBuf>,

    /// How weights are kept and multiplied; one or several, compared side by side [default: every kind]
    #[arg(
        long,
        env = "STOKER_EVAL_QUANTIZE",
        value_parser = config::quantization(),
        value_delimiter = ',',
        value_name = "KIND"
    )]
    pub quantize: Vec<Quantization>,

    /// Score so many tokens at most, the first of the text [default: all]
    #[arg(long, env = "STOKER_EVAL_MAX_TOKENS", value_name = "TOKENS")]
    pub max_tokens: Option<NonZeroUsize>,

    /// Positions of a window [default: the model's context, at most 2048]
    #[arg(long, env = "STOKER_EVAL_WINDOW", value_name = "TOKENS")]
    pub window: Option<usize>,

    /// Write what is measured to this file as an array of JSON objects, one for each kind
    #[arg(long, env = "STOKER_EVAL_JSON", value_name = "FILE")]
    pub json: Option<PathBuf>,
}

impl Default for EvalArgs {
    /// The bundled model on its held-out stories, in every kind.
    fn default() -> Self {
        Self {
            model: ModelSource::Bundled,
            device: config::DeviceConfig::default(),
            text: None,
            quantize: Vec::new(),
            max_tokens: None,
            window: None,
            json: None,
        }
    }
}

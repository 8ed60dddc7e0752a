//! The command line.

use std::path::PathBuf;

use clap::{Parser, Subcommand};

/// Makes the story model that is bundled with Stoker: generates its corpus, trains its tokenizer,
/// trains the model and its draft model with burn on the CPU, and evaluates them.
#[derive(Debug, Parser)]
#[command(name = "storyteller", version, arg_required_else_help = true)]
#[command(after_help = "Examples:\n  \
    storyteller corpus --count 3             three stories of the training corpus\n  \
    storyteller sample --count 4             four stories by the model\n  \
    storyteller sample \"Once upon a time, there was a small owl\"\n  \
    storyteller evaluate                     perplexity, compared with unigrams and 5-grams\n  \
    storyteller train --quick --out /tmp/m   a test model, in about two minutes\n  \
    storyteller train                        the bundled model, in about an hour on two cores")]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Print stories of the training corpus.
    Corpus {
        /// Number of stories.
        #[arg(long, default_value_t = 5)]
        count: u64,
        /// Seed of the corpus: 1 for training stories, 2 for held-out stories.
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
    /// Train the tokenizer, the model and its draft model, then evaluate them.
    Train {
        /// Output folder, in which the folders `model` and `draft` are written.
        #[arg(long, default_value = env!("CARGO_MANIFEST_DIR"))]
        out: PathBuf,
        /// Folder for the checkpoints from which an interrupted run resumes.
        #[arg(long, default_value = "target/storyteller")]
        work: PathBuf,
        /// Train for a minute or two only, to test the whole pipeline: not a good model.
        #[arg(long)]
        quick: bool,
        /// Train only one of the two models, and skip the evaluation.
        #[arg(long, value_parser = ["model", "draft"])]
        only: Option<String>,
    },
    /// Generate stories with the model.
    Sample {
        /// Prompt with which the stories start.
        #[arg(default_value = "Once upon a time")]
        prompt: String,
        /// Number of stories.
        #[arg(long, default_value_t = 3)]
        count: usize,
        /// Sampling temperature: 0 always takes the most likely token, higher values vary more.
        #[arg(long, default_value_t = 0.8)]
        temperature: f64,
        /// Sampling seed: the same seed generates the same stories.
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// Maximum length of a story, in tokens.
        #[arg(long, default_value_t = 400)]
        longest: usize,
        /// Folder of the model.
        #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/model"))]
        model: PathBuf,
    },
    /// Measure perplexity on held-out stories, compared with unigrams and 5-grams.
    Evaluate {
        /// Folder that contains the folders `model` and `draft`.
        #[arg(long, default_value = env!("CARGO_MANIFEST_DIR"))]
        models: PathBuf,
        /// Number of held-out stories.
        #[arg(long, default_value_t = storyteller::corpus::HELD_OUT_STORIES)]
        count: u64,
    },
}

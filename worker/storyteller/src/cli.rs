//! What the command line understands.

use std::path::PathBuf;

use clap::{Parser, Subcommand};

/// Makes the story model that comes with Stoker: writes its corpus, learns its tokenizer, trains the model
/// and its draft with burn on the CPU, and measures them.
#[derive(Debug, Parser)]
#[command(name = "storyteller", version, arg_required_else_help = true)]
#[command(after_help = "Examples:\n  \
    storyteller corpus --count 3             three stories of the training corpus\n  \
    storyteller sample --count 4             four stories by the model\n  \
    storyteller sample \"Once upon a time, there was a small owl\"\n  \
    storyteller evaluate                     perplexity beside unigrams and 5-grams\n  \
    storyteller train --quick --out /tmp/m   a model of two minutes, to see it work\n  \
    storyteller train                        the bundled model again, in about an hour on two cores")]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Print stories of the training corpus.
    Corpus {
        /// How many.
        #[arg(long, default_value_t = 5)]
        count: u64,
        /// Which stories: 1 are those to learn from, 2 those held out.
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
    /// Make the tokenizer, the model and its draft again, then evaluate them.
    Train {
        /// Where the folders `model` and `draft` go.
        #[arg(long, default_value = env!("CARGO_MANIFEST_DIR"))]
        out: PathBuf,
        /// Where an interrupted run keeps what it needs to go on.
        #[arg(long, default_value = "target/storyteller")]
        work: PathBuf,
        /// Train for a minute or two only: not a good model, but the whole way.
        #[arg(long)]
        quick: bool,
        /// Make one of the two only, and skip the evaluation.
        #[arg(long, value_parser = ["model", "draft"])]
        only: Option<String>,
    },
    /// Let the model write stories.
    Sample {
        /// How the stories begin.
        #[arg(default_value = "Once upon a time")]
        prompt: String,
        /// How many.
        #[arg(long, default_value_t = 3)]
        count: usize,
        /// 0 always takes the likeliest token; towards 1 the stories grow stranger.
        #[arg(long, default_value_t = 0.8)]
        temperature: f64,
        /// The same seed writes the same stories.
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// Cut a story that does not end after this many tokens.
        #[arg(long, default_value_t = 400)]
        longest: usize,
        /// The folder of the model.
        #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/model"))]
        model: PathBuf,
    },
    /// Measure perplexity on held-out stories, beside unigrams and 5-grams.
    Evaluate {
        /// Where the folders `model` and `draft` are.
        #[arg(long, default_value = env!("CARGO_MANIFEST_DIR"))]
        models: PathBuf,
        /// Number of held-out stories.
        #[arg(long, default_value_t = storyteller::corpus::HELD_OUT_STORIES)]
        count: u64,
    },
}

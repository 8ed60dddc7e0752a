//! The command line.

use clap::{Args, Parser, Subcommand};
use stoker_shared::{VERSION, client::Address, serve::ListenAddress, telemetry::LogArgs};
use stoker_worker::{ModelSource, WorkerConfig, config::ComputeConfig};

const EXAMPLES: &str = "\
Examples:
  stoker generate \"Once upon a time\"
  stoker generate \"Tom wanted a kite\" --max-tokens 80 --temperature 0 --json
  stoker serve --listen 127.0.0.1:50051
  stoker generate \"Once upon a time\" --endpoint 127.0.0.1:50051

Exit codes: 0, 1 for a failed request, 2 for bad usage.";

/// A language model cluster in one process: a router, its workers, and a way to talk to them
#[derive(Debug, Parser)]
#[command(name = "stoker", version = VERSION, after_help = EXAMPLES)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,

    /// How to log.
    #[command(flatten)]
    pub log: LogArgs,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Stream the text that follows a prompt
    Generate(GenerateArgs),
    /// Keep a cluster up until SIGTERM or Ctrl-C
    Serve(ServeArgs),
}

/// The cluster to start.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Cluster")]
pub struct ClusterArgs {
    /// A folder (config.json, tokenizer.json, model.safetensors), a .gguf file, or `storyteller` for the
    /// bundled model
    #[arg(long, env = "STOKER_MODEL", default_value = "storyteller", value_name = "PATH")]
    pub model: ModelSource,

    /// Workers behind the router; they share one copy of the weights
    #[arg(
        long,
        env = "STOKER_NUM_WORKERS",
        default_value_t = 2,
        value_parser = clap::value_parser!(u16).range(1..=64),
        value_name = "COUNT"
    )]
    pub num_workers: u16,
}

/// `stoker generate`
#[derive(Debug, Args)]
pub struct GenerateArgs {
    /// The beginning of the text
    pub prompt: String,

    /// New tokens at most
    #[arg(long, env = "STOKER_MAX_TOKENS", default_value_t = 400, value_name = "TOKENS")]
    pub max_tokens: u32,

    /// 0 always takes the likeliest token; more makes for more surprises
    #[arg(long, env = "STOKER_TEMPERATURE", default_value_t = 0.5, value_name = "NUMBER")]
    pub temperature: f32,

    /// The same seed gives the same text again [default: another one each time]
    #[arg(long, env = "STOKER_SEED", value_name = "NUMBER")]
    pub seed: Option<u64>,

    /// End before this text; may be given several times
    #[arg(long, env = "STOKER_STOP", value_name = "TEXT")]
    pub stop: Vec<String>,

    /// One JSON object a line: each piece of text, then the outcome
    #[arg(long, env = "STOKER_JSON")]
    pub json: bool,

    /// So many continuations of the prompt, which is computed once; needs --json, which says whose each piece is
    #[arg(long, env = "STOKER_NUM_SEQUENCES", value_name = "COUNT", requires = "json")]
    pub num_sequences: Option<u32>,

    /// Log probabilities of new tokens, and of so many likeliest ones beside each; needs --json
    #[arg(long, env = "STOKER_LOGPROBS", value_name = "COUNT", requires = "json")]
    pub logprobs: Option<u32>,

    /// Use a cluster that is already up, at this address
    #[arg(
        long,
        env = "STOKER_ENDPOINT",
        value_name = "ADDR",
        conflicts_with_all = [
            "model", "num_workers", "device", "disable_gpu_feature", "quantize", "threads", "load_timings", "speculate",
            "draft_model", "num_speculative_tokens"
        ]
    )]
    pub endpoint: Option<Address>,

    /// The cluster to start otherwise.
    #[command(flatten)]
    pub cluster: ClusterArgs,

    /// How its model computes.
    #[command(flatten)]
    pub compute: ComputeConfig,
}

/// `stoker serve`
#[derive(Debug, Args)]
pub struct ServeArgs {
    /// Where to listen: HOST:PORT, or :PORT for every interface; port 0 takes any free one
    #[arg(long, env = "STOKER_LISTEN", default_value = "127.0.0.1:50051", value_name = "ADDR")]
    pub listen: ListenAddress,

    /// The cluster to start.
    #[command(flatten)]
    pub cluster: ClusterArgs,

    /// How its workers work.
    #[command(flatten)]
    pub worker: WorkerConfig,
}

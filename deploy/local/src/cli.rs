//! The command line.

use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use stoker_router::{ModelAlias, RequestLogConfig, TenantArgs};
use stoker_shared::{
    VERSION,
    client::{Address, Credentials},
    duration,
    serve::ListenAddress,
    telemetry::{ExportArgs, LogArgs},
    tls::ServerTlsArgs,
};
use stoker_worker::{ModelSource, WorkerConfig, config::ComputeConfig};

use crate::keys::KeysCommand;

const EXAMPLES: &str = "\
Examples:
  stoker generate \"Once upon a time\"
  stoker generate \"Tom wanted a kite\" --max-tokens 80 --temperature 0 --json
  stoker chat
  stoker chat --system \"Be brief.\" --endpoint 127.0.0.1:50051
  stoker serve --listen 127.0.0.1:50051
  stoker generate \"Once upon a time\" --endpoint 127.0.0.1:50051
  stoker status --endpoint 127.0.0.1:9051
  stoker top --endpoint 127.0.0.1:9051
  stoker trace --endpoint 127.0.0.1:9051 --slower-than 5s
  stoker trace REQUEST_ID --endpoint 127.0.0.1:9051
  stoker drain worker-0:50052 --endpoint 127.0.0.1:9051 --timeout 5m
  stoker keys create --tenant acme --file keys.toml
  stoker generate \"Once\" --endpoint https://router:50051 --tls-ca ca.crt --api-key-file acme.key

Exit codes: 0, 1 for a failed request, 2 for bad usage.";

/// Shortest time between two samples of `stoker top`.
const MIN_INTERVAL: Duration = Duration::from_millis(100);

/// An LLM inference cluster in one process: a router, its workers, and a client
#[derive(Debug, Parser)]
#[command(name = "stoker", version = VERSION, after_help = EXAMPLES)]
pub struct Cli {
    /// The subcommand.
    #[command(subcommand)]
    pub command: Command,

    /// Options for logs.
    #[command(flatten)]
    pub log: LogArgs,
}

/// Subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Stream the completion of a prompt
    Generate(Box<GenerateArgs>),
    /// Converse with a model
    ///
    /// A line is a message, and the response is streamed. /system TEXT sets the system message, /new
    /// begins anew, /save FILE writes the messages as JSON, /quit or Ctrl-D ends. Ctrl-C stops a
    /// response. From a pipe, each line is a message, and the exit code is 1 if one has no response.
    Chat(Box<ChatArgs>),
    /// Run a cluster until SIGTERM or Ctrl-C
    Serve(Box<ServeArgs>),
    /// Show the workers of a router: models, load, health, versions
    Status(StatusArgs),
    /// Show where the time of a request went, or list the recent requests of all routers
    ///
    /// Routers remember the requests that run and the last ones that ended (--recent-requests of
    /// the router): stages, attempts and what the worker measured, without prompts and responses.
    /// A name in --endpoint that stands for several routers in DNS asks all of them.
    Trace(TraceArgs),
    /// Watch a cluster: workers, load, tokens per second, slow requests
    ///
    /// A screen on a terminal, a line per interval in a pipe. A name in --endpoint that stands for
    /// several routers in DNS asks all of them.
    Top(TopArgs),
    /// Make, list and revoke API keys for --api-keys of routers
    ///
    /// A key is printed once, when it is made; the file has its SHA-256 alone. Routers read the
    /// file again when it changes.
    #[command(subcommand)]
    Keys(KeysCommand),
    /// Drain a router or a worker: it finishes its running requests and takes no new ones
    ///
    /// Without WORKER, the process at --endpoint drains. With WORKER, the router at --endpoint
    /// sends no new requests to that worker; other routers still do, and the worker knows nothing
    /// of it. Either lasts until the process that drains is restarted; a router that is restarted
    /// uses the worker again.
    Drain(DrainArgs),
}

/// The cluster to start.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Cluster")]
pub struct ClusterArgs {
    /// A folder (config.json, tokenizer.json, model.safetensors), a .gguf file, or `storyteller`
    /// for the bundled model
    #[arg(long, env = "STOKER_MODEL", default_value = "storyteller", value_name = "PATH")]
    pub model: ModelSource,

    /// Number of workers behind the router; they share one copy of the weights
    #[arg(
        long,
        env = "STOKER_NUM_WORKERS",
        default_value_t = 2,
        value_parser = clap::value_parser!(u16).range(1..=64),
        value_name = "COUNT"
    )]
    pub num_workers: u16,
}

/// The cluster that a command uses.
#[derive(Debug, Args)]
pub struct TargetArgs {
    /// Address of a running cluster to use instead of starting one
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

    /// Certificates and key for `endpoint`.
    #[command(flatten)]
    pub credentials: Credentials,

    /// The cluster to start if there is no `endpoint`.
    #[command(flatten)]
    pub cluster: ClusterArgs,

    /// Compute options of its workers.
    #[command(flatten)]
    pub compute: ComputeConfig,
}

/// `stoker generate`
#[derive(Debug, Args)]
pub struct GenerateArgs {
    /// The prompt
    pub prompt: String,

    /// Maximum number of new tokens
    #[arg(long, env = "STOKER_MAX_TOKENS", default_value_t = 400, value_name = "TOKENS")]
    pub max_tokens: u32,

    /// Sampling temperature: 0 always takes the most likely token, higher values are more random
    #[arg(long, env = "STOKER_TEMPERATURE", default_value_t = 0.5, value_name = "NUMBER")]
    pub temperature: f32,

    /// Sampling seed: the same seed gives the same text [default: drawn for each request]
    #[arg(long, env = "STOKER_SEED", value_name = "NUMBER")]
    pub seed: Option<u64>,

    /// Stop before this text; may be given several times
    #[arg(long, env = "STOKER_STOP", value_name = "TEXT")]
    pub stop: Vec<String>,

    /// Do not add the model's beginning token to the prompt
    #[arg(long, env = "STOKER_NO_SPECIAL_TOKENS")]
    pub no_special_tokens: bool,

    /// Take special tokens that the prompt spells out, such as `<s>`, as text
    #[arg(long, env = "STOKER_SPECIAL_TOKENS_AS_TEXT")]
    pub special_tokens_as_text: bool,

    /// Print where the time of the response went, to standard error
    #[arg(long, env = "STOKER_EXPLAIN")]
    pub explain: bool,

    /// Print one JSON object a line: each piece of text, then the result
    #[arg(long, env = "STOKER_JSON")]
    pub json: bool,

    /// Number of choices; the prompt is computed once. Needs --json, which prints each piece's
    /// choice
    #[arg(long, env = "STOKER_NUM_SEQUENCES", value_name = "COUNT", requires = "json")]
    pub num_sequences: Option<u32>,

    /// Log probabilities of new tokens and of the COUNT most likely candidates; needs --json
    #[arg(long, env = "STOKER_LOGPROBS", value_name = "COUNT", requires = "json")]
    pub logprobs: Option<u32>,

    /// The cluster.
    #[command(flatten)]
    pub target: TargetArgs,
}

/// `stoker chat`
#[derive(Debug, Args)]
pub struct ChatArgs {
    /// The system message
    #[arg(long, env = "STOKER_SYSTEM", value_name = "TEXT")]
    pub system: Option<String>,

    /// Maximum number of new tokens of a response [default: what the context leaves]
    #[arg(long, env = "STOKER_MAX_TOKENS", value_name = "TOKENS")]
    pub max_tokens: Option<u32>,

    /// Sampling temperature: 0 always takes the most likely token, higher values are more random
    #[arg(long, env = "STOKER_TEMPERATURE", default_value_t = 0.5, value_name = "NUMBER")]
    pub temperature: f32,

    /// Sampling seed: the same seed gives the same conversation [default: drawn for each response]
    #[arg(long, env = "STOKER_SEED", value_name = "NUMBER")]
    pub seed: Option<u64>,

    /// Name or alias of the model, if the cluster serves several
    #[arg(long, env = "STOKER_MODEL_NAME", value_name = "NAME")]
    pub model_name: Option<String>,

    /// The cluster.
    #[command(flatten)]
    pub target: TargetArgs,
}

/// `stoker serve`
#[derive(Debug, Args)]
pub struct ServeArgs {
    /// Listen address: HOST:PORT, or :PORT for all interfaces; port 0 takes any free port
    #[arg(long, env = "STOKER_LISTEN", default_value = "127.0.0.1:50051", value_name = "ADDR")]
    pub listen: ListenAddress,

    /// Address of OpenAI's HTTP API: /v1/chat/completions, /v1/completions, /v1/models; it is
    /// printed [default: 127.0.0.1:8000, or a free port if that is in use]
    #[arg(long, env = "STOKER_HTTP_LISTEN", value_name = "ADDR")]
    pub http_listen: Option<ListenAddress>,

    /// Another name for the model, as ALIAS=MODEL, for programs that ask for one they know:
    /// gpt-4o-mini=storyteller
    #[arg(long, env = "STOKER_MODEL_ALIAS", value_delimiter = ',', value_name = "ALIAS=MODEL")]
    pub model_alias: Vec<ModelAlias>,

    /// Address of the admin service (`stoker.v1.Admin`) of the router, for `stoker status`, `stoker
    /// trace`, `stoker top` and `stoker drain`; the address is printed
    #[arg(long, env = "STOKER_ADMIN_LISTEN", default_value = "127.0.0.1:0", value_name = "ADDR")]
    pub admin_listen: ListenAddress,

    /// TLS of the listeners.
    #[command(flatten)]
    pub tls: ServerTlsArgs,

    /// API keys of its clients.
    #[command(flatten)]
    pub tenants: TenantArgs,

    /// The cluster to start.
    #[command(flatten)]
    pub cluster: ClusterArgs,

    /// Traces and metrics.
    #[command(flatten)]
    pub export: ExportArgs,

    /// What its router records of each request.
    #[command(flatten)]
    pub request_log: RequestLogConfig,

    /// Options of its workers.
    #[command(flatten)]
    pub worker: WorkerConfig,
}

/// `stoker status`
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// Address of the router's admin listener (--admin-listen), which it logs at start as `admin`
    #[arg(long, env = "STOKER_ENDPOINT", value_name = "ADDR")]
    pub endpoint: Option<Address>,

    /// Certificates for `endpoint`.
    #[command(flatten)]
    pub credentials: Credentials,

    /// Print a JSON object instead of tables
    #[arg(long, env = "STOKER_JSON")]
    pub json: bool,
}

/// `stoker trace`
#[derive(Debug, Args)]
pub struct TraceArgs {
    /// Id of the request: the one that its client set, or the one in `Accepted.request_id`, logs and
    /// traces. Without it, recent requests are listed, the newest first
    pub request_id: Option<String>,

    /// Address of the admin listener (--admin-listen) of a router, which it logs at start as `admin`
    #[arg(long, env = "STOKER_ENDPOINT", value_name = "ADDR")]
    pub endpoint: Option<Address>,

    /// Certificates for `endpoint`.
    #[command(flatten)]
    pub credentials: Credentials,

    /// Only requests that took at least this long, or have been running for as long
    #[arg(long, env = "STOKER_SLOWER_THAN", value_parser = duration::parse, value_name = "TIME")]
    pub slower_than: Option<Duration>,

    /// Maximum number of requests
    #[arg(
        long,
        env = "STOKER_LIMIT",
        default_value_t = 20,
        value_parser = clap::value_parser!(u32).range(1..=256),
        value_name = "REQUESTS"
    )]
    pub limit: u32,

    /// Print a JSON array
    #[arg(long, env = "STOKER_JSON")]
    pub json: bool,
}

/// `stoker top`
#[derive(Debug, Args)]
pub struct TopArgs {
    /// Address of the admin listener (--admin-listen) of a router, which it logs at start as `admin`
    #[arg(long, env = "STOKER_ENDPOINT", value_name = "ADDR")]
    pub endpoint: Option<Address>,

    /// Certificates for `endpoint`.
    #[command(flatten)]
    pub credentials: Credentials,

    /// Time between two samples
    #[arg(
        long,
        env = "STOKER_INTERVAL",
        default_value = "1s",
        value_parser = interval,
        value_name = "TIME"
    )]
    pub interval: Duration,

    /// End after this number of samples [default: no limit]
    #[arg(long, env = "STOKER_COUNT", value_parser = clap::value_parser!(u32).range(1..), value_name = "SAMPLES")]
    pub count: Option<u32>,

    /// Print a line per interval on a terminal too
    #[arg(long, env = "STOKER_PLAIN")]
    pub plain: bool,
}

/// Parses the time between two samples.
fn interval(text: &str) -> Result<Duration, String> {
    let time = duration::parse(text)?;
    if time < MIN_INTERVAL {
        return Err(format!("is below {MIN_INTERVAL:?}, which would load the routers"));
    }
    Ok(time)
}

/// `stoker drain`
#[derive(Debug, Args)]
pub struct DrainArgs {
    /// The worker to drain through its router: its id, its address or its instance id
    pub worker: Option<String>,

    /// Address of the admin listener (--admin-listen) of a router or a worker, which it logs at
    /// start as `admin`
    #[arg(long, env = "STOKER_ENDPOINT", value_name = "ADDR")]
    pub endpoint: Option<Address>,

    /// Certificates for `endpoint`.
    #[command(flatten)]
    pub credentials: Credentials,

    /// Maximum time to wait for running requests, which continue after it [default: no limit]
    #[arg(long, env = "STOKER_TIMEOUT", value_parser = duration::parse, value_name = "TIME")]
    pub timeout: Option<Duration>,
}

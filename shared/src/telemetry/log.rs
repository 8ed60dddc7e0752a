//! Logs: one line per event on standard error, as text or JSON.

use std::io::{self, IsTerminal};

use clap::{Args, ValueEnum};
use tracing_subscriber::{
    Layer, filter::Targets, fmt, layer::SubscriberExt, registry, util::SubscriberInitExt,
};

/// Flags for logs.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Logging")]
pub struct LogArgs {
    /// Log filter: a level, or directives such as `info,stoker_router=debug` [default: info; warn
    /// for a command that exits by itself]
    #[arg(long, env = "STOKER_LOG", value_name = "FILTER", global = true)]
    pub log: Option<String>,

    /// Format of log lines
    #[arg(
        long,
        env = "STOKER_LOG_FORMAT",
        default_value = "text",
        value_name = "FORMAT",
        global = true
    )]
    pub log_format: LogFormat,
}

/// Format of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Readable text.
    Text,
    /// One JSON object per line.
    Json,
}

/// Initializes logs with the default filter `level`. Fails on an invalid filter with a message that
/// names the error.
pub fn init(args: &LogArgs, level: &str) -> Result<(), String> {
    let filter = args.log.as_deref().unwrap_or(level);
    let targets: Targets = filter
        .parse()
        .map_err(|error| format!("--log `{filter}`: {error}; try `info` or `debug`"))?;
    let lines = fmt::layer().with_writer(io::stderr);
    let lines = match args.log_format {
        LogFormat::Text => lines.with_ansi(io::stderr().is_terminal()).boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    registry().with(lines.with_filter(targets)).try_init().map_err(|error| error.to_string())
}

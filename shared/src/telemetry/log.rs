//! Logs: one line per event on standard error, as text or JSON.

use clap::{Args, ValueEnum};
use tracing_subscriber::{EnvFilter, fmt};

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
    let filter = EnvFilter::builder()
        .parse(filter)
        .map_err(|error| format!("--log `{filter}`: {error}; try `info` or `debug`"))?;
    let builder = fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let initialized = match args.log_format {
        LogFormat::Text => {
            use std::io::IsTerminal;
            builder.with_ansi(std::io::stderr().is_terminal()).try_init()
        }
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    initialized.map_err(|error| error.to_string())
}

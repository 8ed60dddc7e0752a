//! Logs: one line an event on standard error, as text or JSON.

use clap::{Args, ValueEnum};
use tracing_subscriber::{EnvFilter, fmt};

/// How to log.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Logging")]
pub struct LogArgs {
    /// What to log: a level, or directives such as `info,stoker_router=debug` [default: info; warn
    /// for a command that ends by itself]
    #[arg(long, env = "STOKER_LOG", value_name = "FILTER", global = true)]
    pub log: Option<String>,

    /// The form of a log line
    #[arg(
        long,
        env = "STOKER_LOG_FORMAT",
        default_value = "text",
        value_name = "FORMAT",
        global = true
    )]
    pub log_format: LogFormat,
}

/// The form of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Starts to log, by default what `level` says. Fails on a filter that cannot be read, with what is
/// wrong in it.
pub fn init(args: &LogArgs, level: &str) -> Result<(), String> {
    let wanted = args.log.as_deref().unwrap_or(level);
    let filter = EnvFilter::builder()
        .parse(wanted)
        .map_err(|error| format!("--log `{wanted}`: {error}; try `info` or `debug`"))?;
    let builder = fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let outcome = match args.log_format {
        LogFormat::Text => {
            use std::io::IsTerminal;
            builder.with_ansi(std::io::stderr().is_terminal()).try_init()
        }
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    outcome.map_err(|error| error.to_string())
}

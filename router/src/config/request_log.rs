//! What is recorded of each request.

use std::time::Duration;

use clap::Args;
use stoker_shared::{config, duration};

/// What is recorded of each request, besides metrics and a log line.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct RequestLogConfig {
    /// Log a warning with all stages of every request that takes this long or longer [default: none]
    #[arg(
        long,
        env = "STOKER_SLOW_REQUEST_LOG",
        value_parser = duration::parse,
        value_name = "TIME",
        help_heading = "Telemetry"
    )]
    pub slow_request_log: Option<Duration>,

    /// Number of finished requests to keep in memory for `stoker trace` and `stoker top`: their
    /// stages and attempts, without prompts and responses; about 1 KiB each
    #[arg(
        long,
        env = "STOKER_RECENT_REQUESTS",
        default_value_t = 1_000,
        value_parser = clap::value_parser!(u32).range(..=100_000),
        value_name = "REQUESTS",
        help_heading = "Telemetry"
    )]
    pub recent_requests: u32,

    /// Put prompts and responses into exported traces, each cut after 16 KiB. They may be
    /// confidential, and collectors keep them
    #[arg(long, env = "STOKER_TRACE_CONTENT", help_heading = "Telemetry")]
    pub trace_content: bool,
}

impl Default for RequestLogConfig {
    fn default() -> Self {
        config::defaults()
    }
}

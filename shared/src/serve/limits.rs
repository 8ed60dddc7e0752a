//! Limits on the connections and requests of a listener.

use std::time::Duration;

use bytesize::ByteSize;
use clap::Args;

use crate::{config, duration};

/// Limits on connections and requests.
#[derive(Debug, Clone, PartialEq, Args)]
#[group(skip)]
pub struct LimitsConfig {
    /// Maximum number of open connections. Beyond it, the connection that has been idle for longest
    /// is closed, or new ones wait. Lower if this process may open fewer files
    #[arg(
        long,
        env = "STOKER_MAX_CONNECTIONS",
        default_value_t = 4_096,
        value_parser = clap::value_parser!(u32).range(1..=1_000_000),
        value_name = "COUNT",
        help_heading = "Limits"
    )]
    pub max_connections: u32,

    /// Maximum number of concurrent calls per connection; further calls wait at the client
    /// [default: 256; for a worker, what it may run and queue]
    #[arg(
        long,
        env = "STOKER_MAX_STREAMS_PER_CONNECTION",
        value_parser = clap::value_parser!(u32).range(1..=1_000_000),
        value_name = "COUNT",
        help_heading = "Limits"
    )]
    pub max_streams_per_connection: Option<u32>,

    /// Time limit for receiving a request, and for the first bytes of a connection
    #[arg(
        long,
        env = "STOKER_REQUEST_READ_TIMEOUT",
        default_value = "30s",
        value_parser = duration::parse_positive,
        value_name = "TIME",
        help_heading = "Limits"
    )]
    pub request_read_timeout: Duration,

    /// End a response whose client reads nothing of it for this time
    #[arg(
        long,
        env = "STOKER_WRITE_STALL_TIMEOUT",
        default_value = "30s",
        value_parser = duration::parse_positive,
        value_name = "TIME",
        help_heading = "Limits"
    )]
    pub write_stall_timeout: Duration,

    /// Memory for requests, from their first byte to the end of their response, and for responses
    /// of slow readers. Beyond it, requests are rejected with RESOURCE_EXHAUSTED
    #[arg(
        long,
        env = "STOKER_MAX_REQUEST_MEMORY",
        default_value = "1GiB",
        value_name = "SIZE",
        help_heading = "Limits"
    )]
    pub max_request_memory: ByteSize,
}

impl Default for LimitsConfig {
    fn default() -> Self {
        config::defaults()
    }
}

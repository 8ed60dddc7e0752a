//! What peers may hold open on a listener, and for how long.

use std::time::Duration;

use bytesize::ByteSize;
use clap::Args;

use crate::duration;

/// Limits on connections, and on requests while they are read and answered.
#[derive(Debug, Clone, PartialEq, Args)]
#[group(skip)]
pub struct LimitsConfig {
    /// Connections that may be open at once. Beyond it the one that has been idle for longest is closed, or the next
    /// one waits; less where this process may open fewer files
    #[arg(
        long,
        env = "STOKER_MAX_CONNECTIONS",
        default_value_t = 4_096,
        value_parser = clap::value_parser!(u32).range(1..=1_000_000),
        value_name = "COUNT",
        help_heading = "Limits"
    )]
    pub max_connections: u32,

    /// Calls that one connection may have open at once; more wait at the client [default: 256; a worker's: what it
    /// may run and queue]
    #[arg(
        long,
        env = "STOKER_MAX_STREAMS_PER_CONNECTION",
        value_parser = clap::value_parser!(u32).range(1..=1_000_000),
        value_name = "COUNT",
        help_heading = "Limits"
    )]
    pub max_streams_per_connection: Option<u32>,

    /// The longest that a request may take to come in; a connection has the same time for its first bytes
    #[arg(
        long,
        env = "STOKER_REQUEST_READ_TIMEOUT",
        default_value = "30s",
        value_parser = duration::parse_positive,
        value_name = "TIME",
        help_heading = "Limits"
    )]
    pub request_read_timeout: Duration,

    /// A response whose client takes nothing of it for so long is ended
    #[arg(
        long,
        env = "STOKER_WRITE_STALL_TIMEOUT",
        default_value = "30s",
        value_parser = duration::parse_positive,
        value_name = "TIME",
        help_heading = "Limits"
    )]
    pub write_stall_timeout: Duration,

    /// Memory for requests from their first byte to the end of their response, and for responses that clients are slow to
    /// read; beyond it requests are refused with RESOURCE_EXHAUSTED
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
        Self {
            max_connections: 4_096,
            max_streams_per_connection: None,
            request_read_timeout: Duration::from_secs(30),
            write_stall_timeout: Duration::from_secs(30),
            max_request_memory: ByteSize::gib(1),
        }
    }
}

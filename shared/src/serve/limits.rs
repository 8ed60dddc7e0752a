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

    /// Maximum size of a request. Larger ones are rejected with OUT_OF_RANGE, over HTTP with 413. A
    /// worker accepts 32 MiB more from a router, which also sends the tokens to resume from
    #[arg(
        long,
        env = "STOKER_MAX_REQUEST_SIZE",
        default_value = "4MiB",
        value_parser = request_size,
        value_name = "SIZE",
        help_heading = "Limits"
    )]
    pub max_request_size: ByteSize,

    /// Maximum size of the headers of a request. Those with more are rejected, over HTTP with 431
    #[arg(
        long,
        env = "STOKER_MAX_HEADER_SIZE",
        default_value = "16KiB",
        value_parser = header_size,
        value_name = "SIZE",
        help_heading = "Limits"
    )]
    pub max_header_size: ByteSize,

    /// Time limit for receiving a request, and for the first bytes of a connection, with TLS for its
    /// handshake too
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

    /// A connection without calls for this time is closed when --max-connections is reached
    #[arg(
        long,
        env = "STOKER_IDLE_TIMEOUT",
        default_value = "10s",
        value_parser = duration::parse_positive,
        value_name = "TIME",
        help_heading = "Limits"
    )]
    pub idle_timeout: Duration,

    /// Interval of the HTTP/2 pings to clients, which detect one that vanished
    #[arg(
        long,
        env = "STOKER_KEEPALIVE_INTERVAL",
        default_value = "30s",
        value_parser = duration::parse_positive,
        value_name = "TIME",
        help_heading = "Limits"
    )]
    pub keepalive_interval: Duration,

    /// Time limit for the response to such a ping, after which the connection is closed
    #[arg(
        long,
        env = "STOKER_KEEPALIVE_TIMEOUT",
        default_value = "10s",
        value_parser = duration::parse_positive,
        value_name = "TIME",
        help_heading = "Limits"
    )]
    pub keepalive_timeout: Duration,

    /// Age at which a connection takes no more calls (GOAWAY), so that clients connect anew and
    /// spread over all routers; 0s for no limit [default: 30m, for a worker none]
    #[arg(
        long,
        env = "STOKER_MAX_CONNECTION_AGE",
        value_parser = duration::parse,
        value_name = "TIME",
        help_heading = "Limits"
    )]
    pub max_connection_age: Option<Duration>,

    /// Time that the calls of such a connection have to end, after which they are cut off [default:
    /// no limit]
    #[arg(
        long,
        env = "STOKER_MAX_CONNECTION_AGE_GRACE",
        value_parser = duration::parse_positive,
        value_name = "TIME",
        help_heading = "Limits"
    )]
    pub max_connection_age_grace: Option<Duration>,

    /// Maximum streams of a connection that its client resets before they were accepted; one with
    /// more is closed. A router that cancels many requests at once resets as many
    #[arg(
        long,
        env = "STOKER_MAX_PENDING_RESETS",
        default_value_t = 1_024,
        value_parser = clap::value_parser!(u32).range(1..=1_000_000),
        value_name = "COUNT",
        help_heading = "Limits"
    )]
    pub max_pending_resets: u32,

    /// Calls a second that a client may reset before they have a response and are a second old, on
    /// each connection. With more, the connection is read more slowly; routers may, for their
    /// clients. 0 for any number
    #[arg(
        long,
        env = "STOKER_MAX_EARLY_RESETS",
        default_value_t = 128,
        value_name = "COUNT",
        help_heading = "Limits"
    )]
    pub max_early_resets: u32,

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

/// Parses the maximum size of a request.
fn request_size(text: &str) -> Result<ByteSize, String> {
    size(text, ByteSize::kib(1), ByteSize::gib(1))
}

/// Parses the maximum size of headers: HTTP/2 has 16 MiB of them at most.
fn header_size(text: &str) -> Result<ByteSize, String> {
    size(text, ByteSize::kib(1), ByteSize::mib(1))
}

fn size(text: &str, min: ByteSize, max: ByteSize) -> Result<ByteSize, String> {
    let size: ByteSize = text.parse()?;
    if size < min || size > max {
        return Err(format!("is not between {min} and {max}"));
    }
    Ok(size)
}

impl Default for LimitsConfig {
    fn default() -> Self {
        config::defaults()
    }
}

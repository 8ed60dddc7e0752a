//! Flags for retries, resumes and hedging.

use std::time::Duration;

use bytesize::ByteSize;
use clap::Args;
use stoker_shared::{config, duration};

/// Configuration of retries, resumes and hedging.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
#[command(next_help_heading = "Failures")]
pub struct ResumeConfig {
    /// Maximum attempts until a worker accepts a request; 1 disables retries
    #[arg(
        long,
        env = "STOKER_RETRY_ATTEMPTS",
        default_value_t = 3,
        value_parser = clap::value_parser!(u32).range(1..=10),
        value_name = "COUNT"
    )]
    pub retry_attempts: u32,

    /// Maximum times that an accepted stream may lose its worker and resume on another one; 0
    /// disables it. A draining worker does not count
    #[arg(
        long,
        env = "STOKER_MAX_RESUMES",
        default_value_t = 3,
        value_parser = clap::value_parser!(u32).range(0..=100),
        value_name = "COUNT"
    )]
    pub max_resumes: u32,

    /// Maximum time that a stream without a worker waits for one with the same digest, a free slot
    /// and enough KV cache, unless its deadline is earlier
    #[arg(
        long,
        env = "STOKER_RESUME_TIMEOUT",
        default_value = "120s",
        value_parser = duration::parse,
        value_name = "TIME"
    )]
    pub resume_timeout: Duration,

    /// Maximum memory for the tokens of running responses; responses beyond it cannot be resumed
    #[arg(long, env = "STOKER_RESUME_MEMORY", default_value = "256MiB", value_name = "SIZE")]
    pub resume_memory: ByteSize,

    /// Maximum time that streams wait for a stalled or silent worker before they fail over; at
    /// least 1500ms, since workers report once a second
    #[arg(
        long,
        env = "STOKER_STALL_TIMEOUT",
        default_value = "2s",
        value_parser = stall_timeout,
        value_name = "TIME"
    )]
    pub stall_timeout: Duration,

    /// Maximum time that a stream waits for its next token, while its worker serves others, before
    /// it fails over; at least 1500ms. A preempted stream moves only to a worker with enough free
    /// KV cache
    #[arg(
        long,
        env = "STOKER_TOKEN_TIMEOUT",
        default_value = "30s",
        value_parser = stall_timeout,
        value_name = "TIME"
    )]
    pub token_timeout: Duration,

    /// Send a request to a second worker if the first one has sent no token for this long after it
    /// accepted, and use the faster one; limited by the retry budget [default: never]
    #[arg(
        long,
        env = "STOKER_HEDGE_AFTER",
        value_parser = duration::parse,
        value_name = "TIME"
    )]
    pub hedge_after: Option<Duration>,
}

/// 1.5 times the interval of load reports.
const MIN_STALL_TIMEOUT: Duration = Duration::from_millis(1_500);

fn stall_timeout(text: &str) -> Result<Duration, String> {
    match duration::parse(text)? {
        timeout if timeout < MIN_STALL_TIMEOUT => Err(format!(
            "must be at least {}ms, since workers report once a second",
            MIN_STALL_TIMEOUT.as_millis()
        )),
        timeout => Ok(timeout),
    }
}

impl ResumeConfig {
    /// Time without progress after which a worker counts as stalled: the stall timeout less the
    /// delay of detection.
    pub(crate) fn stall_detection_time(&self) -> Duration {
        self.stall_timeout.mul_f64(0.9)
    }
}

impl Default for ResumeConfig {
    fn default() -> Self {
        config::defaults()
    }
}

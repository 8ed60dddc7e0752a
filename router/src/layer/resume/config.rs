//! What an operator can set of it.

use std::time::Duration;

use bytesize::ByteSize;
use clap::Args;
use stoker_shared::duration;

/// How far the router goes to bring an answer to its end.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
#[command(next_help_heading = "Failures")]
pub struct ResumeConfig {
    /// Workers to try, one after the other, until one accepts a request; 1 never retries
    #[arg(
        long,
        env = "STOKER_RETRY_ATTEMPTS",
        default_value_t = 3,
        value_parser = clap::value_parser!(u32).range(1..=10),
        value_name = "COUNT"
    )]
    pub retry_attempts: u32,

    /// How often an accepted stream may lose its worker and go on at another one; 0 never. Leaving a worker
    /// that drains does not count
    #[arg(
        long,
        env = "STOKER_MAX_RESUMES",
        default_value_t = 3,
        value_parser = clap::value_parser!(u32).range(0..=100),
        value_name = "COUNT"
    )]
    pub max_resumes: u32,

    /// How long a stream that lost its worker waits for another one of the same digest with a slot and a KV cache for it,
    /// unless its deadline is earlier
    #[arg(
        long,
        env = "STOKER_RESUME_TIMEOUT",
        default_value = "120s",
        value_parser = duration::parse,
        value_name = "TIME"
    )]
    pub resume_timeout: Duration,

    /// Memory for the tokens of running answers, at most; what finds no room in it cannot be resumed
    #[arg(long, env = "STOKER_RESUME_MEMORY", default_value = "256MiB", value_name = "SIZE")]
    pub resume_memory: ByteSize,

    /// The longest that streams wait for a worker that stands still or is silent, before they go elsewhere;
    /// at least 1500ms, since workers report once a second
    #[arg(
        long,
        env = "STOKER_STALL_TIMEOUT",
        default_value = "2s",
        value_parser = stall_timeout,
        value_name = "TIME"
    )]
    pub stall_timeout: Duration,

    /// The longest that a stream waits for its next token while its worker works for others, before it goes
    /// elsewhere; at least 1500ms. One that the worker preempted goes only where there is room for it
    #[arg(
        long,
        env = "STOKER_TOKEN_TIMEOUT",
        default_value = "30s",
        value_parser = stall_timeout,
        value_name = "TIME"
    )]
    pub token_timeout: Duration,

    /// Ask a second worker if no token has come this long after the first one accepted, and take the faster
    /// one; as far as the retry budget allows [default: never]
    #[arg(
        long,
        env = "STOKER_HEDGE_AFTER",
        value_parser = duration::parse,
        value_name = "TIME"
    )]
    pub hedge_after: Option<Duration>,
}

/// Two reports of a worker's load, and a half.
const MIN_STALL_TIMEOUT: Duration = Duration::from_millis(1_500);

fn stall_timeout(text: &str) -> Result<Duration, String> {
    match duration::parse(text)? {
        budget if budget < MIN_STALL_TIMEOUT => Err(format!(
            "workers report once a second: take at least {}ms",
            MIN_STALL_TIMEOUT.as_millis()
        )),
        budget => Ok(budget),
    }
}

impl ResumeConfig {
    /// What a stall may take until it is noticed: the budget, less what it takes to notice.
    pub(crate) fn stall_detection_time(&self) -> Duration {
        self.stall_timeout.mul_f64(0.9)
    }
}

impl Default for ResumeConfig {
    fn default() -> Self {
        Self {
            retry_attempts: 3,
            max_resumes: 3,
            resume_timeout: Duration::from_secs(120),
            resume_memory: ByteSize::mib(256),
            stall_timeout: Duration::from_secs(2),
            token_timeout: Duration::from_secs(30),
            hedge_after: None,
        }
    }
}

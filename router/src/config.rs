//! What an operator can set, checked before anything listens.

mod balancing;

use std::time::Duration;

use clap::Args;
use stoker_shared::duration;

pub use balancing::BalancingConfig;

/// How the router works.
#[derive(Debug, Clone, PartialEq, Args)]
pub struct RouterConfig {
    /// Streams that may run at once
    #[arg(
        long,
        env = "STOKER_MAX_CONCURRENT",
        default_value_t = 16_384,
        value_parser = clap::value_parser!(u32).range(1..),
        value_name = "STREAMS",
        help_heading = "Admission"
    )]
    pub max_concurrent: u32,

    /// Requests that may wait for a place; beyond it they are refused with RESOURCE_EXHAUSTED
    #[arg(
        long,
        env = "STOKER_QUEUE_SIZE",
        default_value_t = 1_024,
        value_name = "REQUESTS",
        help_heading = "Admission"
    )]
    pub queue_size: u32,

    /// The longest that a request waits for a place
    #[arg(
        long,
        env = "STOKER_QUEUE_TIMEOUT",
        default_value = "30s",
        value_parser = duration::parse,
        value_name = "TIME",
        help_heading = "Admission"
    )]
    pub queue_timeout: Duration,

    /// Workers to try, one after the other, until one sends the first token; 1 never retries
    #[arg(
        long,
        env = "STOKER_RETRY_ATTEMPTS",
        default_value_t = 3,
        value_parser = clap::value_parser!(u32).range(1..=10),
        value_name = "COUNT",
        help_heading = "Retries"
    )]
    pub retry_attempts: u32,

    /// How workers are chosen.
    #[command(flatten)]
    pub balancing: BalancingConfig,

    /// How long running streams may go on after SIGTERM or Ctrl-C
    #[arg(
        long,
        env = "STOKER_DRAIN_TIMEOUT",
        default_value = "30s",
        value_parser = duration::parse,
        value_name = "TIME",
        help_heading = "Shutdown"
    )]
    pub drain_timeout: Duration,
}

impl Default for RouterConfig {
    fn default() -> Self {
        Self {
            max_concurrent: 16_384,
            queue_size: 1_024,
            queue_timeout: Duration::from_secs(30),
            retry_attempts: 3,
            balancing: BalancingConfig::default(),
            drain_timeout: Duration::from_secs(30),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        router: RouterConfig,
    }

    #[test]
    fn the_defaults_of_flags_and_code_agree() {
        let parsed = Cli::try_parse_from(["router"]).map(|cli| cli.router);
        assert_eq!(parsed.ok(), Some(RouterConfig::default()));
    }

    #[test]
    fn values_out_of_range_name_the_flag() {
        for (flag, value) in [
            ("--max-concurrent", "0"),
            ("--retry-attempts", "11"),
            ("--queue-timeout", "soon"),
            ("--policy", "best"),
            ("--affinity-factor", "0.5"),
            ("--affinity-memory", "much"),
        ] {
            let error = Cli::try_parse_from(["router", flag, value]).err().unwrap();
            let text = error.to_string();
            assert!(text.contains(flag) && text.contains(value), "{text}");
        }
    }
}

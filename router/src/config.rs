//! What an operator can set, checked before anything listens.

mod balancing;
mod health;

use std::time::Duration;

use clap::Args;
use stoker_shared::{duration, serve::LimitsConfig};

use crate::{ResumeConfig, TenantPriority, tenant};
pub use balancing::BalancingConfig;
pub use health::HealthConfig;

/// How the router works.
#[derive(Debug, Clone, PartialEq, Args)]
pub struct RouterConfig {
    /// Streams that may run at once
    #[arg(
        long,
        env = "STOKER_MAX_CONCURRENT_STREAMS",
        default_value_t = 16_384,
        value_parser = clap::value_parser!(u32).range(1..),
        value_name = "STREAMS",
        help_heading = "Admission"
    )]
    pub max_concurrent_streams: u32,

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

    /// A header that names the tenant of a request, set by a gateway that clients cannot go around; tenants
    /// that wait get equal shares of the work, those who are as urgent: what they may ask for is bounded by
    /// --tenant-priority. Without it, everybody is one tenant
    #[arg(
        long,
        env = "STOKER_TENANT_HEADER",
        value_parser = tenant::header,
        value_name = "NAME",
        help_heading = "Admission"
    )]
    pub tenant_header: Option<String>,

    /// Requests of one tenant that may wait for a place, where --tenant-header says who that is
    #[arg(
        long,
        env = "STOKER_TENANT_QUEUE_SIZE",
        default_value_t = 256,
        value_name = "REQUESTS",
        help_heading = "Admission"
    )]
    pub tenant_queue_size: u32,

    /// The most urgent priority of a tenant's requests, as NAME=N, from 0, the most urgent, to 1000, and *=N for all
    /// other tenants; requests that ask for more get N. Without a rule, a tenant's requests get 100 at most, what those
    /// have that ask for nothing
    #[arg(
        long,
        env = "STOKER_TENANT_PRIORITY",
        value_delimiter = ',',
        value_name = "NAME=N",
        help_heading = "Admission"
    )]
    pub tenant_priority: Vec<TenantPriority>,

    /// Leave `usage.cached_prompt_tokens` at 0 for clients: where neither tenants nor salts divide them, it tells what
    /// others sent. Metrics and traces have it all the same
    #[arg(long, env = "STOKER_HIDE_CACHED_TOKENS", help_heading = "Admission")]
    pub hide_cached_tokens: bool,

    /// Requests of one tenant that may run and wait at once, where --tenant-header says who that is; beyond it they are
    /// refused with RESOURCE_EXHAUSTED [default: --max-concurrent-streams and --tenant-queue-size together]
    #[arg(
        long,
        env = "STOKER_TENANT_MAX_CONCURRENT_STREAMS",
        value_parser = clap::value_parser!(u32).range(1..),
        value_name = "STREAMS",
        help_heading = "Admission"
    )]
    pub tenant_max_concurrent_streams: Option<u32>,

    /// What clients may hold open.
    #[command(flatten)]
    pub limits: LimitsConfig,

    /// When a worker is left alone for a while
    #[command(flatten)]
    pub health: HealthConfig,

    /// What happens when a worker is lost.
    #[command(flatten)]
    pub resume: ResumeConfig,

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
            max_concurrent_streams: 16_384,
            queue_size: 1_024,
            queue_timeout: Duration::from_secs(30),
            tenant_header: None,
            tenant_queue_size: 256,
            tenant_priority: Vec::new(),
            tenant_max_concurrent_streams: None,
            limits: LimitsConfig::default(),
            hide_cached_tokens: false,
            health: HealthConfig::default(),
            resume: ResumeConfig::default(),
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
            ("--max-concurrent-streams", "0"),
            ("--retry-attempts", "11"),
            ("--queue-timeout", "soon"),
            ("--stall-timeout", "1s"),
            ("--max-resumes", "101"),
            ("--tenant-header", "grpc-tenant"),
            ("--tenant-priority", "batch=1001"),
            ("--max-request-memory", "much"),
            ("--max-connections", "0"),
            ("--write-stall-timeout", "never"),
            ("--tenant-max-concurrent-streams", "0"),
            ("--base-ejection-time", "long"),
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

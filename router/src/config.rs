//! Configuration of the router, validated at startup.

mod balancing;
mod health;
mod model_alias;
mod origin;
mod request_log;
mod resume;

use std::time::Duration;

use axum::http::HeaderValue;
use clap::Args;
use stoker_shared::{config, duration, serve::LimitsConfig, tls::ClientTls};

use crate::tenant::{self, TenantArgs, TenantPriority};
pub use balancing::{BalancingConfig, Policy};
pub use health::HealthConfig;
pub(crate) use model_alias::ModelAliases;
pub use model_alias::{AliasError, ModelAlias};
pub use request_log::RequestLogConfig;
pub use resume::ResumeConfig;

/// Configuration of the router.
#[derive(Debug, Clone, Args)]
pub struct RouterConfig {
    /// Maximum streams that run concurrently
    #[arg(
        long,
        env = "STOKER_MAX_CONCURRENT_STREAMS",
        default_value_t = 16_384,
        value_parser = clap::value_parser!(u32).range(1..),
        value_name = "STREAMS",
        help_heading = "Admission"
    )]
    pub max_concurrent_streams: u32,

    /// Maximum requests that wait for a slot; further ones are refused with RESOURCE_EXHAUSTED
    #[arg(
        long,
        env = "STOKER_QUEUE_SIZE",
        default_value_t = 1_024,
        value_name = "REQUESTS",
        help_heading = "Admission"
    )]
    pub queue_size: u32,

    /// Maximum time that a request waits for a slot
    #[arg(
        long,
        env = "STOKER_QUEUE_TIMEOUT",
        default_value = "30s",
        value_parser = duration::parse,
        value_name = "TIME",
        help_heading = "Admission"
    )]
    pub queue_timeout: Duration,

    /// Another name for a model, as ALIAS=MODEL: clients that ask for gpt-4o-mini get storyteller
    /// with --model-alias gpt-4o-mini=storyteller
    #[arg(
        long,
        env = "STOKER_MODEL_ALIAS",
        value_delimiter = ',',
        value_name = "ALIAS=MODEL",
        help_heading = "Routing"
    )]
    pub model_alias: Vec<ModelAlias>,

    /// Header with the tenant of a request, set by a gateway that clients cannot bypass. Waiting
    /// tenants of equal priority get equal shares of the work; --tenant-priority bounds the
    /// priority that they may request. Without the header, all requests belong to one tenant
    #[arg(
        long,
        env = "STOKER_TENANT_HEADER",
        value_parser = tenant::header,
        value_name = "NAME",
        help_heading = "Admission"
    )]
    pub tenant_header: Option<String>,

    /// Take the field `user` of HTTP requests as the tenant of those without the tenant header: only
    /// behind a gateway that sets the field. Otherwise the field has no effect
    #[arg(long, env = "STOKER_TENANT_FROM_USER", help_heading = "Admission")]
    pub tenant_from_user: bool,

    /// Origins of web pages that may call --http-listen from a browser, separated by commas; * for
    /// all, none for none
    #[arg(
        long,
        env = "STOKER_HTTP_ALLOWED_ORIGINS",
        default_value = "*",
        value_parser = origin::origin,
        value_delimiter = ',',
        value_name = "ORIGIN",
        help_heading = "Network"
    )]
    pub http_allowed_origins: Vec<HeaderValue>,

    /// Maximum requests of one tenant that wait for a slot; requires --tenant-header or --api-keys
    #[arg(
        long,
        env = "STOKER_TENANT_QUEUE_SIZE",
        default_value_t = 256,
        value_name = "REQUESTS",
        help_heading = "Admission"
    )]
    pub tenant_queue_size: u32,

    /// Highest priority that a tenant may request, as NAME=N, from 0 (most urgent) to 1000, and *=N
    /// for all other tenants; more urgent requests get N. Without a rule it is 100, which is also
    /// the priority of requests that set none
    #[arg(
        long,
        env = "STOKER_TENANT_PRIORITY",
        value_delimiter = ',',
        value_name = "NAME=N",
        help_heading = "Admission"
    )]
    pub tenant_priority: Vec<TenantPriority>,

    /// Report `usage.cached_prompt_tokens` as 0 to clients: without tenants or cache salts, it
    /// reveals which prefixes other clients sent. Metrics and traces still contain it
    #[arg(long, env = "STOKER_HIDE_CACHED_TOKENS", help_heading = "Admission")]
    pub hide_cached_tokens: bool,

    /// Maximum requests of one tenant that run or wait; requires --tenant-header or --api-keys, whose
    /// file may set a lower limit. Further ones are
    /// refused with RESOURCE_EXHAUSTED [default: --max-concurrent-streams plus --tenant-queue-size]
    #[arg(
        long,
        env = "STOKER_TENANT_MAX_CONCURRENT_STREAMS",
        value_parser = clap::value_parser!(u32).range(1..),
        value_name = "STREAMS",
        help_heading = "Admission"
    )]
    pub tenant_max_concurrent_streams: Option<u32>,

    /// Who may call the router.
    #[command(flatten)]
    pub tenants: TenantArgs,

    /// TLS of connections to workers. It has no flag: see [`stoker_shared::tls::WorkerTlsArgs`].
    #[arg(skip)]
    pub worker_tls: Option<ClientTls>,

    /// Limits on client connections and requests.
    #[command(flatten)]
    pub limits: LimitsConfig,

    /// When a worker is ejected.
    #[command(flatten)]
    pub health: HealthConfig,

    /// Retries, resumes and hedging.
    #[command(flatten)]
    pub resume: ResumeConfig,

    /// How workers are selected.
    #[command(flatten)]
    pub balancing: BalancingConfig,

    /// What is recorded of each request.
    #[command(flatten)]
    pub request_log: RequestLogConfig,

    /// Maximum time that running streams may continue after SIGTERM or Ctrl-C
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

impl RouterConfig {
    /// Whether requests have tenants.
    pub(crate) fn has_tenants(&self) -> bool {
        self.tenant_header.is_some() || self.tenants.api_keys.is_some()
    }
}

impl Default for RouterConfig {
    fn default() -> Self {
        config::defaults()
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
    fn every_flag_has_a_default() {
        assert_eq!(RouterConfig::default().queue_timeout, Duration::from_secs(30));
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
            ("--model-alias", "gpt-4o"),
            ("--max-request-memory", "much"),
            ("--max-connections", "0"),
            ("--write-stall-timeout", "never"),
            ("--tenant-max-concurrent-streams", "0"),
            ("--base-ejection-time", "long"),
            ("--policy", "best"),
            ("--affinity-factor", "0.5"),
            ("--affinity-memory", "much"),
            ("--recent-requests", "100001"),
        ] {
            let error = Cli::try_parse_from(["router", flag, value]).err().unwrap();
            let text = error.to_string();
            assert!(text.contains(flag) && text.contains(value), "{text}");
        }
    }
}

//! Flags for the ejection of workers.

use std::time::Duration;

use clap::Args;
use stoker_shared::{config, duration};

/// When a worker is ejected.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct HealthConfig {
    /// Eject a worker after COUNT consecutive failures; 0 disables it. At most half of a model's
    /// workers are ejected
    #[arg(
        long,
        env = "STOKER_EJECT_FAILURES",
        default_value_t = 5,
        value_name = "COUNT",
        help_heading = "Health"
    )]
    pub eject_failures: u32,

    /// Eject a worker whose latency exceeds TIMES times that of its peers; 0 disables it
    #[arg(
        long,
        env = "STOKER_EJECT_LATENCY_FACTOR",
        default_value_t = 4,
        value_name = "TIMES",
        help_heading = "Health"
    )]
    pub eject_latency_factor: u32,

    /// Duration of a worker's first ejection; it doubles with each further one, up to five minutes
    #[arg(
        long,
        env = "STOKER_BASE_EJECTION_TIME",
        default_value = "5s",
        value_parser = duration::parse,
        value_name = "TIME",
        help_heading = "Health"
    )]
    pub base_ejection_time: Duration,
}

impl Default for HealthConfig {
    fn default() -> Self {
        config::defaults()
    }
}

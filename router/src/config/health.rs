//! When a worker is left alone for a while.

use std::time::Duration;

use clap::Args;
use stoker_shared::duration;

/// When a worker is left alone for a while.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct HealthConfig {
    /// Failures in a row that put a worker out; 0 never does. Half of a model's workers always stay
    #[arg(
        long,
        env = "STOKER_EJECT_FAILURES",
        default_value_t = 5,
        value_name = "COUNT",
        help_heading = "Health"
    )]
    pub eject_failures: u32,

    /// Put a worker out that is so many times slower than its equals usually are; 0 never does
    #[arg(
        long,
        env = "STOKER_EJECT_LATENCY_FACTOR",
        default_value_t = 4,
        value_name = "TIMES",
        help_heading = "Health"
    )]
    pub eject_latency_factor: u32,

    /// How long a worker is out the first time; each further time is twice as long, up to five minutes
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
        Self {
            eject_failures: 5,
            eject_latency_factor: 4,
            base_ejection_time: Duration::from_secs(5),
        }
    }
}

//! Flags for the selection of workers.

use bytesize::ByteSize;
use clap::{Args, ValueEnum};
use stoker_shared::config;

/// How workers are selected.
#[derive(Debug, Clone, PartialEq, Args)]
#[command(next_help_heading = "Balancing")]
pub struct BalancingConfig {
    /// Load balancing policy
    #[arg(long, env = "STOKER_POLICY", value_enum, default_value_t, value_name = "POLICY")]
    pub policy: Policy,

    /// Prefix affinity skips a worker whose outstanding work exceeds FACTOR times the mean
    #[arg(
        long,
        env = "STOKER_AFFINITY_FACTOR",
        default_value_t = 3.0,
        value_parser = factor,
        value_name = "FACTOR"
    )]
    pub affinity_factor: f64,

    /// Maximum memory of the index of prefixes sent to each worker
    #[arg(long, env = "STOKER_AFFINITY_MEMORY", default_value = "64MiB", value_name = "SIZE")]
    pub affinity_memory: ByteSize,
}

/// Load-balancing policy.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Policy {
    /// Least outstanding work after the savings of the worker's prefix cache
    #[default]
    PrefixAffinity,
    /// Least outstanding work, without regard to prefix caches
    LeastTokens,
    /// Each worker in turn
    RoundRobin,
    /// A random worker
    Random,
}

impl Default for BalancingConfig {
    fn default() -> Self {
        config::defaults()
    }
}

fn factor(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(factor) if (1.0..=1e6).contains(&factor) => Ok(factor),
        _ => Err("expected a number from 1 (minimum affinity) to 1000000, for example 3".into()),
    }
}

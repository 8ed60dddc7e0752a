//! Flags for the selection of workers.

use bytesize::ByteSize;
use clap::Args;

use crate::Policy;

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
        default_value_t = AFFINITY_FACTOR,
        value_parser = factor,
        value_name = "FACTOR"
    )]
    pub affinity_factor: f64,

    /// Maximum memory of the index of prefixes sent to each worker
    #[arg(long, env = "STOKER_AFFINITY_MEMORY", default_value = "64MiB", value_name = "SIZE")]
    pub affinity_memory: ByteSize,
}

const AFFINITY_FACTOR: f64 = 3.0;

impl Default for BalancingConfig {
    fn default() -> Self {
        Self {
            policy: Policy::default(),
            affinity_factor: AFFINITY_FACTOR,
            affinity_memory: ByteSize::mib(64),
        }
    }
}

fn factor(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(factor) if (1.0..=1e6).contains(&factor) => Ok(factor),
        _ => Err("expected a number from 1 (minimum affinity) to 1000000, for example 3".into()),
    }
}

//! How workers are chosen.

use bytesize::ByteSize;
use clap::Args;

use crate::Policy;

/// How workers are chosen.
#[derive(Debug, Clone, PartialEq, Args)]
#[command(next_help_heading = "Balancing")]
pub struct BalancingConfig {
    /// How to choose a worker
    #[arg(long, env = "STOKER_POLICY", value_enum, default_value_t, value_name = "POLICY")]
    pub policy: Policy,

    /// A worker with more than this many times the mean work gets no call for its prefix cache alone
    #[arg(
        long,
        env = "STOKER_AFFINITY_FACTOR",
        default_value_t = AFFINITY_FACTOR,
        value_parser = factor,
        value_name = "FACTOR"
    )]
    pub affinity_factor: f64,

    /// Memory for remembering which worker was sent which prefix, at most
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
        _ => {
            Err("write a number from 1, which is least affinity, to 1000000, for instance 3".into())
        }
    }
}

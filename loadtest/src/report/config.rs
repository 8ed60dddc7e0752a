//! The configuration of a run, as its results report it.

use serde::{Deserialize, Serialize};

/// The configuration, with defaults filled in.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[allow(missing_docs, reason = "named as the flags are")]
pub struct Config {
    pub target: String,
    pub endpoint: String,
    pub connections: usize,
    pub concurrency: usize,
    pub rate: Option<String>,
    pub arrivals: Option<String>,
    pub sweep: Option<String>,
    pub trace: Option<String>,
    pub trace_speed: Option<f64>,
    pub trace_length: Option<f64>,
    pub slo: Option<String>,
    pub requests: Option<u64>,
    pub warm_up: Option<u64>,
    pub duration_seconds: Option<f64>,
    pub deadline_seconds: Option<f64>,
    pub prompts: Option<String>,
    pub synthetic: Option<String>,
    pub shared_prefix: Option<String>,
    pub turns: u64,
    pub think_time_seconds: f64,
    pub cancel: Option<String>,
    pub max_tokens: Option<u32>,
    pub ignore_eos: bool,
    pub temperature: Option<f32>,
    pub seed: u64,
    pub verify: bool,
    pub expect: Option<String>,
    pub faults: Vec<String>,
}

//! What the driver says of a worker's GPU. Only workers on NVIDIA's have these.

use super::*;

const fn gauge(name: &'static str, unit: &'static str, help: &'static str) -> Metric {
    Metric { unit: Some(unit), ..metric(name, Kind::Gauge, &[], help) }
}

/// `stoker_gpu_utilization_ratio`
pub const UTILIZATION: Metric = gauge(
    "stoker_gpu_utilization",
    "ratio",
    "The part of the last moments in which some kernel ran, from 0 to 1",
);
/// `stoker_gpu_memory_used_bytes`
pub const MEMORY_USED: Metric =
    gauge("stoker_gpu_memory_used", "bytes", "Memory that is in use, by anybody");
/// `stoker_gpu_memory_size_bytes`
pub const MEMORY_SIZE: Metric = gauge("stoker_gpu_memory_size", "bytes", "Memory in all");
/// `stoker_gpu_power_watts`
pub const POWER: Metric = gauge("stoker_gpu_power", "watts", "Power that it draws");
/// `stoker_gpu_temperature_celsius`
pub const TEMPERATURE: Metric =
    gauge("stoker_gpu_temperature", "celsius", "Temperature of the chip");
/// `stoker_gpu_clock_hertz`
pub const CLOCK: Metric = gauge("stoker_gpu_clock", "hertz", "Clock of its processors");
/// `stoker_gpu_memory_clock_hertz`
pub const MEMORY_CLOCK: Metric = gauge("stoker_gpu_memory_clock", "hertz", "Clock of its memory");

/// `stoker_gpu_failures_total`
pub const FAILURES: Metric = metric(
    "stoker_gpu_failures",
    Kind::Counter,
    &[label::FEATURE],
    "Times that a part of the GPU did not work, and was left alone from then on",
);

/// All of them.
pub const ALL: &[Metric] =
    &[UTILIZATION, MEMORY_USED, MEMORY_SIZE, POWER, TEMPERATURE, CLOCK, MEMORY_CLOCK, FAILURES];

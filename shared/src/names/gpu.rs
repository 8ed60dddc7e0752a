//! Metrics of the GPU of a worker, as reported by the driver. Only workers on NVIDIA GPUs have
//! them.

use super::*;

const fn gauge(name: &'static str, unit: &'static str, help: &'static str) -> Metric {
    Metric { unit: Some(unit), ..metric(name, Kind::Gauge, &[], help) }
}

/// `stoker_gpu_utilization_ratio`
pub const UTILIZATION: Metric = gauge(
    "stoker_gpu_utilization",
    "ratio",
    "Fraction of the last sampling period in which a kernel ran, from 0 to 1",
);
/// `stoker_gpu_memory_used_bytes`
pub const MEMORY_USED: Metric =
    gauge("stoker_gpu_memory_used", "bytes", "Memory in use by all processes");
/// `stoker_gpu_memory_size_bytes`
pub const MEMORY_SIZE: Metric = gauge("stoker_gpu_memory_size", "bytes", "Total memory");
/// `stoker_gpu_power_watts`
pub const POWER: Metric = gauge("stoker_gpu_power", "watts", "Power draw");
/// `stoker_gpu_temperature_celsius`
pub const TEMPERATURE: Metric =
    gauge("stoker_gpu_temperature", "celsius", "Temperature of the GPU");
/// `stoker_gpu_clock_hertz`
pub const CLOCK: Metric =
    gauge("stoker_gpu_clock", "hertz", "Clock of the streaming multiprocessors");
/// `stoker_gpu_memory_clock_hertz`
pub const MEMORY_CLOCK: Metric = gauge("stoker_gpu_memory_clock", "hertz", "Clock of the memory");

/// `stoker_gpu_failures_total`
pub const FAILURES: Metric = metric(
    "stoker_gpu_failures",
    Kind::Counter,
    &[label::FEATURE],
    "Failures of a GPU feature, which is disabled from then on",
);

/// All metrics of this module.
pub const ALL: &[Metric] =
    &[UTILIZATION, MEMORY_USED, MEMORY_SIZE, POWER, TEMPERATURE, CLOCK, MEMORY_CLOCK, FAILURES];

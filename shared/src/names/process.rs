//! Metrics of the operating system, under the names that clients of Prometheus share.

use super::*;

/// `process_cpu_seconds_total`
pub const CPU: Metric = Metric {
    unit: Some("seconds"),
    ..metric("process_cpu", Kind::Counter, &[], "CPU time of the process, of user and system")
};
/// `process_resident_memory_bytes`
pub const RESIDENT_MEMORY: Metric = bytes("process_resident_memory", "Resident memory");
/// `process_virtual_memory_bytes`
pub const VIRTUAL_MEMORY: Metric = bytes("process_virtual_memory", "Virtual memory");
/// `process_start_time_seconds`
pub const START_TIME: Metric = Metric {
    unit: Some("seconds"),
    ..metric("process_start_time", Kind::Gauge, &[], "Start of the process, in Unix time")
};
/// `process_open_fds`
pub const OPEN_FDS: Metric = metric("process_open_fds", Kind::Gauge, &[], "Open file descriptors");
/// `process_max_fds`
pub const MAX_FDS: Metric =
    metric("process_max_fds", Kind::Gauge, &[], "Limit on open file descriptors");
/// `process_threads`
pub const THREADS: Metric = metric("process_threads", Kind::Gauge, &[], "Threads of the process");

const fn bytes(name: &'static str, help: &'static str) -> Metric {
    Metric { unit: Some("bytes"), ..metric(name, Kind::Gauge, &[], help) }
}

//! Peak resident memory of this process. Only Linux reports it.

use std::fs;

/// Resets the peak, so that memory used before the model is loaded does not count.
pub(crate) fn reset_peak() {
    // If the system does not allow it, the peak covers the whole lifetime of the process.
    let _ = fs::write("/proc/self/clear_refs", "5");
}

/// Returns the peak resident set size in bytes.
pub(crate) fn peak() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024)
}

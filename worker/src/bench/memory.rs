//! The most memory that this process has held, where the system says: on Linux.

use std::fs;

/// Forgets the peak so far: what was measured before the model is not the model's.
pub(super) fn forget_peak() {
    // Some systems do not allow it. Then the peak is that of the whole process.
    let _ = fs::write("/proc/self/clear_refs", "5");
}

/// The most bytes that were resident at once.
pub(super) fn peak() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024)
}

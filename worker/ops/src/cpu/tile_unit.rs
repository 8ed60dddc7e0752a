//! Whether tiles of AMX can be used.

/// Whether the CPU has AMX for bytes and the system permits this process to use it.
pub(super) fn is_available() -> bool {
    const AMX_TILE: u32 = 1 << 24;
    const AMX_INT8: u32 = 1 << 25;
    let features = std::arch::x86_64::__cpuid_count(7, 0).edx;
    features & AMX_TILE != 0 && features & AMX_INT8 != 0 && is_permitted()
}

/// Requests permission to use tiles. The system saves them on context switches only for processes
/// with permission.
#[cfg(target_os = "linux")]
fn is_permitted() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_long = 18;
    // SAFETY: it takes two integers and touches no memory.
    let refused =
        unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) };
    refused == 0
}

#[cfg(not(target_os = "linux"))]
fn is_permitted() -> bool {
    false
}

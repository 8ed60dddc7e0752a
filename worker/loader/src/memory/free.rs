//! The free memory of this process, as Linux reports it.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
};

use bytesize::ByteSize;
use stoker_ops::{Device, device::sensors::Sensors};

/// Free memory and what limits it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FreeMemory {
    /// Bytes that this process can still allocate.
    pub bytes: u64,
    /// The memory that these bytes belong to.
    pub source: MemorySource,
}

/// The memory that limits an allocation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemorySource {
    /// The memory of the machine.
    Machine,
    /// The memory of a cgroup, if less of it is free than of the machine's.
    Cgroup {
        /// Memory limit of the cgroup, in bytes.
        limit: u64,
    },
    /// The memory of a GPU.
    Gpu,
}

/// The file names of one cgroup version.
struct CgroupVersion {
    /// Folders in which the hierarchy may be mounted.
    roots: &'static [&'static str],
    limit: &'static str,
    usage: &'static str,
    /// Lines of `memory.stat` with the page cache of the cgroup and its descendants.
    page_cache: [&'static str; 2],
}

const V2: CgroupVersion = CgroupVersion {
    // The second is the mount point if both versions are in use.
    roots: &["/sys/fs/cgroup", "/sys/fs/cgroup/unified"],
    limit: "memory.max",
    usage: "memory.current",
    page_cache: ["inactive_file", "active_file"],
};

const V1: CgroupVersion = CgroupVersion {
    roots: &["/sys/fs/cgroup/memory"],
    limit: "memory.limit_in_bytes",
    usage: "memory.usage_in_bytes",
    page_cache: ["total_inactive_file", "total_active_file"],
};

impl FreeMemory {
    /// Returns the free memory of a GPU, if its driver reports it.
    pub fn of_gpu(device: &Device) -> Option<Self> {
        Some(Self { bytes: Sensors::of(device)?.free_memory()?, source: MemorySource::Gpu })
    }

    /// Returns the memory that this process can allocate now: the minimum of the machine's
    /// available memory and what the limits of its cgroup and all ancestors leave. `None` if the
    /// system does not report it.
    pub fn now() -> Option<Self> {
        Self::from_files(|path| fs::read_to_string(path).ok())
    }

    /// Does the same with file contents from `read`.
    fn from_files(read: impl Fn(&Path) -> Option<String>) -> Option<Self> {
        let machine = available(&read(Path::new("/proc/meminfo"))?)?;
        let cgroups = read(Path::new("/proc/self/cgroup")).unwrap_or_default();
        let limits = [(&V2, path_v2(&cgroups)), (&V1, path_v1(&cgroups))]
            .into_iter()
            .filter_map(|(version, path)| Some((version, path?)))
            .flat_map(|(version, path)| folders(version, path))
            .filter_map(|(version, folder)| version.free(&folder, &read));
        let tightest = limits.min_by_key(|free| free.bytes);
        let machine = Self { bytes: machine, source: MemorySource::Machine };
        Some(tightest.filter(|free| free.bytes < machine.bytes).unwrap_or(machine))
    }
}

impl fmt::Display for FreeMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = ByteSize::b(self.bytes);
        match self.source {
            MemorySource::Machine => write!(f, "this machine has {bytes} free"),
            MemorySource::Gpu => write!(f, "the GPU has {bytes} free"),
            MemorySource::Cgroup { limit } => write!(
                f,
                "this process may use {bytes} more (the limit of its cgroup is {})",
                ByteSize::b(limit)
            ),
        }
    }
}

impl CgroupVersion {
    /// Returns what the limit of the cgroup at `folder` leaves, if it has a limit.
    fn free(&self, folder: &Path, read: impl Fn(&Path) -> Option<String>) -> Option<FreeMemory> {
        // The limit of an unlimited cgroup is `max` or a number above all memory.
        let limit = number(&read(&folder.join(self.limit))?)?;
        let usage = number(&read(&folder.join(self.usage))?)?;
        // The page cache counts as used, but the kernel reclaims it when memory is needed.
        let stat = read(&folder.join("memory.stat")).unwrap_or_default();
        let page_cache: u64 = self.page_cache.iter().filter_map(|key| field(&stat, key)).sum();
        let used = usage.saturating_sub(page_cache);
        Some(FreeMemory {
            bytes: limit.saturating_sub(used),
            source: MemorySource::Cgroup { limit },
        })
    }
}

/// Returns the folders of a cgroup and all its ancestors. In a container, `path` may be a path of
/// the host, of which the container sees only the end: missing folders are skipped later, and the
/// root is always included.
fn folders<'a>(
    version: &'a CgroupVersion,
    path: &'a str,
) -> impl Iterator<Item = (&'a CgroupVersion, PathBuf)> + 'a {
    version.roots.iter().flat_map(move |root| {
        Path::new(path.trim_start_matches('/'))
            .ancestors()
            .map(move |ancestor| (version, Path::new(root).join(ancestor)))
    })
}

/// Returns `MemAvailable` of `/proc/meminfo`, in bytes.
fn available(meminfo: &str) -> Option<u64> {
    field(meminfo, "MemAvailable:")?.checked_mul(1024)
}

/// Returns the number after `key` at the start of a line.
fn field(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        if words.next() == Some(key) { number(words.next()?) } else { None }
    })
}

fn number(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

/// Returns the path after `0::` in `/proc/self/cgroup`.
fn path_v2(cgroups: &str) -> Option<&str> {
    cgroups.lines().find_map(|line| line.strip_prefix("0::"))
}

/// Returns the path of the memory controller's hierarchy, from a line `number:controllers:path`.
fn path_v1(cgroups: &str) -> Option<&str> {
    cgroups.lines().find_map(|line| {
        let (_, rest) = line.split_once(':')?;
        let (controllers, path) = rest.split_once(':')?;
        controllers.split(',').any(|name| name == "memory").then_some(path)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMINFO: &str = "MemTotal:       24684084 kB\nMemFree:         1000 kB\n\
                           MemAvailable:    8388608 kB\nBuffers:            6488 kB\n";
    const MIB: u64 = 1 << 20;

    fn free(files: &[(&str, &str)]) -> Option<FreeMemory> {
        FreeMemory::from_files(|path| {
            let file = files.iter().find(|(name, _)| Path::new(name) == path);
            file.map(|(_, text)| (*text).to_owned())
        })
    }

    #[test]
    fn without_cgroups_the_machine_is_the_limit() {
        assert_eq!(
            free(&[("/proc/meminfo", MEMINFO)]),
            Some(FreeMemory { bytes: 8 << 30, source: MemorySource::Machine })
        );
    }

    #[test]
    fn without_proc_the_free_memory_is_unknown() {
        assert_eq!(free(&[]), None);
        assert_eq!(free(&[("/proc/meminfo", "MemTotal: 1 kB\n")]), None);
    }

    #[test]
    fn the_tightest_ancestor_cgroup_is_the_limit() {
        let files = [
            ("/proc/meminfo", MEMINFO),
            ("/proc/self/cgroup", "0::/pods/one/worker\n"),
            ("/sys/fs/cgroup/pods/one/worker/memory.max", "max\n"),
            ("/sys/fs/cgroup/pods/one/worker/memory.current", "1048576\n"),
            ("/sys/fs/cgroup/pods/one/memory.max", "2147483648\n"),
            ("/sys/fs/cgroup/pods/one/memory.current", "1073741824\n"),
            ("/sys/fs/cgroup/pods/memory.max", "4294967296\n"),
            ("/sys/fs/cgroup/pods/memory.current", "1073741824\n"),
        ];
        assert_eq!(
            free(&files),
            Some(FreeMemory { bytes: 1 << 30, source: MemorySource::Cgroup { limit: 2 << 30 } })
        );
    }

    #[test]
    fn the_page_cache_counts_as_free() {
        let files = [
            ("/proc/meminfo", MEMINFO),
            ("/proc/self/cgroup", "0::/\n"),
            ("/sys/fs/cgroup/memory.max", "104857600\n"),
            ("/sys/fs/cgroup/memory.current", "104857600\n"),
            (
                "/sys/fs/cgroup/memory.stat",
                "anon 10\ninactive_file 10485760\nactive_file 20971520\n",
            ),
        ];
        assert_eq!(
            free(&files),
            Some(FreeMemory { bytes: 30 * MIB, source: MemorySource::Cgroup { limit: 100 * MIB } })
        );
    }

    #[test]
    fn a_container_sees_its_own_v1_cgroup_as_the_root() {
        let files = [
            ("/proc/meminfo", MEMINFO),
            ("/proc/self/cgroup", "9:name=systemd:/\n4:cpu,memory:/docker/ab12\n0::/\n"),
            ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "536870912\n"),
            ("/sys/fs/cgroup/memory/memory.usage_in_bytes", "268435456\n"),
            ("/sys/fs/cgroup/memory/memory.stat", "total_inactive_file 1048576\n"),
        ];
        assert_eq!(
            free(&files),
            Some(FreeMemory {
                bytes: 257 * MIB,
                source: MemorySource::Cgroup { limit: 512 * MIB }
            })
        );
    }

    #[test]
    fn a_limit_above_all_memory_is_ignored() {
        let files = [
            ("/proc/meminfo", MEMINFO),
            ("/proc/self/cgroup", "4:memory:/a\n"),
            ("/sys/fs/cgroup/memory/a/memory.limit_in_bytes", "9223372036854771712\n"),
            ("/sys/fs/cgroup/memory/a/memory.usage_in_bytes", "649539584\n"),
        ];
        assert_eq!(
            free(&files),
            Some(FreeMemory { bytes: 8 << 30, source: MemorySource::Machine })
        );
    }

    #[test]
    fn a_cgroup_over_its_limit_leaves_nothing() {
        let files = [
            ("/proc/meminfo", MEMINFO),
            ("/proc/self/cgroup", "0::/a\n"),
            ("/sys/fs/cgroup/a/memory.max", "1048576\n"),
            ("/sys/fs/cgroup/a/memory.current", "2097152\n"),
        ];
        assert_eq!(
            free(&files),
            Some(FreeMemory { bytes: 0, source: MemorySource::Cgroup { limit: MIB } })
        );
    }
}

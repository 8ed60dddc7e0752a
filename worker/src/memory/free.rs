//! How much memory this process may still use, as Linux tells.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
};

use bytesize::ByteSize;

/// What is free.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FreeMemory {
    /// Bytes that this process can still take.
    pub bytes: u64,
    /// Of what.
    pub of: Memory,
}

/// Whose memory is free.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Memory {
    /// The machine's.
    Machine,
    /// The control group's, where that leaves less than the machine has.
    Group {
        /// Its limit in bytes.
        limit: u64,
    },
    /// The GPU's.
    Gpu,
}

/// The files in which one version of control groups says what it limits.
struct Version {
    /// Where its groups are.
    roots: &'static [&'static str],
    limit: &'static str,
    usage: &'static str,
    /// Lines of `memory.stat` that count the cache of files, of the group and those below it.
    file_cache: [&'static str; 2],
}

const V2: Version = Version {
    // The second where both versions are in use.
    roots: &["/sys/fs/cgroup", "/sys/fs/cgroup/unified"],
    limit: "memory.max",
    usage: "memory.current",
    file_cache: ["inactive_file", "active_file"],
};

const V1: Version = Version {
    roots: &["/sys/fs/cgroup/memory"],
    limit: "memory.limit_in_bytes",
    usage: "memory.usage_in_bytes",
    file_cache: ["total_inactive_file", "total_active_file"],
};

impl FreeMemory {
    /// What this process can take now: the least of what the machine has and what the limits of its control
    /// group and of those above leave. `None` on systems that do not say.
    pub fn now() -> Option<Self> {
        Self::told_by(|path| fs::read_to_string(path).ok())
    }

    /// The same by the text of files that `read` gives.
    fn told_by(read: impl Fn(&Path) -> Option<String>) -> Option<Self> {
        let machine = available(&read(Path::new("/proc/meminfo"))?)?;
        let groups = read(Path::new("/proc/self/cgroup")).unwrap_or_default();
        let limited = [(&V2, path_v2(&groups)), (&V1, path_v1(&groups))]
            .into_iter()
            .filter_map(|(version, path)| Some((version, path?)))
            .flat_map(|(version, path)| folders(version, path))
            .filter_map(|(version, folder)| version.left(&folder, &read));
        let least = limited.min_by_key(|free| free.bytes);
        let machine = Self { bytes: machine, of: Memory::Machine };
        Some(least.filter(|free| free.bytes < machine.bytes).unwrap_or(machine))
    }
}

impl fmt::Display for FreeMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = ByteSize::b(self.bytes);
        match self.of {
            Memory::Machine => write!(f, "this machine has {bytes} free"),
            Memory::Gpu => write!(f, "the GPU has {bytes} free"),
            Memory::Group { limit } => write!(
                f,
                "this process may use {bytes} more (the limit of its control group is {})",
                ByteSize::b(limit)
            ),
        }
    }
}

impl Version {
    /// What the limit of the group at `folder` leaves, if it has one.
    fn left(&self, folder: &Path, read: impl Fn(&Path) -> Option<String>) -> Option<FreeMemory> {
        // A group without a limit says `max`, or a number beyond all memory.
        let limit = number(&read(&folder.join(self.limit))?)?;
        let usage = number(&read(&folder.join(self.usage))?)?;
        // Files read before count as used until somebody needs the memory: then they make room.
        let stat = read(&folder.join("memory.stat")).unwrap_or_default();
        let cached: u64 = self.file_cache.iter().filter_map(|key| field(&stat, key)).sum();
        let used = usage.saturating_sub(cached);
        Some(FreeMemory { bytes: limit.saturating_sub(used), of: Memory::Group { limit } })
    }
}

/// The folders of a group and of all above it. In a container a path may be that of the host, of which the
/// container sees the end only: folders that are not there say nothing, and the root is always among them.
fn folders<'a>(
    version: &'a Version,
    path: &'a str,
) -> impl Iterator<Item = (&'a Version, PathBuf)> + 'a {
    version.roots.iter().flat_map(move |root| {
        Path::new(path.trim_start_matches('/'))
            .ancestors()
            .map(move |part| (version, Path::new(root).join(part)))
    })
}

/// `MemAvailable` of `/proc/meminfo`, in bytes.
fn available(meminfo: &str) -> Option<u64> {
    field(meminfo, "MemAvailable:")?.checked_mul(1024)
}

/// The number after `key` at the beginning of a line.
fn field(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        if words.next() == Some(key) { number(words.next()?) } else { None }
    })
}

fn number(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

/// The path after `0::` in `/proc/self/cgroup`.
fn path_v2(groups: &str) -> Option<&str> {
    groups.lines().find_map(|line| line.strip_prefix("0::"))
}

/// The path of the hierarchy that limits memory: `number:controllers:path`.
fn path_v1(groups: &str) -> Option<&str> {
    groups.lines().find_map(|line| {
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
        FreeMemory::told_by(|path| {
            let known = files.iter().find(|(name, _)| Path::new(name) == path);
            known.map(|(_, text)| (*text).to_owned())
        })
    }

    #[test]
    fn without_groups_the_machine_counts() {
        assert_eq!(
            free(&[("/proc/meminfo", MEMINFO)]),
            Some(FreeMemory { bytes: 8 << 30, of: Memory::Machine })
        );
    }

    #[test]
    fn without_proc_nobody_can_tell() {
        assert_eq!(free(&[]), None);
        assert_eq!(free(&[("/proc/meminfo", "MemTotal: 1 kB\n")]), None);
    }

    #[test]
    fn the_tightest_group_above_the_process_counts() {
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
            Some(FreeMemory { bytes: 1 << 30, of: Memory::Group { limit: 2 << 30 } })
        );
    }

    #[test]
    fn the_cache_of_files_makes_room() {
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
            Some(FreeMemory { bytes: 30 * MIB, of: Memory::Group { limit: 100 * MIB } })
        );
    }

    #[test]
    fn a_container_sees_its_own_group_as_the_root_of_the_first_version() {
        let files = [
            ("/proc/meminfo", MEMINFO),
            ("/proc/self/cgroup", "9:name=systemd:/\n4:cpu,memory:/docker/ab12\n0::/\n"),
            ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "536870912\n"),
            ("/sys/fs/cgroup/memory/memory.usage_in_bytes", "268435456\n"),
            ("/sys/fs/cgroup/memory/memory.stat", "total_inactive_file 1048576\n"),
        ];
        assert_eq!(
            free(&files),
            Some(FreeMemory { bytes: 257 * MIB, of: Memory::Group { limit: 512 * MIB } })
        );
    }

    #[test]
    fn a_limit_beyond_all_memory_is_none() {
        let files = [
            ("/proc/meminfo", MEMINFO),
            ("/proc/self/cgroup", "4:memory:/a\n"),
            ("/sys/fs/cgroup/memory/a/memory.limit_in_bytes", "9223372036854771712\n"),
            ("/sys/fs/cgroup/memory/a/memory.usage_in_bytes", "649539584\n"),
        ];
        assert_eq!(free(&files), Some(FreeMemory { bytes: 8 << 30, of: Memory::Machine }));
    }

    #[test]
    fn a_group_over_its_limit_leaves_nothing() {
        let files = [
            ("/proc/meminfo", MEMINFO),
            ("/proc/self/cgroup", "0::/a\n"),
            ("/sys/fs/cgroup/a/memory.max", "1048576\n"),
            ("/sys/fs/cgroup/a/memory.current", "2097152\n"),
        ];
        assert_eq!(free(&files), Some(FreeMemory { bytes: 0, of: Memory::Group { limit: MIB } }));
    }
}

//! What the threads of this process do, as far as the operating system says.

use std::fs;

/// Most threads that are listed.
const MAX_THREADS: usize = 256;
/// Ticks of CPU time per second, which are the same on all architectures that Linux supports here.
const TICKS_PER_SECOND: f64 = 100.0;

/// One thread.
#[derive(Debug, Clone, PartialEq)]
pub struct Thread {
    /// Its number.
    pub id: u64,
    /// Its name, at most 15 bytes.
    pub name: String,
    /// What it does.
    pub state: &'static str,
    /// CPU time that it has used.
    pub cpu_seconds: f64,
    /// Function of the kernel that it waits in; empty if it does not wait or that is secret.
    pub waits_in: String,
}

/// Returns all threads. Empty where the operating system is not Linux.
pub fn all() -> Vec<Thread> {
    let Ok(tasks) = fs::read_dir("/proc/self/task") else { return Vec::new() };
    let thread = |entry: Result<fs::DirEntry, _>| {
        let path = entry.ok()?.path();
        let read = |file: &str| fs::read_to_string(path.join(file)).unwrap_or_default();
        parse(&read("stat"), &read("wchan"))
    };
    tasks.take(MAX_THREADS).filter_map(thread).collect()
}

/// Reads a line of `stat`, whose second field is the name in parentheses, which may contain anything.
fn parse(stat: &str, wchan: &str) -> Option<Thread> {
    let (id, rest) = stat.split_once(" (")?;
    let (name, rest) = rest.rsplit_once(") ")?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let state = match *fields.first()? {
        "R" => "running",
        "S" => "sleeping",
        "D" => "waiting for a device",
        "T" | "t" => "stopped",
        "Z" | "X" => "ended",
        _ => "unknown",
    };
    let ticks = |at: usize| fields.get(at).and_then(|field| field.parse::<f64>().ok());
    Some(Thread {
        id: id.parse().ok()?,
        name: name.to_owned(),
        state,
        cpu_seconds: (ticks(11)? + ticks(12)?) / TICKS_PER_SECOND,
        waits_in: if wchan == "0" { String::new() } else { wchan.to_owned() },
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn a_line_of_stat_is_read() {
        let stat = "17 (engine (a) b) S 1 1 1 0 -1 4 9 9 9 9 150 50 3 3 20 0 7 0 5 2097152 4";
        let thread = parse(stat, "futex_wait").unwrap();
        assert_eq!((thread.id, thread.name.as_str()), (17, "engine (a) b"));
        assert_eq!((thread.state, thread.cpu_seconds), ("sleeping", 2.0));
        assert_eq!(thread.waits_in, "futex_wait");
        assert_eq!(parse("", ""), None);
        assert_eq!(parse("1 (x) S", "0"), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_thread_is_listed() {
        let named = std::thread::Builder::new().name("a-test-thread".into());
        let listed = named.spawn(all).unwrap().join().unwrap();
        assert!(listed.iter().any(|thread| thread.name == "a-test-thread"), "{listed:?}");
    }
}

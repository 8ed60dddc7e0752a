//! Metrics of the process: what the operating system says of it at each scrape, and how late the
//! asynchronous runtime is.

use std::{
    fmt, fs,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use prometheus_client::{
    collector::Collector,
    encoding::DescriptorEncoder,
    metrics::{counter::ConstCounter, gauge::ConstGauge, histogram::Histogram},
    registry::Registry,
};
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::task::AbortOnDropHandle;

use crate::names::{self, process};

/// Interval of the task that measures the delay of the runtime.
const TICK: Duration = Duration::from_millis(100);

/// Registers all metrics of [`names::PROCESS`] that do not depend on the exporter. The delay of the
/// runtime is measured until the returned handle is dropped.
pub(super) fn register(registry: &mut Registry) -> AbortOnDropHandle<()> {
    let delay = names::EVENT_LOOP_DELAY.histogram();
    names::EVENT_LOOP_DELAY.register(registry, delay.clone());
    registry.register_collector(Box::new(ProcessCollector { started: SystemTime::now() }));
    AbortOnDropHandle::new(tokio::spawn(measure_delay(delay)))
}

async fn measure_delay(delay: Histogram) {
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let due = ticks.tick().await;
        delay.observe(Instant::now().saturating_duration_since(due).as_secs_f64());
    }
}

#[derive(Debug)]
struct ProcessCollector {
    started: SystemTime,
}

impl Collector for ProcessCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let started = self.started.duration_since(UNIX_EPOCH).unwrap_or_default();
        process::START_TIME.encode(&mut encoder, &ConstGauge::new(started.as_secs_f64()))?;
        let usage = Usage::now();
        process::CPU.encode(&mut encoder, &ConstCounter::new(usage.cpu.as_secs_f64()))?;
        for (metric, value) in [
            (process::RESIDENT_MEMORY, usage.resident_bytes),
            (process::VIRTUAL_MEMORY, usage.virtual_bytes),
            (process::OPEN_FDS, usage.open_fds),
            (process::MAX_FDS, usage.max_fds),
            (process::THREADS, usage.threads),
        ] {
            metric.encode(&mut encoder, &ConstGauge::new(value))?;
        }
        Ok(())
    }
}

/// What the process uses. Zero is what the operating system does not say; only Linux does.
#[derive(Debug, Default)]
struct Usage {
    cpu: Duration,
    resident_bytes: u64,
    virtual_bytes: u64,
    open_fds: u64,
    max_fds: u64,
    threads: u64,
}

impl Usage {
    fn now() -> Self {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
        let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
        let descriptors = fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
        // Without the descriptor that reads the folder.
        let open_fds = descriptors.saturating_sub(1) as u64;
        Self { open_fds, ..Self::parse(&status, &stat, &limits) }
    }

    fn parse(status: &str, stat: &str, limits: &str) -> Self {
        let line = |text: &str, name: &str| {
            let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
            rest.split_whitespace().next()?.parse::<u64>().ok()
        };
        let kib = |name| line(status, name).unwrap_or(0) * 1024;
        // Fields 14 and 15 are ticks in user and system mode. The second field is the name of the
        // program, in parentheses, and may contain anything.
        let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
        let ticks =
            fields.split_whitespace().skip(11).take(2).filter_map(|f| f.parse::<u64>().ok());
        Self {
            cpu: Duration::from_millis(ticks.sum::<u64>() * 1000 / TICKS_PER_SECOND),
            resident_bytes: kib("VmRSS:"),
            virtual_bytes: kib("VmSize:"),
            open_fds: 0,
            max_fds: line(limits, "Max open files").unwrap_or(0),
            threads: line(status, "Threads:").unwrap_or(0),
        }
    }
}

/// `USER_HZ`, which is the same on all architectures that Linux supports here.
const TICKS_PER_SECOND: u64 = 100;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_proc_are_read() {
        let status = "Name:\tx\nVmSize:\t    2048 kB\nVmRSS:\t 16 kB\nThreads:\t7\n";
        let stat = "1 (a ) b) S 0 1 1 0 -1 4 9 9 9 9 150 50 3 3 20 0 7 0 5 2097152 4";
        let limits = "Limit   Soft  Hard\nMax open files            1024   4096  files\n";
        let usage = Usage::parse(status, stat, limits);
        assert_eq!(usage.cpu, Duration::from_secs(2));
        assert_eq!((usage.virtual_bytes, usage.resident_bytes), (2 << 20, 16 << 10));
        assert_eq!((usage.max_fds, usage.threads), (1024, 7));
        let none = Usage::parse("", "", "");
        assert_eq!((none.cpu, none.max_fds), (Duration::ZERO, 0));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_process_has_values() {
        let usage = Usage::now();
        assert!(usage.resident_bytes > 1 << 20 && usage.virtual_bytes >= usage.resident_bytes);
        assert!(usage.open_fds >= 3 && usage.max_fds >= usage.open_fds && usage.threads >= 1);
    }
}

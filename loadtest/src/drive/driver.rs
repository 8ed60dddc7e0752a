//! Whether the load test itself was fast enough: a driver that wakes up late measures itself.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use rustix::time::{ClockId, clock_gettime};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use crate::measure::latency::Latency;

/// Interval at which the driver wakes up only to see how late it is.
const HEARTBEAT: Duration = Duration::from_millis(10);

/// Measures how late the driver is.
#[derive(Debug)]
pub struct Driver {
    late: Mutex<(Latency, u64)>,
    cpu_before: Duration,
    machine_before: Option<MachineTime>,
}

/// How the driver did.
#[derive(Debug, Clone, Default)]
pub struct DriverStats {
    /// How late it woke up: for requests, and for a heartbeat every 10 ms.
    pub late: Latency,
    /// Number of requests that waited for a free stream.
    pub waited: u64,
    /// Processor time of this process.
    pub cpu: Duration,
    /// Share of the processors of this machine that were busy. `None` on other systems than Linux.
    pub machine_busy: Option<f64>,
}

/// Processor time of this machine, in ticks.
#[derive(Debug, Clone, Copy)]
struct MachineTime {
    all: u64,
    idle: u64,
}

impl MachineTime {
    fn now() -> Option<Self> {
        Self::parse(&std::fs::read_to_string("/proc/stat").ok()?)
    }

    /// Reads user, nice, system, idle, iowait, irq, softirq and steal of all processors.
    fn parse(text: &str) -> Option<Self> {
        let line = text.lines().next()?.strip_prefix("cpu ")?;
        let ticks: Vec<u64> =
            line.split_whitespace().take(8).map(str::parse).collect::<Result<_, _>>().ok()?;
        Some(Self { all: ticks.iter().sum(), idle: ticks.get(3)? + ticks.get(4)? })
    }

    /// Returns the share that was busy since `before`.
    fn busy_since(self, before: Self) -> Option<f64> {
        let all = self.all.checked_sub(before.all).filter(|ticks| *ticks > 0)?;
        Some(1.0 - self.idle.saturating_sub(before.idle) as f64 / all as f64)
    }
}

impl Driver {
    /// Starts to measure.
    pub fn start() -> Self {
        Self { late: Mutex::default(), cpu_before: cpu_time(), machine_before: MachineTime::now() }
    }

    /// Waits for the scheduled time of a request, unless it has passed because no stream was free.
    pub async fn wait_until(&self, at: Instant) {
        if Instant::now() > at {
            self.late.lock().unwrap_or_else(PoisonError::into_inner).1 += 1;
            return;
        }
        sleep_until(at).await;
        self.woke_up(at);
    }

    /// Wakes up regularly. Never returns.
    pub async fn heartbeat(&self) {
        let mut ticks = interval(HEARTBEAT);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        loop {
            let due = ticks.tick().await;
            self.woke_up(due);
        }
    }

    fn woke_up(&self, due: Instant) {
        let late = due.elapsed();
        self.late.lock().unwrap_or_else(PoisonError::into_inner).0.add(late);
    }

    /// Returns what was measured so far.
    pub fn stats(&self) -> DriverStats {
        let (late, waited) = self.late.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let machine = MachineTime::now().zip(self.machine_before);
        DriverStats {
            late,
            waited,
            cpu: cpu_time().saturating_sub(self.cpu_before),
            machine_busy: machine.and_then(|(now, before)| now.busy_since(before)),
        }
    }
}

fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(
        time.tv_sec.try_into().unwrap_or_default(),
        time.tv_nsec.try_into().unwrap_or_default(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_is_busy_when_it_is_not_idle() {
        let at = |text| MachineTime::parse(text);
        let before = at("cpu  100 0 50 800 50 0 0 0 0 0\ncpu0 1 2\n");
        let after = at("cpu  160 0 70 810 55 0 0 5 0 0\n");
        let busy = after.zip(before).and_then(|(after, before)| after.busy_since(before));
        assert!(busy.is_some_and(|busy| (busy - 0.85).abs() < 1e-9), "{busy:?}");
        assert!(at("").is_none() && at("cpu  1 2").is_none() && at("cpu  a b c d e").is_none());
        assert!(before.zip(before).is_some_and(|(a, b)| a.busy_since(b).is_none()));
    }

    #[tokio::test(start_paused = true)]
    async fn lateness_is_of_wake_ups_and_not_of_busy_streams() {
        let driver = Driver::start();
        let at = Instant::now() + Duration::from_secs(1);
        driver.wait_until(at).await;
        assert!(Instant::now() >= at);
        tokio::time::advance(Duration::from_secs(5)).await;
        driver.wait_until(at).await;
        let stats = driver.stats();
        assert_eq!((stats.late.count(), stats.waited), (1, 1));
        assert!(stats.late.quantile(1.0) < Some(0.01));
        tokio::select! {
            () = driver.heartbeat() => {}
            () = tokio::time::sleep(Duration::from_secs(1)) => {}
        }
        let beats = driver.stats().late.count() - 1;
        assert!((99..=101).contains(&beats), "{beats}");
    }
}

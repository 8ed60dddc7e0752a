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
}

impl Driver {
    /// Starts to measure.
    pub fn start() -> Self {
        Self { late: Mutex::default(), cpu_before: cpu_time() }
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
        DriverStats { late, waited, cpu: cpu_time().saturating_sub(self.cpu_before) }
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

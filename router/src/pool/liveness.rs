//! Detection of stalled workers. Streams and worker selection react to it long before a dead
//! connection is noticed.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use stoker_proto::v1::Load;
use tokio::{sync::watch, time::Instant};

/// Delay of a timer from which this process itself is considered to have been paused. Reports
/// received meanwhile are still unread, so a timeout has no meaning yet.
pub(crate) const LATE: Duration = Duration::from_millis(100);
/// Time granted to read these reports.
pub(crate) const CATCH_UP: Duration = Duration::from_millis(500);

/// Stall state of a worker, shared by all users of the worker. It outlives connections.
#[derive(Debug)]
pub(crate) struct Liveness {
    stalled: watch::Sender<bool>,
    /// Copy of `stalled` for cheap reads: worker selection reads it for every worker.
    now: AtomicBool,
}

impl Default for Liveness {
    fn default() -> Self {
        Self { stalled: watch::Sender::new(false), now: AtomicBool::new(false) }
    }
}

impl Liveness {
    /// Whether the worker is stalled: it makes no progress although it has work, or sends no
    /// reports.
    pub(crate) fn is_stalled(&self) -> bool {
        self.now.load(Ordering::Relaxed)
    }

    /// Resolves once the worker is stalled.
    pub(crate) fn stalled(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut stalled = self.stalled.subscribe();
        // Fails when the worker is dropped, after which the state never changes.
        async move {
            if stalled.wait_for(|stalled| *stalled).await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Sets the state. Returns whether it changed.
    pub(crate) fn set_stalled(&self, now: bool) -> bool {
        self.now.store(now, Ordering::Relaxed);
        self.stalled.send_if_modified(|stalled| std::mem::replace(stalled, now) != now)
    }
}

/// Detects a stall from a worker's load reports.
#[derive(Debug)]
pub(super) struct ProgressMonitor {
    timeout: Duration,
    /// Step and progress counters at the last progress.
    counters: Option<(u64, u64)>,
    /// When the worker counts as stalled.
    due: Instant,
    /// Whether `due` was extended since the last progress because this process was late.
    extended: bool,
}

impl ProgressMonitor {
    /// A worker is stalled if it shows no progress for `timeout`.
    pub(super) fn new(timeout: Duration) -> Self {
        Self { timeout, counters: None, due: Instant::now() + timeout, extended: false }
    }

    /// Processes a load report. Returns whether it shows progress: a counter changed, or the worker
    /// is idle.
    pub(super) fn on_load(&mut self, load: &Load) -> bool {
        let idle = load.running == 0 && load.waiting == 0;
        let counters = Some((load.step, load.progress));
        let progressed = idle || self.counters != counters;
        if progressed {
            self.counters = counters;
            self.extended = false;
            self.due = Instant::now() + self.timeout;
        }
        progressed
    }

    /// Resolves once the worker is stalled.
    pub(super) async fn stalled(&mut self) {
        loop {
            tokio::time::sleep_until(self.due).await;
            let now = Instant::now();
            // Extended once only: a router that is always late must still detect stalls.
            if self.extended || now.saturating_duration_since(self.due) < LATE {
                return;
            }
            self.extended = true;
            self.due = now + CATCH_UP;
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(2);

    fn busy(step: u64, progress: u64) -> Load {
        Load { running: 1, step, progress, ..Default::default() }
    }

    async fn time_until_stalled(monitor: &mut ProgressMonitor) -> Duration {
        let start = Instant::now();
        monitor.stalled().await;
        start.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn steps_parts_of_steps_and_idling_are_progress() {
        let mut monitor = ProgressMonitor::new(TIMEOUT);
        for load in [busy(1, 0), busy(2, 0), busy(2, 1), Load::default(), Load::default()] {
            tokio::time::advance(TIMEOUT / 2).await;
            assert!(monitor.on_load(&load), "{load:?}");
        }
        assert!(monitor.on_load(&busy(3, 0)));
        tokio::time::advance(TIMEOUT / 2).await;
        assert!(!monitor.on_load(&busy(3, 0)), "a report without progress");
        assert_eq!(time_until_stalled(&mut monitor).await, TIMEOUT / 2);
    }

    #[tokio::test(start_paused = true)]
    async fn silence_is_no_progress() {
        let mut monitor = ProgressMonitor::new(TIMEOUT);
        monitor.on_load(&Load::default());
        assert_eq!(time_until_stalled(&mut monitor).await, TIMEOUT);
    }

    #[tokio::test(start_paused = true)]
    async fn a_paused_router_reads_pending_reports_before_it_detects_a_stall() {
        let mut monitor = ProgressMonitor::new(TIMEOUT);
        let mut stalled = Box::pin(monitor.stalled());
        assert!(stalled.as_mut().now_or_never().is_none());
        tokio::time::advance(TIMEOUT * 10).await;
        assert!(stalled.as_mut().now_or_never().is_none(), "late: extended");
        let start = Instant::now();
        stalled.await;
        assert_eq!(start.elapsed(), CATCH_UP);
    }

    #[tokio::test(start_paused = true)]
    async fn a_change_is_returned_once_and_seen_by_all_waiters() {
        let liveness = Liveness::default();
        let stalled = liveness.stalled();
        assert!(liveness.set_stalled(true) && !liveness.set_stalled(true));
        stalled.await;
        assert!(liveness.set_stalled(false));
        assert!(liveness.stalled().now_or_never().is_none());
    }
}

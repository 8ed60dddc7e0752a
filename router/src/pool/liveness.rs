//! Whether a worker makes progress: what streams and the choice of workers go by, long before a connection
//! is known to be dead.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use stoker_proto::v1::Load;
use tokio::{sync::watch, time::Instant};

/// A timer that is this late means that this process did not run. What workers said meanwhile is still to be
/// read, so nothing can be concluded yet.
pub(crate) const LATE: Duration = Duration::from_millis(100);
/// Long enough to read it.
pub(crate) const CATCH_UP: Duration = Duration::from_millis(500);

/// Shared by all who use a worker. It outlives connections.
#[derive(Debug)]
pub(crate) struct Liveness {
    stalled: watch::Sender<bool>,
    /// The same, for those who only look: the choice does, at everybody.
    now: AtomicBool,
}

impl Default for Liveness {
    fn default() -> Self {
        Self { stalled: watch::Sender::new(false), now: AtomicBool::new(false) }
    }
}

impl Liveness {
    /// Whether it stands still although it has something to do, or says nothing.
    pub(crate) fn is_stalled(&self) -> bool {
        self.now.load(Ordering::Relaxed)
    }

    /// Resolves once it stands still.
    pub(crate) fn stalled(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut stalled = self.stalled.subscribe();
        // Fails when the worker is forgotten: then nobody will ever say that it stands.
        async move {
            if stalled.wait_for(|stalled| *stalled).await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Says which it is. True if that is news.
    pub(crate) fn set_stalled(&self, now: bool) -> bool {
        self.now.store(now, Ordering::Relaxed);
        self.stalled.send_if_modified(|stalled| std::mem::replace(stalled, now) != now)
    }
}

/// Follows a worker's reports and says when it stands still.
#[derive(Debug)]
pub(super) struct ProgressMonitor {
    patience: Duration,
    /// The last sign of progress: a counter moved, or there was nothing to do.
    counters: Option<(u64, u64)>,
    due: Instant,
    /// This process was late since then.
    excused: bool,
}

impl ProgressMonitor {
    /// A worker stands still if it gives no sign of progress for `patience`.
    pub(super) fn new(patience: Duration) -> Self {
        Self { patience, counters: None, due: Instant::now() + patience, excused: false }
    }

    /// A report came. True if it is a sign of progress.
    pub(super) fn heard(&mut self, load: &Load) -> bool {
        let idle = load.running == 0 && load.waiting == 0;
        let counters = Some((load.step, load.progress));
        let moves = idle || self.counters != counters;
        if moves {
            self.counters = counters;
            self.excused = false;
            self.due = Instant::now() + self.patience;
        }
        moves
    }

    /// Resolves once the worker stands still.
    pub(super) async fn stops(&mut self) {
        loop {
            tokio::time::sleep_until(self.due).await;
            let now = Instant::now();
            // Excused once: a router that is always late has to conclude something all the same.
            if self.excused || now.saturating_duration_since(self.due) < LATE {
                return;
            }
            self.excused = true;
            self.due = now + CATCH_UP;
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(2);

    fn busy(step: u64, progress: u64) -> Load {
        Load { running: 1, step, progress, ..Default::default() }
    }

    async fn stops_after(pulse: &mut ProgressMonitor) -> Duration {
        let began = Instant::now();
        pulse.stops().await;
        began.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn steps_pieces_of_steps_and_rest_are_progress() {
        let mut pulse = ProgressMonitor::new(PATIENCE);
        for load in [busy(1, 0), busy(2, 0), busy(2, 1), Load::default(), Load::default()] {
            tokio::time::advance(PATIENCE / 2).await;
            assert!(pulse.heard(&load), "{load:?}");
        }
        assert!(pulse.heard(&busy(3, 0)));
        tokio::time::advance(PATIENCE / 2).await;
        assert!(!pulse.heard(&busy(3, 0)), "words without progress are none");
        assert_eq!(stops_after(&mut pulse).await, PATIENCE / 2);
    }

    #[tokio::test(start_paused = true)]
    async fn silence_is_no_progress() {
        let mut pulse = ProgressMonitor::new(PATIENCE);
        pulse.heard(&Load::default());
        assert_eq!(stops_after(&mut pulse).await, PATIENCE);
    }

    #[tokio::test(start_paused = true)]
    async fn a_router_that_did_not_run_reads_first_what_was_said_meanwhile() {
        let mut pulse = ProgressMonitor::new(PATIENCE);
        let mut stops = Box::pin(pulse.stops());
        assert!(stops.as_mut().now_or_never().is_none());
        tokio::time::advance(PATIENCE * 10).await;
        assert!(stops.as_mut().now_or_never().is_none(), "late: nothing is concluded");
        let began = Instant::now();
        stops.await;
        assert_eq!(began.elapsed(), CATCH_UP);
    }

    #[tokio::test(start_paused = true)]
    async fn news_is_told_once_and_heard_by_all() {
        let liveness = Liveness::default();
        let stands = liveness.stalled();
        assert!(liveness.set_stalled(true) && !liveness.set_stalled(true));
        stands.await;
        assert!(liveness.set_stalled(false));
        assert!(liveness.stalled().now_or_never().is_none());
    }
}

//! Which windows there are, and what a time belongs to.

use std::time::Duration;

use tokio::time::Instant;

/// The last requests of a window may end in the next one, so they are not measured.
const TAIL: Duration = Duration::from_secs(1);

/// The windows of a run: quiet, hostile, quiet, hostile, until the end.
#[derive(Debug, Clone, Copy)]
pub struct Timetable {
    start: Instant,
    window: Duration,
    settle: Duration,
    windows: u32,
}

/// What a time belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot {
    /// Number of the window, from 0.
    pub window: usize,
    /// Whether latencies are measured.
    pub measured: bool,
}

impl Timetable {
    /// Creates as many pairs of windows as `duration` has, and at least one. Windows that would be
    /// longer than `duration` permits are shorter.
    pub fn new(start: Instant, duration: Duration, window: Duration, settle: Duration) -> Self {
        let window = window.min(duration / 2);
        let pairs = (duration.as_secs_f64() / (2.0 * window.as_secs_f64())).round().max(1.0);
        Self { start, window, settle, windows: 2 * pairs as u32 }
    }

    /// Returns the time at which the first window starts.
    pub fn start(&self) -> Instant {
        self.start
    }

    /// Returns the number of windows.
    pub fn windows(&self) -> usize {
        self.windows as usize
    }

    /// Returns the length of a window.
    pub fn window(&self) -> Duration {
        self.window
    }

    /// Returns when a window ends.
    pub fn end_of(&self, window: usize) -> Instant {
        self.start + self.window * (window as u32 + 1)
    }

    /// Returns whether a window is hostile.
    pub fn is_hostile(window: usize) -> bool {
        window % 2 == 1
    }

    /// Returns what `time` belongs to. `None` after the end.
    pub fn slot(&self, time: Instant) -> Option<Slot> {
        let since = time.saturating_duration_since(self.start).as_nanos();
        let length = self.window.as_nanos().max(1);
        let window = (since / length) as usize;
        let offset = Duration::from_nanos((since % length) as u64);
        let measured = offset >= self.settle && offset + TAIL <= self.window;
        (window < self.windows()).then_some(Slot { window, measured })
    }
}

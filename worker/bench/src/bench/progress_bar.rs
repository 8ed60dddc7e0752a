//! The progress of all jobs on a terminal.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// A progress bar on standard error. Draws nothing if standard error is not a terminal.
pub(in crate::bench) struct ProgressDisplay(ProgressBar);

impl ProgressDisplay {
    /// Creates a bar for `jobs` jobs.
    pub(in crate::bench) fn new(jobs: usize) -> Self {
        let bar = ProgressBar::with_draw_target(Some(jobs as u64), ProgressDrawTarget::stderr());
        let style = ProgressStyle::with_template("{wide_bar:.dim} {pos}/{len}  {elapsed}  {msg}");
        // The template is a valid constant, so the default is never used.
        let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
        bar.set_style(style.progress_chars("━╸ "));
        Self(bar)
    }

    /// Shows what is going on.
    pub(in crate::bench) fn message(&self, message: String) {
        self.0.set_message(message);
    }

    /// Counts a job that is done.
    pub(in crate::bench) fn finish_job(&self) {
        self.0.inc(1);
    }

    /// Runs `print` with the bar hidden, so that its output appears above it.
    pub(in crate::bench) fn print<T>(&self, print: impl FnOnce() -> T) -> T {
        self.0.suspend(print)
    }
}

impl Drop for ProgressDisplay {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

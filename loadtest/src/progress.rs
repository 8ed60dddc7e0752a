//! The progress line of a terminal. Without a terminal, nothing is shown.

use std::{collections::VecDeque, sync::atomic::Ordering, time::Duration};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::{call::LiveCounters, report::thousands, results::Results, schedule::End};

/// Time window of the token rate.
const WINDOW: Duration = Duration::from_secs(2);

/// The progress line.
#[derive(Debug)]
pub struct ProgressLine {
    bar: ProgressBar,
    end: End,
    /// Token counts within the window, with their times.
    samples: VecDeque<(Duration, u64)>,
}

impl ProgressLine {
    /// Creates a progress line on standard error.
    pub fn new(end: End) -> Self {
        let (length, template) = match end {
            End::Requests(count) => (count, "{wide_bar:.dim} {pos}/{len}  {msg}"),
            // Progress in milliseconds.
            End::After(time) => (
                u64::try_from(time.as_millis()).unwrap_or(u64::MAX),
                "{wide_bar:.dim} {percent} %  {msg}",
            ),
        };
        // Hidden if standard error is not a terminal.
        let bar = ProgressBar::with_draw_target(Some(length), ProgressDrawTarget::stderr());
        let style = ProgressStyle::with_template(template);
        // Does not fail: the template is a constant.
        let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
        bar.set_style(style.progress_chars("━╸ "));
        Self { bar, end, samples: VecDeque::new() }
    }

    /// Updates the line.
    pub fn show(&mut self, results: &Results, live: &LiveCounters, elapsed: Duration) {
        if self.bar.is_hidden() {
            return;
        }
        let done = results.count();
        let tokens = live.tokens.load(Ordering::Relaxed);
        let running = live.sent.load(Ordering::Relaxed).saturating_sub(done);
        let rate = thousands(self.rate(elapsed, tokens));
        let mut message = format!("{running} running, {rate} tokens/s");
        if results.failed() > 0 {
            message.push_str(&format!(", {} failed", thousands(results.failed())));
        }
        self.bar.set_message(message);
        self.bar.set_position(match self.end {
            End::Requests(_) => done,
            End::After(_) => u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX),
        });
    }

    /// Returns the tokens per second within the window.
    fn rate(&mut self, now: Duration, tokens: u64) -> u64 {
        let samples = &mut self.samples;
        samples.push_back((now, tokens));
        while samples.front().is_some_and(|(at, _)| now.saturating_sub(*at) > WINDOW) {
            samples.pop_front();
        }
        match samples.front() {
            Some((at, count)) if now > *at => {
                ((tokens - count) as f64 / (now - *at).as_secs_f64()).round() as u64
            }
            _ => 0,
        }
    }
}

impl Drop for ProgressLine {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

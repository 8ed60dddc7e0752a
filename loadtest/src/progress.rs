//! How it goes: one line on a terminal, written over and over. A pipe gets none.

use std::{collections::VecDeque, sync::atomic::Ordering, time::Duration};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::{call::Live, report::thousands, results::Results, schedule::End};

/// Tokens a second are those of the last two seconds.
const WINDOW: Duration = Duration::from_secs(2);

/// The line.
#[derive(Debug)]
pub struct Progress {
    bar: ProgressBar,
    end: End,
    /// Tokens at moments of the past.
    past: VecDeque<(Duration, u64)>,
}

impl Progress {
    /// A line on standard error.
    pub fn new(end: End) -> Self {
        let (length, template) = match end {
            End::Requests(count) => (count, "{wide_bar:.dim} {pos}/{len}  {msg}"),
            // Of the time, in milliseconds.
            End::After(time) => (
                u64::try_from(time.as_millis()).unwrap_or(u64::MAX),
                "{wide_bar:.dim} {percent} %  {msg}",
            ),
        };
        // Hides itself where there is no terminal.
        let bar = ProgressBar::with_draw_target(Some(length), ProgressDrawTarget::stderr());
        let style = ProgressStyle::with_template(template);
        // The template is a constant; without it there would be the default line.
        let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
        bar.set_style(style.progress_chars("━╸ "));
        Self { bar, end, past: VecDeque::new() }
    }

    /// Writes it anew.
    pub fn show(&mut self, results: &Results, live: &Live, elapsed: Duration) {
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

    /// Tokens a second of late.
    fn rate(&mut self, now: Duration, tokens: u64) -> u64 {
        let past = &mut self.past;
        past.push_back((now, tokens));
        while past.front().is_some_and(|(at, _)| now.saturating_sub(*at) > WINDOW) {
            past.pop_front();
        }
        match past.front() {
            Some((at, before)) if now > *at => {
                ((tokens - before) as f64 / (now - *at).as_secs_f64()).round() as u64
            }
            _ => 0,
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

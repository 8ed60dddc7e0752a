//! What is shown while the load runs: a few lines that are redrawn on a terminal, else a line every few
//! seconds.

use std::{
    collections::VecDeque,
    io::{IsTerminal, stderr},
    time::Duration,
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::{
    arrivals::schedule::End,
    measure::{latency::Latency, results::Results},
    report::format::{decimal, duration, millis, thousands},
    targets::outcome::LiveCounters,
};

/// Time between two samples of the rates.
const SAMPLE: Duration = Duration::from_millis(500);
/// Number of samples that a sparkline has.
const SAMPLES: usize = 40;
/// Number of the last samples whose mean is the current rate.
const CURRENT: usize = 4;
/// Interval of lines without a terminal. Shorter runs print none.
const LINE_INTERVAL: Duration = Duration::from_secs(10);
const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// Shows the progress of a pass on standard error.
#[derive(Debug)]
pub struct Progress {
    /// `None` without a terminal.
    bar: Option<ProgressBar>,
    label: String,
    end: End,
    requests: Rate,
    tokens: Rate,
    next_sample: Duration,
    next_line: Duration,
}

impl Progress {
    /// Starts to show a pass, which `label` describes if it is not the only one.
    pub fn new(end: End, label: &str) -> Self {
        let bar = stderr().is_terminal().then(|| bar(end));
        Self {
            bar,
            label: label.to_owned(),
            end,
            requests: Rate::default(),
            tokens: Rate::default(),
            next_sample: SAMPLE,
            next_line: LINE_INTERVAL,
        }
    }

    /// Updates what is shown.
    pub fn show(&mut self, results: &Results, live: &LiveCounters, elapsed: Duration) {
        if elapsed >= self.next_sample {
            self.requests.sample(elapsed, results.count());
            self.tokens.sample(elapsed, live.tokens());
            self.next_sample = elapsed + SAMPLE;
        }
        match &self.bar {
            Some(bar) => {
                bar.set_position(match self.end {
                    End::Requests(_) => results.count(),
                    End::After(_) => u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX),
                });
                bar.set_message(self.lines(results, live));
            }
            None if elapsed >= self.next_line => {
                self.next_line += LINE_INTERVAL;
                eprintln!("{}", self.line(results, live, elapsed));
            }
            None => {}
        }
    }

    /// The lines below the bar.
    fn lines(&self, results: &Results, live: &LiveCounters) -> String {
        let latency = &results.latency;
        let rate = |name: &str, rate: &Rate| {
            format!("{name:<14}{:>10}/s  {}", decimal(rate.current()), rate.sparkline())
        };
        [
            format!("{}{}", self.label, counts(results, live)),
            rate("requests", &self.requests),
            rate("tokens", &self.tokens),
            format!("{:<14}{:>10}  {:>10}  {:>10}", "latency, ms", "p50", "p90", "p99"),
            percentiles("first token", &latency.first_token),
            percentiles("inter-token", &latency.inter_token),
        ]
        .join("\n")
    }

    fn line(&self, results: &Results, live: &LiveCounters, elapsed: Duration) -> String {
        let ttft = |q| results.latency.first_token.quantile(q).map_or("-".into(), duration);
        let itl = |q| results.latency.inter_token.quantile(q).map_or("-".into(), duration);
        format!(
            "{} s: {}{}, {} requests/s, {} tokens/s, first token {} (p99 {}), inter-token {} (p99 {})",
            elapsed.as_secs(),
            self.label,
            counts(results, live),
            decimal(self.requests.current()),
            decimal(self.tokens.current()),
            ttft(0.5),
            ttft(0.99),
            itl(0.5),
            itl(0.99),
        )
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn bar(end: End) -> ProgressBar {
    let (length, template) = match end {
        End::Requests(count) => (count, "{wide_bar:.dim} {pos}/{len}\n{msg}"),
        // Progress in milliseconds.
        End::After(time) => (
            u64::try_from(time.as_millis()).unwrap_or(u64::MAX),
            "{wide_bar:.dim} {percent} %\n{msg}",
        ),
    };
    let bar = ProgressBar::with_draw_target(Some(length), ProgressDrawTarget::stderr());
    // Does not fail: the template is a constant.
    let style = ProgressStyle::with_template(template);
    let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
    bar.set_style(style.progress_chars("━╸ "));
    bar
}

fn counts(results: &Results, live: &LiveCounters) -> String {
    let running = live.sent().saturating_sub(results.count());
    let mut text =
        format!("{} complete, {} running", thousands(results.complete), thousands(running));
    for (name, count) in [("failed", results.failed()), ("resumed", results.reported.resumes)] {
        if count > 0 {
            text.push_str(&format!(", {} {name}", thousands(count)));
        }
    }
    text
}

fn percentiles(name: &str, latency: &Latency) -> String {
    let at = |q| latency.quantile(q).map_or("-".into(), |seconds| millis(seconds, 1));
    format!("{name:<14}{:>10}  {:>10}  {:>10}", at(0.5), at(0.9), at(0.99))
}

/// A rate over time.
#[derive(Debug, Default)]
struct Rate {
    last: (Duration, u64),
    samples: VecDeque<f64>,
}

impl Rate {
    /// Adds the rate since the last sample. `total` only grows.
    fn sample(&mut self, now: Duration, total: u64) {
        let (at, before) = self.last;
        let seconds = now.saturating_sub(at).as_secs_f64().max(1e-3);
        self.last = (now, total);
        self.samples.push_back(total.saturating_sub(before) as f64 / seconds);
        if self.samples.len() > SAMPLES {
            self.samples.pop_front();
        }
    }

    fn current(&self) -> f64 {
        let last = self.samples.iter().rev().take(CURRENT);
        last.clone().sum::<f64>() / last.count().max(1) as f64
    }

    fn sparkline(&self) -> String {
        let max = self.samples.iter().copied().fold(0.0, f64::max);
        let bar = |rate: &f64| {
            let height = if max > 0.0 { rate / max * (BARS.len() - 1) as f64 } else { 0.0 };
            BARS[height.round() as usize]
        };
        self.samples.iter().map(bar).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_of_the_last_samples_and_drawn_over_time() {
        let mut rate = Rate::default();
        for (second, total) in [(1, 0), (2, 10), (3, 30), (4, 70), (5, 140)] {
            rate.sample(Duration::from_secs(second), total);
        }
        assert!((rate.current() - 35.0).abs() < 1e-9, "{}", rate.current());
        assert_eq!(rate.sparkline(), "▁▂▃▅█");
        (6..100).for_each(|second| rate.sample(Duration::from_secs(second), 140));
        assert_eq!(rate.sparkline(), "▁".repeat(SAMPLES));
    }
}

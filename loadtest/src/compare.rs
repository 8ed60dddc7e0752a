//! Compares two sides, each of one or more JSON files, and says what differs beyond noise.

mod interval;
mod metric;
mod runs;

use std::{io, io::Write, process::ExitCode};

use crate::{cli::CompareArgs, error::Error};
use interval::Interval;
use metric::{METRICS, Metric};
use runs::Side;

/// Smallest relative difference that counts where a side has one run: what two runs of the same thing
/// commonly differ by, which one run cannot show.
const ONE_RUN_THRESHOLD: f64 = 0.05;

/// What is known of a metric on both sides.
struct Row {
    metric: &'static Metric,
    base: f64,
    new: f64,
    /// Interval of the ratio of new to base, with 95 % confidence.
    interval: Option<Interval>,
    verdict: Verdict,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Better,
    Worse,
    /// No difference is seen beyond noise.
    Same,
    /// There is too little data.
    Unknown,
}

impl Verdict {
    fn name(self) -> &'static str {
        match self {
            Self::Better => "better",
            Self::Worse => "worse",
            Self::Same => "no difference seen",
            Self::Unknown => "too few requests",
        }
    }

    /// Returns the verdict on a ratio, of which differences below `threshold` do not count.
    fn of(metric: &Metric, interval: Option<Interval>, threshold: f64) -> Self {
        let Some(interval) = interval else { return Self::Unknown };
        // From the middle of the interval, and the interval must not include 1.
        let beyond = (interval.middle.ln().abs()) >= (1.0 + threshold).ln();
        match (interval.low > 1.0 && beyond, interval.high < 1.0 && beyond) {
            (true, _) if metric.higher_is_better => Self::Better,
            (true, _) => Self::Worse,
            (_, true) if metric.higher_is_better => Self::Worse,
            (_, true) => Self::Better,
            _ => Self::Same,
        }
    }
}

/// Compares the files, and prints a table and a verdict. Returns exit code 1 if something is worse.
pub fn run(args: &CompareArgs) -> Result<ExitCode, Error> {
    let (base, new) = (Side::read(&args.base)?, Side::read(&args.new)?);
    if !args.unlike {
        base.check_like(&new)?;
    }
    let repeated = base.runs.len() > 1 && new.runs.len() > 1;
    let threshold = args.threshold.unwrap_or(if repeated { 0.0 } else { ONE_RUN_THRESHOLD });
    let rows: Vec<Row> =
        METRICS.iter().filter_map(|metric| row(metric, &base, &new, threshold)).collect();
    let text = report(&base, &new, &rows, threshold, repeated);
    match io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return Err(error.into()),
        _ => {}
    }
    let worse = rows.iter().any(|row| row.verdict == Verdict::Worse);
    Ok(if worse { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn row(metric: &'static Metric, base: &Side, new: &Side, threshold: f64) -> Option<Row> {
    let values = |side: &Side| -> Option<Vec<f64>> {
        side.runs.iter().map(|run| (metric.value)(run)).collect()
    };
    let (bases, news) = (values(base)?, values(new)?);
    let interval = interval::ratio(metric, base, new, &bases, &news);
    let verdict = Verdict::of(metric, interval, threshold);
    let (base, new) = (crate::stats::mean(&bases), crate::stats::mean(&news));
    Some(Row { metric, base, new, interval, verdict })
}

fn report(base: &Side, new: &Side, rows: &[Row], threshold: f64, repeated: bool) -> String {
    let mut lines = vec![
        format!("base: {}", base.describe()),
        format!("new:  {}", new.describe()),
        String::new(),
        format!("{:<30}{:>12}{:>12}{:>9}  {:<18}", "", "base", "new", "change", "95 % confidence"),
    ];
    for Row { metric, base, new, interval, verdict } in rows {
        let change = |ratio: f64| format!("{:+.1} %", 100.0 * (ratio - 1.0));
        let interval = interval.map(|i| format!("{} to {}", change(i.low), change(i.high)));
        let total = if *base > 0.0 { change(new / base) } else { String::new() };
        lines.push(format!(
            "{:<30}{:>12}{:>12}{total:>9}  {:<22}{}",
            metric.name,
            (metric.format)(*base),
            (metric.format)(*new),
            interval.unwrap_or_default(),
            verdict.name()
        ));
    }
    for (name, side) in [("base", base), ("new", new)] {
        lines.extend(side.warnings().map(|warning| format!("note: {name} {warning}")));
    }
    lines.push(String::new());
    lines.push(format!("verdict: {}", conclusion(rows)));
    if !repeated {
        lines.push(format!(
            "One run on a side does not show how much runs differ by themselves: differences below {:.0} % \
             do not count. Give several runs of each, as in a1.json,a2.json,a3.json",
            100.0 * threshold
        ));
    }
    lines.join("\n") + "\n"
}

fn conclusion(rows: &[Row]) -> String {
    let of = |verdict| {
        let names = rows.iter().filter(|row| row.verdict == verdict).map(|row| row.metric.name);
        names.collect::<Vec<_>>().join(", ")
    };
    match (of(Verdict::Better).as_str(), of(Verdict::Worse).as_str()) {
        ("", "") if rows.iter().all(|row| row.verdict == Verdict::Unknown) => {
            "unknown: there are too few requests".into()
        }
        ("", "") => "no difference beyond noise".into(),
        (better, "") => format!("better ({better})"),
        ("", worse) => format!("worse ({worse})"),
        (better, worse) => format!("mixed: better ({better}), worse ({worse})"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_counts_beyond_noise_and_threshold() {
        let of = |name: &str, low, high, threshold| {
            let metric = METRICS.iter().find(|metric| metric.name == name);
            let middle = f64::sqrt(low * high);
            metric.map(|m| Verdict::of(m, Some(Interval { low, middle, high }), threshold))
        };
        let (rate, ttft) = ("output tokens per second", "time to first token, p50");
        assert_eq!(of(rate, 1.1, 1.3, 0.05), Some(Verdict::Better));
        assert_eq!(of(rate, 0.7, 0.9, 0.05), Some(Verdict::Worse));
        assert_eq!(of(ttft, 1.1, 1.3, 0.05), Some(Verdict::Worse));
        assert_eq!(of(ttft, 0.7, 0.9, 0.05), Some(Verdict::Better));
        assert_eq!(of(ttft, 0.9, 1.3, 0.0), Some(Verdict::Same), "the interval includes 1");
        assert_eq!(of(ttft, 1.01, 1.03, 0.05), Some(Verdict::Same), "it is too small");
        assert_eq!(of(ttft, 1.01, 1.03, 0.0), Some(Verdict::Worse));
    }
}

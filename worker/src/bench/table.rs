//! The table for people, a line at a time.

use super::row::{Measured, Row};

/// Columns of text.
const SCENARIO: usize = 12;
const FORMAT: usize = 11;
/// Columns of numbers, and their widths.
const NUMBERS: [(&str, usize); 14] = [
    ("run", 3),
    ("batch", 5),
    ("context", 7),
    ("load s", 6),
    ("ttft ms", 8),
    ("tpot ms", 8),
    ("tokens/s", 8),
    ("prefill/s", 9),
    ("peak MiB", 8),
    ("GB/s then", 9),
    ("and after", 9),
    ("read %", 6),
    ("outside %", 9),
    ("launches", 8),
];
/// Of a factor.
const FACTOR: usize = 9;

/// What the columns are called.
pub(super) fn header(factors: &[&str]) -> String {
    let names = NUMBERS.map(|(name, _)| name.to_owned());
    line("scenario", "format", &names, factors.iter().map(|name| (*name).to_owned()))
}

/// A row.
pub(super) fn row(measured: &Measured, factors: &[f64]) -> String {
    let Measured { row, read_rates: [before, after], outside, gpu: _ } = measured;
    let dash = || "-".to_owned();
    let millis = |seconds: f64| decimal(seconds * 1e3);
    let percent = |share: f64| format!("{:.1}", share * 100.0);
    let numbers = [
        row.run.to_string(),
        row.batch.to_string(),
        row.context.to_string(),
        decimal(row.load_seconds),
        row.ttft_seconds.map_or_else(dash, millis),
        millis(row.tpot_seconds),
        decimal(row.decode_tokens_per_second),
        row.prefill_tokens_per_second.map_or_else(dash, decimal),
        row.peak_rss_bytes.map_or_else(dash, |bytes| (bytes >> 20).to_string()),
        decimal(before / 1e9),
        decimal(after / 1e9),
        percent(row.bandwidth_utilization),
        outside.map_or_else(dash, percent),
        row.launches_per_step.map_or_else(dash, decimal),
    ];
    line(&row.scenario, &row.format, &numbers, factors.iter().map(|f| format!("{f:.2}")))
}

/// The medians of rows that differ in their run alone, where there are any: a line for each case.
pub(super) fn medians(rows: &[Row]) -> Vec<String> {
    let alike =
        |a: &Row, b: &Row| (&a.scenario, &a.format, a.batch) == (&b.scenario, &b.format, b.batch);
    let mut lines = Vec::new();
    for (at, first) in rows.iter().enumerate() {
        if rows[..at].iter().any(|row| alike(row, first)) {
            continue;
        }
        let case: Vec<_> = rows[at..].iter().filter(|row| alike(row, first)).collect();
        if case.len() < 2 {
            continue;
        }
        let median =
            |value: fn(&Row) -> Option<f64>| median(case.iter().copied().filter_map(value));
        let show = |value: Option<f64>, scale| value.map_or("-".into(), |v| decimal(v * scale));
        lines.push(format!(
            "{:<SCENARIO$} {:<FORMAT$} ttft {} ms, tpot {} ms, {} tokens/s",
            case[0].scenario,
            case[0].format,
            show(median(|row| row.ttft_seconds), 1e3),
            show(median(|row| Some(row.tpot_seconds)), 1e3),
            show(median(|row| Some(row.decode_tokens_per_second)), 1.0),
        ));
    }
    lines
}

fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<_> = values.collect();
    values.sort_unstable_by(f64::total_cmp);
    let (low, high) =
        (values.get(values.len().checked_sub(1)? / 2)?, values.get(values.len() / 2)?);
    Some((low + high) / 2.0)
}

fn line(
    scenario: &str,
    format: &str,
    numbers: &[String; NUMBERS.len()],
    factors: impl Iterator<Item = String>,
) -> String {
    let mut line = format!("{scenario:<SCENARIO$} {format:<FORMAT$}");
    for (number, (_, width)) in numbers.iter().zip(NUMBERS) {
        line.push_str(&format!(" {number:>width$}"));
    }
    for factor in factors {
        line.push_str(&format!(" {factor:>FACTOR$}"));
    }
    line
}

/// Three digits that count, at least.
pub(super) fn decimal(number: f64) -> String {
    let digits = match number.abs() {
        100.0.. => 0,
        10.0.. => 1,
        1.0.. => 2,
        _ => 3,
    };
    format!("{number:.digits$}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{bench::row::tests, gpu::Reading};

    #[test]
    fn columns_stand_below_their_names() {
        let measured = Measured {
            row: tests::row(),
            read_rates: [1.2e10, 1.3e10],
            outside: Some(0.125),
            gpu: Reading::default(),
        };
        let (header, row) = (header(&["x first"]), row(&measured, &[2.5]));
        assert_eq!(header.chars().count(), row.chars().count(), "{header}\n{row}");
        let cells: Vec<_> = row.split_whitespace().collect();
        let expected = [
            "short", "gguf", "3", "1", "64", "1.25", "-", "100", "10.0", "0.000", "4768", "12.0",
            "13.0", "50.0", "12.5", "-", "2.50",
        ];
        assert_eq!(cells, expected);
    }

    #[test]
    fn medians_are_of_runs_of_the_same_case() {
        let run = |run, tpot_seconds| Row { run, tpot_seconds, ..tests::row() };
        let rows = [run(1, 0.3), run(2, 0.1), run(3, 0.2)];
        let lines = medians(&rows);
        assert_eq!(lines.len(), 1);
        assert!(lines[0].contains("ttft - ms, tpot 200 ms, 10.0 tokens/s"), "{lines:?}");
        assert_eq!(medians(&rows[..1]), [""; 0]);
    }
}

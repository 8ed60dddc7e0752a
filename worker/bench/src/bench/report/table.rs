//! The printed table, one line at a time.

use super::row::{BenchRow, TableRow};
use crate::decimal::decimal;

/// Widths of the text columns.
const SCENARIO: usize = 12;
const FORMAT: usize = 11;
/// Names and widths of the number columns.
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
    ("GB/s before", 11),
    ("GB/s after", 10),
    ("read %", 6),
    ("overhead %", 10),
    ("launches", 8),
];
/// Width of a column that a workload adds.
const COLUMN: usize = 9;

/// Returns the header line.
pub(super) fn header(columns: &[&str]) -> String {
    let names = NUMBERS.map(|(name, _)| name.to_owned());
    line("scenario", "format", &names, columns.iter().map(|name| (*name).to_owned()))
}

/// Returns the line of a row.
pub(super) fn row(table_row: &TableRow, columns: &[f64]) -> String {
    let TableRow { row, read_rates: [before, after], overhead, .. } = table_row;
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
        overhead.map_or_else(dash, percent),
        row.launches_per_step.map_or_else(dash, decimal),
    ];
    line(&row.scenario, &row.format, &numbers, columns.iter().map(|value| format!("{value:.2}")))
}

/// Returns a line with the medians of each case with at least two runs.
pub(super) fn medians(rows: &[BenchRow]) -> Vec<String> {
    let same_case = |a: &BenchRow, b: &BenchRow| {
        (&a.scenario, &a.format, a.batch) == (&b.scenario, &b.format, b.batch)
    };
    let mut lines = Vec::new();
    for (at, first) in rows.iter().enumerate() {
        if rows[..at].iter().any(|row| same_case(row, first)) {
            continue;
        }
        let case: Vec<_> = rows[at..].iter().filter(|row| same_case(row, first)).collect();
        if case.len() < 2 {
            continue;
        }
        let median =
            |value: fn(&BenchRow) -> Option<f64>| median(case.iter().copied().filter_map(value));
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
    columns: impl Iterator<Item = String>,
) -> String {
    let mut line = format!("{scenario:<SCENARIO$} {format:<FORMAT$}");
    for (number, (_, width)) in numbers.iter().zip(NUMBERS) {
        line.push_str(&format!(" {number:>width$}"));
    }
    for column in columns {
        line.push_str(&format!(" {column:>COLUMN$}"));
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::report::row::tests;

    #[test]
    fn columns_align_with_their_names() {
        let table_row = tests::table(tests::row());
        let (header, row) = (header(&["x first"]), row(&table_row, &[2.5]));
        assert_eq!(header.chars().count(), row.chars().count(), "{header}\n{row}");
        let cells: Vec<_> = row.split_whitespace().collect();
        let expected = [
            "short", "gguf", "3", "1", "64", "1.25", "-", "100", "10.0", "0.000", "4768", "12.0",
            "13.0", "50.0", "12.5", "-", "2.50",
        ];
        assert_eq!(cells, expected);
    }

    #[test]
    fn medians_are_over_runs_of_the_same_case() {
        let run = |run, tpot_seconds| BenchRow { run, tpot_seconds, ..tests::row() };
        let rows = [run(1, 0.3), run(2, 0.1), run(3, 0.2)];
        let lines = medians(&rows);
        assert_eq!(lines.len(), 1);
        assert!(lines[0].contains("ttft - ms, tpot 200 ms, 10.0 tokens/s"), "{lines:?}");
        assert_eq!(medians(&rows[..1]), [""; 0]);
    }
}

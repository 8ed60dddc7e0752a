//! The columns that a workload adds to the table.

use serde_json::Value;

use super::row::{BenchRow, TableRow};
use crate::workloads::Columns;

/// Returns the names of the columns.
pub(super) fn names(columns: Columns) -> Vec<&'static str> {
    match columns {
        Columns::None => vec![],
        Columns::OverFirst(name) | Columns::TtftOverFirst(name) => vec![name],
        Columns::OverPreviousAndFirst => vec!["x before", "x first"],
        Columns::Values(columns) => columns.map(|(name, _)| name).to_vec(),
    }
}

/// Returns the values of the columns for `new`, which follows `earlier`. A run is compared with runs
/// of the same number.
pub(super) fn values(columns: Columns, earlier: &[BenchRow], new: &TableRow) -> Vec<f64> {
    let row = &new.row;
    let same_case = |other: &&BenchRow| other.format == row.format && other.run == row.run;
    let speedup_over = |other: Option<&BenchRow>| {
        let base = other.unwrap_or(row).decode_tokens_per_second;
        row.decode_tokens_per_second / base
    };
    let first = speedup_over(earlier.iter().find(same_case));
    match columns {
        Columns::None => vec![],
        Columns::OverFirst(_) => vec![first],
        Columns::TtftOverFirst(_) => {
            let base = earlier.iter().find(same_case).unwrap_or(row);
            let both = base.ttft_seconds.zip(row.ttft_seconds);
            both.map(|(base, own)| base / own).into_iter().collect()
        }
        Columns::OverPreviousAndFirst => match new.baseline_speedup {
            // The row is of another model and has its own baseline.
            Some(speedup) => {
                let first = earlier.iter().find(|other| other.run == row.run);
                vec![speedup, speedup_over(first)]
            }
            None => vec![speedup_over(earlier.iter().rev().find(same_case)), first],
        },
        Columns::Values(columns) => {
            let value = |(_, key)| row.details.get(key).and_then(Value::as_f64);
            columns.into_iter().filter_map(value).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::report::row::tests::{row, table};

    #[test]
    fn a_speedup_is_over_rows_of_the_same_format_and_run() {
        let with = |format: &str, run, rate| BenchRow {
            format: format.into(),
            run,
            decode_tokens_per_second: rate,
            ..row()
        };
        let earlier =
            [with("gguf", 1, 2.0), with("gguf", 2, 4.0), with("gguf", 1, 6.0), with("x", 1, 1.0)];
        let new = table(with("gguf", 1, 12.0));
        assert_eq!(values(Columns::OverPreviousAndFirst, &earlier, &new), [2.0, 6.0]);
        assert_eq!(
            values(Columns::OverFirst("x batch 1"), &earlier, &table(with("gguf", 2, 12.0))),
            [3.0]
        );
        assert_eq!(values(Columns::OverPreviousAndFirst, &[], &new), [1.0, 1.0]);
        let speculative = TableRow { baseline_speedup: Some(1.5), ..table(with("z", 1, 10.0)) };
        assert_eq!(values(Columns::OverPreviousAndFirst, &earlier, &speculative), [1.5, 5.0]);
        assert_eq!(values(Columns::None, &earlier, &new), [0.0; 0]);
        let mut valued = table(row());
        valued.row.details.insert("b".into(), 2.5.into());
        assert_eq!(values(Columns::Values([("x", "a"), ("y", "b")]), &[], &valued), [2.5]);
        let with_ttft = |ttft| BenchRow { ttft_seconds: Some(ttft), ..row() };
        assert_eq!(
            values(Columns::TtftOverFirst("x cold"), &[with_ttft(3.0)], &table(with_ttft(0.25))),
            [12.0]
        );
        assert_eq!(values(Columns::TtftOverFirst("x cold"), &[], &table(with_ttft(3.0))), [1.0]);
    }
}

//! Speedup columns of `--sweep`, `--ablation`, `--shared-prefix` and `--speculate`.

use super::{cli::BenchArgs, row::BenchRow};
use crate::config::Drafter;

/// The speedup columns of a table, by what a row is compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SpeedupColumns {
    /// No columns.
    None,
    /// Decode rate over the first row of the same format.
    OverFirst(&'static str),
    /// Decode rate over the previous and over the first row of the same format.
    OverPreviousAndFirst,
    /// Time to first token over the first row of the same format.
    TtftOverFirst(&'static str),
    /// Decode rate over the rate without speculative decoding, and tokens per step of the model.
    /// The row has both.
    OverPlainDecode,
}

impl SpeedupColumns {
    pub(super) fn of(args: &BenchArgs) -> Self {
        if args.ablation {
            Self::OverPreviousAndFirst
        } else if args.speculation.speculate != Drafter::Off {
            Self::OverPlainDecode
        } else if args.sweep.is_some() {
            Self::OverFirst("x batch 1")
        } else if args.shared_prefix.is_some() {
            Self::TtftOverFirst("x cold")
        } else {
            Self::None
        }
    }

    /// Returns the names of the columns.
    pub(super) fn names(self) -> Vec<&'static str> {
        match self {
            Self::None => vec![],
            Self::OverFirst(name) | Self::TtftOverFirst(name) => vec![name],
            Self::OverPreviousAndFirst => vec!["x before", "x first"],
            Self::OverPlainDecode => vec!["x plain", "tok/step"],
        }
    }

    /// Returns the values of the columns for `row`, which follows `earlier`. A run is compared with
    /// runs of the same number.
    pub(super) fn values(self, earlier: &[BenchRow], row: &BenchRow) -> Vec<f64> {
        let same_case = |other: &&BenchRow| other.format == row.format && other.run == row.run;
        let speedup_over = |other: Option<&BenchRow>| {
            let base = other.unwrap_or(row).decode_tokens_per_second;
            row.decode_tokens_per_second / base
        };
        let first = speedup_over(earlier.iter().find(same_case));
        match self {
            Self::None => vec![],
            Self::OverFirst(_) => vec![first],
            Self::TtftOverFirst(_) => {
                let base = earlier.iter().find(same_case).unwrap_or(row);
                let both = base.ttft_seconds.zip(row.ttft_seconds);
                both.map(|(base, own)| base / own).into_iter().collect()
            }
            Self::OverPreviousAndFirst => match row.speedup_over_plain {
                // The row is of another model and has its own baseline without speculative
                // decoding.
                Some(speedup) => {
                    let first = earlier.iter().find(|other| other.run == row.run);
                    vec![speedup, speedup_over(first)]
                }
                None => vec![speedup_over(earlier.iter().rev().find(same_case)), first],
            },
            Self::OverPlainDecode => {
                let known = row.speedup_over_plain.zip(row.mean_accepted_length);
                known.map_or_else(Vec::new, |(speedup, tokens)| vec![speedup, tokens])
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::row::tests::row;

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
        let new = with("gguf", 1, 12.0);
        assert_eq!(SpeedupColumns::OverPreviousAndFirst.values(&earlier, &new), [2.0, 6.0]);
        assert_eq!(
            SpeedupColumns::OverFirst("x batch 1").values(&earlier, &with("gguf", 2, 12.0)),
            [3.0]
        );
        assert_eq!(SpeedupColumns::OverPreviousAndFirst.values(&[], &new), [1.0, 1.0]);
        let speculative = BenchRow { speedup_over_plain: Some(1.5), ..with("z", 1, 10.0) };
        assert_eq!(SpeedupColumns::OverPreviousAndFirst.values(&earlier, &speculative), [1.5, 5.0]);
        assert_eq!(SpeedupColumns::None.values(&earlier, &new), [0.0; 0]);
        let with_ttft = |ttft| BenchRow { ttft_seconds: Some(ttft), ..row() };
        assert_eq!(
            SpeedupColumns::TtftOverFirst("x cold").values(&[with_ttft(3.0)], &with_ttft(0.25)),
            [12.0]
        );
        assert_eq!(SpeedupColumns::TtftOverFirst("x cold").values(&[], &with_ttft(3.0)), [1.0]);
    }
}

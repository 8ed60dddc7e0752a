//! How many times as fast a row is as another: `--sweep`, `--ablation` and `--shared-prefix`.

use super::{cli::BenchArgs, row::Row};
use crate::config::Drafter;

/// What rows are compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Factors {
    /// Nothing.
    None,
    /// The first of the same format.
    First(&'static str),
    /// The one before, and the first, of the same format.
    BeforeAndFirst,
    /// The first of the same format, by the time to the first token.
    FirstToken(&'static str),
    /// The same without guesses, which the row knows itself; and what a step of the model gives.
    Speculation,
}

impl Factors {
    pub(super) fn of(args: &BenchArgs) -> Self {
        if args.ablation {
            Self::BeforeAndFirst
        } else if args.speculation.speculate != Drafter::Off {
            Self::Speculation
        } else if args.sweep.is_some() {
            Self::First("x batch 1")
        } else if args.shared_prefix.is_some() {
            Self::FirstToken("x cold")
        } else {
            Self::None
        }
    }

    /// The columns' names.
    pub(super) fn names(self) -> Vec<&'static str> {
        match self {
            Self::None => vec![],
            Self::First(name) | Self::FirstToken(name) => vec![name],
            Self::BeforeAndFirst => vec!["x before", "x first"],
            Self::Speculation => vec!["x plain", "tok/step"],
        }
    }

    /// The factors of `row`, which comes after `earlier`. Runs are compared with runs of the same number.
    pub(super) fn over(self, earlier: &[Row], row: &Row) -> Vec<f64> {
        let alike = |other: &&Row| other.format == row.format && other.run == row.run;
        let factor = |other: Option<&Row>| {
            let base = other.unwrap_or(row).decode_tokens_per_second;
            row.decode_tokens_per_second / base
        };
        let first = factor(earlier.iter().find(alike));
        match self {
            Self::None => vec![],
            Self::First(_) => vec![first],
            Self::FirstToken(_) => {
                let base = earlier.iter().find(alike).unwrap_or(row);
                let both = base.ttft_seconds.zip(row.ttft_seconds);
                both.map(|(base, own)| base / own).into_iter().collect()
            }
            Self::BeforeAndFirst => match row.speedup_over_plain {
                // Of another model, which knows itself what it would do without guesses.
                Some(speedup) => {
                    let first = earlier.iter().find(|other| other.run == row.run);
                    vec![speedup, factor(first)]
                }
                None => vec![factor(earlier.iter().rev().find(alike)), first],
            },
            Self::Speculation => {
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
    fn a_factor_is_over_rows_of_the_same_format_and_run() {
        let with = |format: &str, run, rate| Row {
            format: format.into(),
            run,
            decode_tokens_per_second: rate,
            ..row()
        };
        let earlier =
            [with("gguf", 1, 2.0), with("gguf", 2, 4.0), with("gguf", 1, 6.0), with("x", 1, 1.0)];
        let new = with("gguf", 1, 12.0);
        assert_eq!(Factors::BeforeAndFirst.over(&earlier, &new), [2.0, 6.0]);
        assert_eq!(Factors::First("x batch 1").over(&earlier, &with("gguf", 2, 12.0)), [3.0]);
        assert_eq!(Factors::BeforeAndFirst.over(&[], &new), [1.0, 1.0]);
        let guessed = Row { speedup_over_plain: Some(1.5), ..with("z", 1, 10.0) };
        assert_eq!(Factors::BeforeAndFirst.over(&earlier, &guessed), [1.5, 5.0]);
        assert_eq!(Factors::None.over(&earlier, &new), [0.0; 0]);
        let soon = |ttft| Row { ttft_seconds: Some(ttft), ..row() };
        assert_eq!(Factors::FirstToken("x cold").over(&[soon(3.0)], &soon(0.25)), [12.0]);
        assert_eq!(Factors::FirstToken("x cold").over(&[], &soon(3.0)), [1.0]);
    }
}

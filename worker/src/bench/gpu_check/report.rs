//! What was found, as JSON for programs and as Markdown for people.

use std::{
    fmt::Write,
    fs, io,
    path::{Path, PathBuf},
};

use serde::Serialize;
use stoker_ops::{check::Check, fallback::GpuFeature};

use super::{
    exactness::Pair,
    facts::Facts,
    speed::{Row, Timeline},
    transformers::Transformers,
};
use crate::bench::{Error, table::decimal};

/// All of it.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    /// The shape that was measured.
    pub(super) model: String,
    pub(super) facts: Facts,
    pub(super) operations: Vec<Operation>,
    pub(super) exactness: Vec<Pair>,
    pub(super) speed: Vec<Row>,
    pub(super) timeline: Vec<Timeline>,
    pub(super) transformers: Transformers,
    /// That it took.
    pub(super) seconds: f64,
}

/// An operation against the reference.
#[derive(Debug, Serialize)]
pub(super) struct Operation {
    operation: String,
    shape: String,
    /// None if it failed.
    difference: Option<f32>,
    limit: f32,
    passed: bool,
}

impl From<Check> for Operation {
    fn from(check: Check) -> Self {
        let passed = check.passed();
        let Check { operation, shape, difference, limit } = check;
        let difference = difference.is_finite().then_some(difference);
        Self { operation, shape, difference, limit, passed }
    }
}

/// Makes the folder, so that one that cannot be is known before anything is measured.
pub(super) fn make_folder(folder: &Path) -> Result<(), Error> {
    fs::create_dir_all(folder).map_err(|error| unwritable(folder.into(), error))
}

fn unwritable(path: PathBuf, source: io::Error) -> Error {
    Error::File { flag: "--out", path, source }
}

impl Report {
    /// Of a device of which nothing is known yet.
    pub(super) fn new(model: &str, facts: Facts) -> Self {
        Self {
            model: model.into(),
            facts,
            operations: Vec::new(),
            exactness: Vec::new(),
            speed: Vec::new(),
            timeline: Vec::new(),
            transformers: Transformers::Missing("the run ended before".into()),
            seconds: 0.0,
        }
    }

    /// Checks that failed, and parts of the GPU that did.
    pub(super) fn faults(&self) -> usize {
        let wrong = self.operations.iter().filter(|check| !check.passed).count();
        let different = self.exactness.iter().filter(|pair| !pair.same).count();
        let broken = GpuFeature::ALL.iter().filter(|part| part.failures() > 0).count();
        wrong + different + broken
    }

    /// Writes both files.
    pub(super) fn write(&self, folder: &Path) -> Result<(), Error> {
        let json = serde_json::to_string_pretty(self);
        let json = json.map_err(|error| Error::Failed(error.to_string()))?;
        for (name, text) in [("report.md", self.markdown()), ("report.json", json + "\n")] {
            let path = folder.join(name);
            fs::write(&path, text).map_err(|error| unwritable(path, error))?;
        }
        Ok(())
    }

    pub(super) fn markdown(&self) -> String {
        let mut text = format!("# {}\n\n", self.facts.device);
        table(&mut text, &["", ""], self.facts.lines().into_iter().map(|(a, b)| [a.into(), b]));
        let outcome = match self.faults() {
            0 => "Everything below is right".to_owned(),
            faults => format!("**{faults} checks failed**"),
        };
        let _ = writeln!(text, "{outcome}; all of it took {:.0} s.\n", self.seconds);
        self.speed_table(&mut text);
        self.others(&mut text);
        self.timelines(&mut text);
        self.checks(&mut text);
        text
    }

    fn speed_table(&self, text: &mut String) {
        let _ = writeln!(text, "## Speed, random weights of {}\n", self.model);
        let names = [
            "",
            "sequences",
            "positions",
            "ms a step",
            "decoded tokens/s",
            "of a copy",
            "launches a step",
            "first token ms",
            "prompt tokens/s",
            "GPU",
        ];
        let shown =
            |value: Option<f64>, scale: f64| value.map_or("".into(), |v| decimal(v * scale));
        let rows = self.speed.iter().map(|row| {
            [
                row.what.clone(),
                row.batch.map_or("".into(), |batch| batch.to_string()),
                row.context.to_string(),
                shown(row.step_seconds, 1e3),
                shown(row.decode_tokens_per_second, 1.0),
                row.copy_ratio.map_or("".into(), |ratio| format!("{:.0} %", ratio * 100.0)),
                shown(row.launches_per_step.filter(|_| row.batch.is_some()), 1.0),
                shown(row.first_token_seconds, 1e3),
                shown(row.prefill_tokens_per_second, 1.0),
                row.gpu.summary().unwrap_or_default(),
            ]
        });
        table(text, &names, rows);
    }

    fn others(&self, text: &mut String) {
        let _ = writeln!(text, "## The same shape with transformers\n");
        match &self.transformers {
            Transformers::Missing(why) => {
                let _ = writeln!(text, "Not measured: {why}.\n");
            }
            Transformers::Measured { with, rows } => {
                let _ = writeln!(text, "{with}\n");
                let ours = |batch| {
                    let alike = |row: &&Row| row.what == "int8" && row.batch == Some(batch);
                    self.speed.iter().find(alike).and_then(|row| row.decode_tokens_per_second)
                };
                let names = ["sequences", "decoded tokens/s", "int8 here", "prompt tokens/s"];
                let rows = rows.iter().map(|row| {
                    let factor = ours(row.batch).map(|ours| ours / row.decode_tokens_per_second);
                    [
                        row.batch.to_string(),
                        decimal(row.decode_tokens_per_second),
                        factor.map_or("".into(), |factor| format!("{factor:.2} x")),
                        decimal(row.prefill_tokens_per_second),
                    ]
                });
                table(text, &names, rows);
            }
        }
    }

    fn timelines(&self, text: &mut String) {
        for Timeline { batch, kernels } in
            self.timeline.iter().filter(|step| !step.kernels.is_empty())
        {
            let total: f64 = kernels.iter().map(|kernel| kernel.microseconds).sum();
            let _ =
                writeln!(text, "## A step of {batch}, kernel by kernel: {} us\n", decimal(total));
            let rows = kernels.iter().map(|kernel| {
                let share = kernel.microseconds / total * 100.0;
                let (launches, time) = (decimal(kernel.launches), decimal(kernel.microseconds));
                [format!("`{}`", kernel.name), launches, time, format!("{share:.0} %")]
            });
            table(text, &["kernel", "launches", "us", "share"], rows);
        }
    }

    fn checks(&self, text: &mut String) {
        let _ = writeln!(text, "## Operations against the reference\n");
        let right = |right| if right { "right" } else { "**wrong**" }.to_owned();
        let rows = self.operations.iter().map(|check| {
            let difference = check.difference.map_or("failed".into(), scientific);
            let limit = scientific(check.limit);
            [check.operation.clone(), check.shape.clone(), difference, limit, right(check.passed)]
        });
        table(text, &["operation", "shape", "difference", "limit", ""], rows);
        let _ = writeln!(text, "## The same answers in different ways\n");
        let rows = self
            .exactness
            .iter()
            .map(|pair| [pair.what.clone(), pair.tokens.to_string(), right(pair.same)]);
        table(text, &["ways", "tokens", ""], rows);
        let broken: Vec<_> =
            GpuFeature::ALL.into_iter().filter(|part| part.failures() > 0).collect();
        for part in broken {
            let _ = writeln!(
                text,
                "**{part} did not work**, and the rest was done without; see the log.\n"
            );
        }
    }
}

fn scientific(number: f32) -> String {
    if number == 0.0 { "0".into() } else { format!("{number:.1e}") }
}

fn table<const N: usize>(
    text: &mut String,
    names: &[&str; N],
    rows: impl Iterator<Item = [String; N]>,
) {
    let _ = writeln!(text, "| {} |\n|{}", names.join(" | "), " --- |".repeat(N));
    for row in rows {
        let _ = writeln!(text, "| {} |", row.join(" | "));
    }
    text.push('\n');
}

//! The report of `gpu-check` as JSON and as Markdown.

use std::{fmt::Write, fs, path::Path};

use serde::Serialize;
use stoker_ops::{check::Check, fallback::GpuFeature};
use stoker_shared::cli::FileError;

use super::{
    exactness::Comparison,
    facts::Facts,
    speed::{SpeedRow, Timeline},
    transformers::Transformers,
};
use crate::{Error, decimal::decimal};

/// Results of all stages.
#[derive(Debug, Serialize)]
pub(super) struct GpuCheckReport {
    /// Name of the measured shape.
    pub(super) model: String,
    pub(super) facts: Facts,
    pub(super) operations: Vec<Operation>,
    pub(super) exactness: Vec<Comparison>,
    pub(super) speed: Vec<SpeedRow>,
    pub(super) timeline: Vec<Timeline>,
    pub(super) transformers: Transformers,
    /// Duration of the run.
    pub(super) seconds: f64,
}

/// Comparison of an operation with the reference.
#[derive(Debug, Serialize)]
pub(super) struct Operation {
    operation: String,
    shape: String,
    /// None if the operation failed.
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

/// Creates the folder, so that an error is reported before anything is measured.
pub(super) fn make_folder(folder: &Path) -> Result<(), Error> {
    fs::create_dir_all(folder).map_err(FileError::at("--out", folder))?;
    Ok(())
}

impl GpuCheckReport {
    /// Creates a report without results.
    pub(super) fn new(model: &str, facts: Facts) -> Self {
        Self {
            model: model.into(),
            facts,
            operations: Vec::new(),
            exactness: Vec::new(),
            speed: Vec::new(),
            timeline: Vec::new(),
            transformers: Transformers::Missing("the run ended before this stage".into()),
            seconds: 0.0,
        }
    }

    /// Returns the number of failed checks and failed GPU features.
    pub(super) fn failures(&self) -> usize {
        let wrong_operations = self.operations.iter().filter(|check| !check.passed).count();
        let different_outputs = self.exactness.iter().filter(|comparison| !comparison.same).count();
        let failed_features =
            GpuFeature::ALL.iter().filter(|feature| feature.failures() > 0).count();
        wrong_operations + different_outputs + failed_features
    }

    /// Writes both files.
    pub(super) fn write(&self, folder: &Path) -> Result<(), Error> {
        let json = serde_json::to_string_pretty(self);
        let json = json.map_err(|error| Error::Failed(error.to_string()))?;
        for (name, text) in [("report.md", self.markdown()), ("report.json", json + "\n")] {
            let path = folder.join(name);
            fs::write(&path, text).map_err(FileError::at("--out", &path))?;
        }
        Ok(())
    }

    pub(super) fn markdown(&self) -> String {
        let mut text = format!("# {}\n\n", self.facts.device);
        table(&mut text, &["", ""], self.facts.lines().into_iter().map(|(a, b)| [a.into(), b]));
        let outcome = match self.failures() {
            0 => "All checks passed".to_owned(),
            failures => format!("**{failures} checks failed**"),
        };
        let _ = writeln!(text, "{outcome}; the run took {:.0} s.\n", self.seconds);
        self.speed_table(&mut text);
        self.transformers_table(&mut text);
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
            "ms per step",
            "decoded tokens/s",
            "of copy rate",
            "launches per step",
            "ttft ms",
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

    fn transformers_table(&self, text: &mut String) {
        let _ = writeln!(text, "## The same shape with transformers\n");
        match &self.transformers {
            Transformers::Missing(why) => {
                let _ = writeln!(text, "Not measured: {why}.\n");
            }
            Transformers::Measured { with, rows } => {
                let _ = writeln!(text, "{with}\n");
                let ours = |batch| {
                    let int8_row = |row: &&SpeedRow| row.what == "int8" && row.batch == Some(batch);
                    self.speed.iter().find(int8_row).and_then(|row| row.decode_tokens_per_second)
                };
                let names =
                    ["sequences", "decoded tokens/s", "speedup of int8 here", "prompt tokens/s"];
                let rows = rows.iter().map(|row| {
                    let speedup = ours(row.batch).map(|ours| ours / row.decode_tokens_per_second);
                    [
                        row.batch.to_string(),
                        decimal(row.decode_tokens_per_second),
                        speedup.map_or("".into(), |speedup| format!("{speedup:.2} x")),
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
            let _ = writeln!(
                text,
                "## Kernel times of a step with batch size {batch}: {} us\n",
                decimal(total)
            );
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
        let verdict = |passed| if passed { "passed" } else { "**failed**" }.to_owned();
        let rows = self.operations.iter().map(|check| {
            let difference = check.difference.map_or("failed".into(), scientific);
            let limit = scientific(check.limit);
            [check.operation.clone(), check.shape.clone(), difference, limit, verdict(check.passed)]
        });
        table(text, &["operation", "shape", "difference", "limit", ""], rows);
        let _ = writeln!(text, "## The same requests run in different ways\n");
        let rows =
            self.exactness.iter().map(|c| [c.what.clone(), c.tokens.to_string(), verdict(c.same)]);
        table(text, &["configurations", "tokens", ""], rows);
        let failed_features: Vec<_> =
            GpuFeature::ALL.into_iter().filter(|feature| feature.failures() > 0).collect();
        for feature in failed_features {
            let _ = writeln!(
                text,
                "**{feature} failed** and was disabled for the rest of the run; see the log.\n"
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

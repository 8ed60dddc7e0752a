//! What was measured last, beside what could be.

use std::{collections::BTreeMap, fs, path::Path};

use serde::{Deserialize, Serialize};
use stoker_engine::{model::Quantization, weights::ModelConfig};

use super::{Ceiling, Hardware, Kind};
use crate::failure::Failure;

/// What is needed of a row of `bench --json`.
#[derive(Debug, Clone, Deserialize)]
struct Row {
    model: String,
    scenario: String,
    format: String,
    quantize: String,
    batch: u64,
    context: u64,
    decode_tokens_per_second: f64,
}

/// One case of a benchmark: the median of rows that differ in their run alone.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Run {
    scenario: String,
    format: String,
    weights: Kind,
    batch: u64,
    context: u64,
    tokens_per_second: f64,
}

/// Where a case stands.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Standing {
    /// What was done.
    pub scenario: String,
    /// The kind of file that the model came from.
    pub format: String,
    /// Positions that each sequence held.
    pub context: u64,
    /// Tokens a second, of all sequences together: the median of its runs.
    pub tokens_per_second: f64,
    /// The most there could be.
    pub ceiling: Ceiling,
    /// The share of it that there was.
    pub share: f64,
}

/// Reads the rows of `model` in the file of `--last`.
pub(super) fn read(path: &Path, model: &str) -> Result<Vec<Run>, Failure> {
    let text = fs::read_to_string(path).map_err(Failure::at("--last", path))?;
    runs(&text, model).map_err(|why| Failure::Usage(format!("--last {}: {why}", path.display())))
}

fn runs(text: &str, model: &str) -> Result<Vec<Run>, String> {
    let rows: Vec<Row> = serde_json::from_str(text)
        .map_err(|error| format!("is not what `stoker-worker bench --json` writes: {error}"))?;
    let mut cases: BTreeMap<_, Vec<f64>> = BTreeMap::new();
    let mut others: Vec<String> = Vec::new();
    for row in rows {
        if row.model != model {
            others.push(row.model);
            continue;
        }
        let case = (row.scenario, row.format, kind(&row.quantize)?, row.batch, row.context);
        cases.entry(case).or_default().push(row.decode_tokens_per_second);
    }
    if cases.is_empty() {
        others.sort_unstable();
        others.dedup();
        let found = if others.is_empty() { "it is empty".into() } else { others.join(", ") };
        return Err(format!(
            "has no row of {model} ({found}); --model or --shape says which is meant"
        ));
    }
    let run = |((scenario, format, weights, batch, context), mut speeds): (_, Vec<f64>)| {
        speeds.sort_by(f64::total_cmp);
        let tokens_per_second = speeds[speeds.len() / 2];
        Run { scenario, format, weights, batch, context, tokens_per_second }
    };
    Ok(cases.into_iter().map(run).collect())
}

/// What `--quantize` keeps weights in.
fn kind(quantize: &str) -> Result<Kind, String> {
    match quantize {
        name if name == Quantization::None.name() => Ok(Kind::F32),
        name if name == Quantization::Int8.name() => Ok(Kind::Int8),
        other => Err(format!("a row has quantize {other:?}, which is not known")),
    }
}

impl Run {
    /// Compares it with what `hardware` could do.
    pub(super) fn against(self, hardware: &Hardware, model: &ModelConfig) -> Standing {
        let ceiling = Ceiling::of(hardware, model, self.weights, self.batch, self.context);
        Standing {
            scenario: self.scenario,
            format: self.format,
            context: self.context,
            tokens_per_second: self.tokens_per_second,
            share: self.tokens_per_second / ceiling.tokens_per_second,
            ceiling,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A row with all keys that there are, of which most say nothing here.
    fn row(model: &str, quantize: &str, run: u64, speed: f64) -> String {
        format!(
            r#"{{"model": "{model}", "scenario": "short", "format": "gguf", "quantize": "{quantize}",
                "device": "cpu", "threads": 2, "batch": 1, "context": 64, "run": {run},
                "load_seconds": 1.0, "prompt_tokens": 32, "output_tokens": 64, "ttft_seconds": null,
                "tpot_seconds": 0.1, "decode_tokens_per_second": {speed},
                "prefill_tokens_per_second": null, "peak_rss_bytes": null,
                "read_rate_bytes_per_second": 1e10, "bandwidth_utilization": 0.5}}"#
        )
    }

    #[test]
    fn runs_of_a_case_are_one_median() {
        let rows = [
            row("m", "none", 1, 5.0),
            row("m", "none", 2, 1.0),
            row("other", "none", 1, 99.0),
            row("m", "int8", 1, 7.0),
            row("m", "none", 3, 2.0),
        ];
        let runs = runs(&format!("[{}]", rows.join(",")), "m").unwrap_or_default();
        let found: Vec<_> = runs.iter().map(|run| (run.weights, run.tokens_per_second)).collect();
        assert_eq!(found, [(Kind::F32, 2.0), (Kind::Int8, 7.0)]);
    }

    #[test]
    fn what_is_wrong_with_a_file_is_named() {
        let other = format!("[{}]", row("other", "none", 1, 1.0));
        let unknown = format!("[{}]", row("m", "int3", 1, 1.0));
        for (text, part) in [
            ("{}", "bench --json"),
            ("[]", "it is empty"),
            (other.as_str(), "no row of m (other)"),
            (unknown.as_str(), "int3"),
        ] {
            let error = runs(text, "m").err().unwrap_or_default();
            assert!(error.contains(part), "{part:?} is not in {error:?}");
        }
    }
}

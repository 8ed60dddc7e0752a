//! `--last`: benchmark results, compared with their ceilings.

use std::{collections::BTreeMap, fs, path::Path};

use serde::{Deserialize, Serialize};
use stoker_engine::{model::Quantization, weights::ModelConfig};
use stoker_shared::cli::FileError;

use super::{Ceiling, Hardware, WeightFormat};
use crate::Error;

/// The fields of a `bench --json` row that are used here.
#[derive(Debug, Clone, Deserialize)]
struct InputRow {
    model: String,
    scenario: String,
    format: String,
    quantize: String,
    batch: u64,
    context: u64,
    decode_tokens_per_second: f64,
}

/// One case of a benchmark: the median of its runs.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct BenchCase {
    scenario: String,
    format: String,
    weights: WeightFormat,
    batch: u64,
    context: u64,
    tokens_per_second: f64,
}

/// A benchmark case compared with its ceiling.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct MeasuredCase {
    /// Name of the workload.
    pub scenario: String,
    /// File format of the model.
    pub format: String,
    /// Context length of each sequence.
    pub context: u64,
    /// Tokens per second of all sequences, the median of the runs.
    pub tokens_per_second: f64,
    /// Ceiling for the batch and context.
    pub ceiling: Ceiling,
    /// `tokens_per_second` divided by the ceiling.
    pub share: f64,
}

/// Reads the rows of `model` in the file of `--last`.
pub(super) fn read(path: &Path, model: &str) -> Result<Vec<BenchCase>, Error> {
    let text = fs::read_to_string(path).map_err(FileError::at("--last", path))?;
    parse_cases(&text, model)
        .map_err(|why| Error::Usage(format!("--last {}: {why}", path.display())))
}

/// Parses the rows of `model` and groups them into cases.
fn parse_cases(text: &str, model: &str) -> Result<Vec<BenchCase>, String> {
    let rows: Vec<InputRow> = serde_json::from_str(text)
        .map_err(|error| format!("is not a file of `stoker-worker bench --json`: {error}"))?;
    let mut cases: BTreeMap<_, Vec<f64>> = BTreeMap::new();
    let mut others: Vec<String> = Vec::new();
    for row in rows {
        if row.model != model {
            others.push(row.model);
            continue;
        }
        let case =
            (row.scenario, row.format, weight_format(&row.quantize)?, row.batch, row.context);
        cases.entry(case).or_default().push(row.decode_tokens_per_second);
    }
    if cases.is_empty() {
        others.sort_unstable();
        others.dedup();
        let found = if others.is_empty() { "the file is empty".into() } else { others.join(", ") };
        return Err(format!(
            "has no row of {model} ({found}); select the model with --model or --shape"
        ));
    }
    let case = |((scenario, format, weights, batch, context), mut speeds): (_, Vec<f64>)| {
        speeds.sort_by(f64::total_cmp);
        let tokens_per_second = speeds[speeds.len() / 2];
        BenchCase { scenario, format, weights, batch, context, tokens_per_second }
    };
    Ok(cases.into_iter().map(case).collect())
}

/// Returns the data type of weights with `--quantize`.
fn weight_format(quantize: &str) -> Result<WeightFormat, String> {
    match quantize {
        name if name == Quantization::None.name() => Ok(WeightFormat::F32),
        name if name == Quantization::Int8.name() => Ok(WeightFormat::Int8),
        name if name == Quantization::Int4.name() => Ok(WeightFormat::Int4),
        other => Err(format!("a row has quantize {other:?}, which is unknown")),
    }
}

impl BenchCase {
    /// Compares the case with its ceiling on `hardware`.
    pub(super) fn compare(self, hardware: &Hardware, model: &ModelConfig) -> MeasuredCase {
        let ceiling = Ceiling::of(hardware, model, self.weights, self.batch, self.context);
        MeasuredCase {
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

    /// Returns a row with all keys, most of which are not used here.
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
    fn runs_of_a_case_are_reduced_to_their_median() {
        let rows = [
            row("m", "none", 1, 5.0),
            row("m", "none", 2, 1.0),
            row("other", "none", 1, 99.0),
            row("m", "int8", 1, 7.0),
            row("m", "none", 3, 2.0),
        ];
        let cases = parse_cases(&format!("[{}]", rows.join(",")), "m").unwrap_or_default();
        let found: Vec<_> =
            cases.iter().map(|case| (case.weights, case.tokens_per_second)).collect();
        assert_eq!(found, [(WeightFormat::F32, 2.0), (WeightFormat::Int8, 7.0)]);
    }

    #[test]
    fn an_invalid_file_is_reported_with_the_reason() {
        let other = format!("[{}]", row("other", "none", 1, 1.0));
        let unknown = format!("[{}]", row("m", "int3", 1, 1.0));
        for (text, part) in [
            ("{}", "bench --json"),
            ("[]", "the file is empty"),
            (other.as_str(), "no row of m (other)"),
            (unknown.as_str(), "int3"),
        ] {
            let error = parse_cases(text, "m").err().unwrap_or_default();
            assert!(error.contains(part), "{part:?} is not in {error:?}");
        }
    }
}

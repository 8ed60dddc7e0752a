//! Results as a table and as rows of JSON.

use std::fmt;

use serde::Serialize;

use super::{compare::Variant, score::Score, text::Text, windows::Windows};

/// Results of an evaluation.
#[derive(Debug, Clone, PartialEq)]
pub struct EvalReport {
    /// The BOS token of every window, if the model has one.
    bos_token: Option<String>,
    /// One row per quantization. The first is the reference.
    pub rows: Vec<EvalRow>,
}

/// Results of one quantization.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct EvalRow {
    /// Name of the model.
    pub model: String,
    /// Name of the text.
    pub text: String,
    /// Quantization of the weights.
    pub quantize: &'static str,
    /// Number of scored tokens.
    pub tokens: u64,
    /// Number of windows.
    pub windows: usize,
    /// Maximum window length in tokens.
    pub window_length: usize,
    /// Mean negative log probability of a token, in nats.
    pub nats_per_token: f64,
    /// Perplexity: e to the power of `nats_per_token`.
    pub perplexity: f64,
    /// Perplexity divided by that of the first row, minus 1. None for the first.
    pub perplexity_change: Option<f64>,
    /// Share of positions with the same most likely token as the first row. None for the first.
    pub top1_agreement: Option<f64>,
    /// Mean over all logits of the absolute difference from the first row. None for the first.
    pub mean_absolute_logit_difference: Option<f64>,
    /// Time spent in the model.
    pub seconds: f64,
}

impl EvalReport {
    pub(super) fn new(
        model: String,
        text: &Text,
        windows: &Windows,
        variants: &[Variant],
        scores: &[Score],
    ) -> Self {
        let reference = scores.first().map_or(1.0, Score::perplexity);
        let row = |(index, (variant, score)): (usize, (&Variant, &Score))| {
            let compared = |value: f64| (index > 0).then_some(value);
            EvalRow {
                model: model.clone(),
                text: text.name.clone(),
                quantize: variant.kind.name(),
                tokens: score.tokens,
                windows: windows.windows.len(),
                window_length: windows.length,
                nats_per_token: score.nats_per_token(),
                perplexity: score.perplexity(),
                perplexity_change: compared(score.perplexity() / reference - 1.0),
                top1_agreement: compared(score.difference.same_top as f64 / score.tokens as f64),
                mean_absolute_logit_difference: compared(
                    score.difference.absolute_sum / score.difference.logits as f64,
                ),
                seconds: score.time.as_secs_f64(),
            }
        };
        let rows = variants.iter().zip(scores).enumerate().map(row).collect();
        Self { bos_token: windows.bos_token.clone(), rows }
    }
}

impl fmt::Display for EvalReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(first) = self.rows.first() else { return Ok(()) };
        let start = match &self.bos_token {
            None => "the first token of each is not scored".to_owned(),
            Some(token) => format!("each starts with {token}"),
        };
        let EvalRow { model, text, tokens, windows, window_length, .. } = first;
        writeln!(f, "{model} on {text}: {tokens} tokens scored")?;
        let windows = if *windows == 1 { "1 window".into() } else { format!("{windows} windows") };
        writeln!(f, "in {windows} of at most {window_length} tokens, not overlapping, {start}\n")?;
        writeln!(
            f,
            "quantize  perplexity  difference  same top token  |logit difference|  seconds"
        )?;
        for row in &self.rows {
            let change = cell(row.perplexity_change.map(|x| format!("{:+.2} %", 100.0 * x)));
            let same = cell(row.top1_agreement.map(|x| format!("{:.2} %", 100.0 * x)));
            let difference = cell(row.mean_absolute_logit_difference.map(|x| format!("{x:.4}")));
            writeln!(
                f,
                "{:8}  {:10.4}  {change:>10}  {same:>14}  {difference:>18}  {:7.1}",
                row.quantize, row.perplexity, row.seconds
            )?;
        }
        Ok(())
    }
}

fn cell(value: Option<String>) -> String {
    value.unwrap_or_else(|| "-".to_owned())
}

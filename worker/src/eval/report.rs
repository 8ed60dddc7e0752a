//! What comes of it: a table, and rows of JSON.

use std::fmt;

use serde::Serialize;

use super::{compare::Subject, score::Score, text::Text, windows::Windows};

/// What was measured.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    /// The token that begins every window, where the model has one.
    begin: Option<String>,
    /// One for each kind, what the others are compared with first.
    pub rows: Vec<Row>,
}

/// What was measured of one kind.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// The name of the model.
    pub model: String,
    /// The text.
    pub text: String,
    /// How weights were kept.
    pub quantize: &'static str,
    /// Tokens that were scored.
    pub tokens: u64,
    /// Windows that they lie in.
    pub windows: usize,
    /// Positions of a window at most.
    pub window_length: usize,
    /// Mean negative log probability of a token, in nats.
    pub nats_per_token: f64,
    /// e to the power of it.
    pub perplexity: f64,
    /// The perplexity divided by that of the first row, less 1; none for the first.
    pub perplexity_change: Option<f64>,
    /// The share of tokens where the likeliest one is that of the first row.
    pub top1_agreement: Option<f64>,
    /// Over all logits of all tokens, against the first row.
    pub mean_absolute_logit_difference: Option<f64>,
    /// In the model.
    pub seconds: f64,
}

impl Report {
    pub(super) fn new(
        model: String,
        text: &Text,
        windows: &Windows,
        subjects: &[Subject],
        scores: &[Score],
    ) -> Self {
        let reference = scores.first().map_or(1.0, Score::perplexity);
        let row = |(index, (subject, score)): (usize, (&Subject, &Score))| {
            let compared = |value: f64| (index > 0).then_some(value);
            Row {
                model: model.clone(),
                text: text.name.clone(),
                quantize: subject.kind.name(),
                tokens: score.tokens,
                windows: windows.windows.len(),
                window_length: windows.length,
                nats_per_token: score.nats_per_token(),
                perplexity: score.perplexity(),
                perplexity_change: compared(score.perplexity() / reference - 1.0),
                top1_agreement: compared(score.apart.same_top as f64 / score.tokens as f64),
                mean_absolute_logit_difference: compared(
                    score.apart.difference / score.apart.logits as f64,
                ),
                seconds: score.time.as_secs_f64(),
            }
        };
        let rows = subjects.iter().zip(scores).enumerate().map(row).collect();
        Self { begin: windows.begin.clone(), rows }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(first) = self.rows.first() else { return Ok(()) };
        let begin = match &self.begin {
            None => "of which the first token is not scored".to_owned(),
            Some(token) => format!("each after {token}"),
        };
        let Row { model, text, tokens, windows, window_length, .. } = first;
        writeln!(f, "{model} on {text}: {tokens} tokens scored")?;
        let windows = if *windows == 1 { "1 window".into() } else { format!("{windows} windows") };
        writeln!(f, "in {windows} of at most {window_length}, none over another, {begin}\n")?;
        writeln!(
            f,
            "quantize  perplexity  difference  same top token  |logit difference|  seconds"
        )?;
        for row in &self.rows {
            let change = cell(row.perplexity_change.map(|x| format!("{:+.2} %", 100.0 * x)));
            let same = cell(row.top1_agreement.map(|x| format!("{:.2} %", 100.0 * x)));
            let apart = cell(row.mean_absolute_logit_difference.map(|x| format!("{x:.4}")));
            writeln!(
                f,
                "{:8}  {:10.4}  {change:>10}  {same:>14}  {apart:>18}  {:7.1}",
                row.quantize, row.perplexity, row.seconds
            )?;
        }
        Ok(())
    }
}

fn cell(value: Option<String>) -> String {
    value.unwrap_or_else(|| "-".to_owned())
}

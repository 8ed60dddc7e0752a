//! Held-out perplexity of the models, compared with n-grams on the same tokens.

use std::fmt;

use burn::tensor::{Device, Tensor, activation};

use crate::make::{
    config::{EOS, ModelConfig},
    error::{Error, Result},
    llama::Llama,
    weights::Weights,
};

/// Number of stories in one batch.
const ROWS: usize = 8;

/// One row of the table.
#[derive(Debug, Clone, PartialEq)]
pub struct Score {
    /// Name of the model.
    pub name: String,
    /// Number of learned parameters.
    pub parameters: usize,
    /// Mean negative log-probability of a token, in nats.
    pub nats: f64,
}

impl Score {
    /// Returns the perplexity.
    pub fn perplexity(&self) -> f64 {
        self.nats.exp()
    }
}

/// The table, best row last.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    /// Number of held-out stories.
    pub stories: usize,
    /// Number of scored tokens: all but the first of each story.
    pub tokens: usize,
    /// The rows.
    pub scores: Vec<Score>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} held-out stories, {} tokens", self.stories, self.tokens)?;
        writeln!(f)?;
        writeln!(f, "| | parameters | nats per token | perplexity |")?;
        writeln!(f, "| --- | ---: | ---: | ---: |")?;
        for score in &self.scores {
            let (name, nats) = (&score.name, score.nats);
            writeln!(
                f,
                "| {name} | {} | {nats:.3} | {:.2} |",
                score.parameters,
                score.perplexity()
            )?;
        }
        Ok(())
    }
}

/// Returns the mean negative log-probability of `stories` under a model, in nats per token. Each
/// story is a separate sequence.
pub fn nats(
    config: &ModelConfig,
    weights: &Weights<Tensor<2>>,
    stories: &[Vec<u32>],
) -> Result<f64> {
    let (mut total, mut count) = (0.0, 0);
    // Sorted by length, so that the rows of a batch need little padding.
    let mut sorted: Vec<&Vec<u32>> = stories.iter().filter(|story| story.len() > 1).collect();
    sorted.sort_by_key(|story| story.len());
    for rows in sorted.chunks(ROWS) {
        let length = rows.iter().map(|row| row.len() - 1).max().unwrap_or(1);
        let mut inputs = Vec::with_capacity(rows.len() * length);
        for row in rows {
            inputs.extend_from_slice(&row[..row.len() - 1]);
            inputs.resize(inputs.len() + length + 1 - row.len(), EOS);
        }
        let logits = Llama::new(config, length, &Device::flex()).logits(weights, &inputs);
        let log_probs = activation::log_softmax(logits, 1)
            .try_into_vec_as::<f32>()
            .map_err(|error| Error::Weights(format!("{error:?}")))?;
        for (r, row) in rows.iter().enumerate() {
            for (t, &token) in row[1..].iter().enumerate() {
                let i = (r * length + t) * config.vocab_size + token as usize;
                total -= f64::from(log_probs[i]);
                count += 1;
            }
        }
    }
    Ok(total / count.max(1) as f64)
}

/// Returns the mean of `nats` over the tokens of all stories, for baselines that score one story at
/// a time.
pub fn mean_nats(stories: &[Vec<u32>], nats: impl Fn(&[u32]) -> f64 + Sync) -> f64 {
    let tokens: usize = stories.iter().map(|story| story.len() - 1).sum();
    let total: f64 = stories.iter().map(|story| nats(story) * (story.len() - 1) as f64).sum();
    total / tokens.max(1) as f64
}

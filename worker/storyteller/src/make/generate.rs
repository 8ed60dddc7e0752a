//! A simple generator, to read what a model writes: no cache, a few stories side by side.

use burn::tensor::{Device, Int, Tensor, TensorData};

use crate::dice::Dice;
use crate::make::{
    config::{EOS, ModelConfig},
    error::{Error, Result},
    llama::Llama,
    weights::Weights,
};

/// Sequences are padded to a multiple of this, so that tables are rebuilt rarely.
const BUCKET: usize = 64;

/// How to choose the next token.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Choice {
    /// Divides the scores; zero always takes the likeliest token.
    pub temperature: f64,
    /// Decides what chance decides.
    pub seed: u64,
    /// Where a story that does not end is cut, in tokens; never beyond the model's context.
    pub longest: usize,
}

/// Continues `prompt` `rows` times, each until its story ends or is as long as it may be.
pub fn stories(
    config: &ModelConfig,
    weights: &Weights<Tensor<2>>,
    prompt: &[u32],
    rows: usize,
    choice: Choice,
) -> Result<Vec<Vec<u32>>> {
    let mut texts = vec![prompt.to_vec(); rows];
    let mut dice: Vec<Dice> = (0..rows).map(|row| Dice::nth(choice.seed, row as u64)).collect();
    let limit = choice.longest.min(config.max_position_embeddings);
    let mut model: Option<(usize, Llama)> = None;
    loop {
        let open: Vec<usize> = (0..rows).filter(|&row| texts[row].last() != Some(&EOS)).collect();
        let longest = open.iter().map(|&row| texts[row].len()).max().unwrap_or(limit);
        if longest >= limit {
            return Ok(texts);
        }
        let length = longest.next_multiple_of(BUCKET);
        let (_, model) = match model.take() {
            Some((known, llama)) if known == length => model.insert((known, llama)),
            _ => model.insert((length, Llama::new(config, length, &Device::flex()))),
        };
        let mut inputs = Vec::with_capacity(open.len() * length);
        for &row in &open {
            inputs.extend_from_slice(&texts[row]);
            inputs.resize(inputs.len() + length - texts[row].len(), EOS);
        }
        let last: Vec<i32> = open
            .iter()
            .enumerate()
            .map(|(i, &row)| (i * length + texts[row].len() - 1) as i32)
            .collect();
        let last =
            Tensor::<1, Int>::from_data(TensorData::new(last, [open.len()]), &Device::flex());
        let scores = model
            .scores(weights, model.states(weights, &inputs).select(0, last))
            .try_into_vec_as::<f32>()
            .map_err(|error| Error::Weights(format!("{error:?}")))?;
        for (scores, &row) in scores.chunks(config.vocab_size).zip(&open) {
            texts[row].push(choose(scores, choice.temperature, &mut dice[row]));
        }
    }
}

/// The token with the highest score after noise: adding Gumbel noise samples from the softmax.
fn choose(scores: &[f32], temperature: f64, dice: &mut Dice) -> u32 {
    let mut best = (f64::NEG_INFINITY, 0);
    for (token, &score) in scores.iter().enumerate() {
        let noise = if temperature > 0.0 { -(-(1.0 - dice.unit()).ln()).ln() } else { 0.0 };
        let score = f64::from(score) + temperature * noise;
        if score > best.0 {
            best = (score, token as u32);
        }
    }
    best.1
}

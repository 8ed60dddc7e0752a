//! Generates sample texts of a model, in one batch and without a KV cache.

use burn::tensor::{Device, Int, Tensor, TensorData};

use crate::make::{
    config::{EOS, ModelConfig},
    error::{Error, Result},
    llama::Llama,
    weights::Weights,
};
use crate::rng::SeededRng;

/// Sequences are padded to a multiple of this length, so that position tables are rebuilt rarely.
const BUCKET: usize = 64;

/// How to sample tokens.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SamplingOptions {
    /// Divides the logits. At zero the most likely token is always taken.
    pub temperature: f64,
    /// Seed of the random numbers.
    pub seed: u64,
    /// Maximum length of a story including the prompt, in tokens. The model's context is a limit
    /// too.
    pub max_tokens: usize,
}

/// Continues `prompt` `rows` times, each until the story ends or has its maximum length.
pub fn stories(
    config: &ModelConfig,
    weights: &Weights<Tensor<2>>,
    prompt: &[u32],
    rows: usize,
    options: SamplingOptions,
) -> Result<Vec<Vec<u32>>> {
    let mut texts = vec![prompt.to_vec(); rows];
    let mut rngs: Vec<SeededRng> =
        (0..rows).map(|row| SeededRng::nth(options.seed, row as u64)).collect();
    let limit = options.max_tokens.min(config.max_position_embeddings);
    let mut model: Option<(usize, Llama)> = None;
    loop {
        let unfinished: Vec<usize> =
            (0..rows).filter(|&row| texts[row].last() != Some(&EOS)).collect();
        let longest = unfinished.iter().map(|&row| texts[row].len()).max().unwrap_or(limit);
        if longest >= limit {
            return Ok(texts);
        }
        let length = longest.next_multiple_of(BUCKET);
        let (_, model) = match model.take() {
            Some((model_length, llama)) if model_length == length => {
                model.insert((model_length, llama))
            }
            _ => model.insert((length, Llama::new(config, length, &Device::flex()))),
        };
        let mut inputs = Vec::with_capacity(unfinished.len() * length);
        for &row in &unfinished {
            inputs.extend_from_slice(&texts[row]);
            inputs.resize(inputs.len() + length - texts[row].len(), EOS);
        }
        let last: Vec<i32> = unfinished
            .iter()
            .enumerate()
            .map(|(i, &row)| (i * length + texts[row].len() - 1) as i32)
            .collect();
        let last =
            Tensor::<1, Int>::from_data(TensorData::new(last, [unfinished.len()]), &Device::flex());
        let logits = model
            .lm_head(weights, model.hidden_states(weights, &inputs).select(0, last))
            .try_into_vec_as::<f32>()
            .map_err(|error| Error::Weights(format!("{error:?}")))?;
        for (logits, &row) in logits.chunks(config.vocab_size).zip(&unfinished) {
            texts[row].push(sample(logits, options.temperature, &mut rngs[row]));
        }
    }
}

/// Samples a token: the one with the highest logit after Gumbel noise, which samples from the
/// softmax.
fn sample(logits: &[f32], temperature: f64, rng: &mut SeededRng) -> u32 {
    let mut best = (f64::NEG_INFINITY, 0);
    for (token, &logit) in logits.iter().enumerate() {
        let noise = if temperature > 0.0 { -(-(1.0 - rng.unit()).ln()).ln() } else { 0.0 };
        let noisy = f64::from(logit) + temperature * noise;
        if noisy > best.0 {
            best = (noisy, token as u32);
        }
    }
    best.1
}

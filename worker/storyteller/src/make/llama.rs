//! The forward pass of a Llama in plain burn operations, arranged for few and large matrix
//! products.

mod attention;
mod rope;

use burn::tensor::{Device, Int, Tensor, TensorData, activation};

use crate::make::{
    config::ModelConfig,
    weights::{Block, Weights, specs},
};
use crate::rng::SeededRng;
use attention::CausalAttention;
use rope::Rope;

/// The forward pass for one sequence length, with the tables that depend on that length.
pub struct Llama {
    config: ModelConfig,
    length: usize,
    device: Device,
    rope_q: Rope,
    rope_k: Rope,
    attention: CausalAttention,
}

/// Returns initial weights: normally distributed with a standard deviation of 0.05, smaller where a
/// block writes to the residual stream.
pub fn init(config: &ModelConfig, seed: u64, device: &Device) -> Weights<Tensor<2>> {
    let mut rng = SeededRng::new(seed);
    let residual = 1.0 / (2.0 * config.num_hidden_layers as f64).sqrt();
    specs(config).map(|spec| {
        let deviation = match spec.name.as_str() {
            name if name.ends_with("o_proj.weight") || name.ends_with("down_proj.weight") => {
                0.05 * residual
            }
            _ => 0.05,
        };
        let values: Vec<f32> = (0..spec.len())
            .map(|_| if spec.is_norm() { 1.0 } else { (rng.normal() * deviation) as f32 })
            .collect();
        Tensor::from_data(TensorData::new(values, spec.shape), device)
    })
}

impl Llama {
    /// Creates the forward pass for sequences of exactly `length` tokens on `device`.
    pub fn new(config: &ModelConfig, length: usize, device: &Device) -> Self {
        Self {
            length,
            rope_q: Rope::new(config, length, config.num_attention_heads, device),
            rope_k: Rope::new(config, length, config.num_key_value_heads, device),
            attention: CausalAttention::new(config, length, device),
            device: device.clone(),
            config: config.clone(),
        }
    }

    /// Returns the final hidden state of each token.
    ///
    /// - `tokens`: row-major `[batch, length]`
    /// - output: `[batch * length, hidden]`
    pub fn hidden_states(&self, weights: &Weights<Tensor<2>>, tokens: &[u32]) -> Tensor<2> {
        let batch = tokens.len() / self.length;
        let mut x = weights.embed.clone().select(0, self.indices(tokens));
        for block in &weights.blocks {
            x = self.block(block, x, batch);
        }
        self.norm(x, &weights.norm)
    }

    /// Returns the logits of hidden states: `[rows, hidden]` to `[rows, vocab]`.
    pub fn lm_head(&self, weights: &Weights<Tensor<2>>, hidden: Tensor<2>) -> Tensor<2> {
        linear(hidden, &weights.embed)
    }

    /// Returns the logits of the token after each token.
    ///
    /// - `tokens`: row-major `[batch, length]`
    /// - output: `[batch * length, vocab]`
    pub fn logits(&self, weights: &Weights<Tensor<2>>, tokens: &[u32]) -> Tensor<2> {
        self.lm_head(weights, self.hidden_states(weights, tokens))
    }

    /// Converts `tokens` to a tensor `[tokens]`.
    fn indices(&self, tokens: &[u32]) -> Tensor<1, Int> {
        let indices: Vec<i32> = tokens.iter().map(|&token| token as i32).collect();
        Tensor::from_data(TensorData::new(indices, [tokens.len()]), &self.device)
    }

    /// Returns the mean cross-entropy of `targets` `[batch * length]` after `tokens`, in nats.
    pub fn loss(&self, weights: &Weights<Tensor<2>>, tokens: &[u32], targets: &[u32]) -> Tensor<1> {
        let targets = self.indices(targets).unsqueeze_dim::<2>(1);
        let logits = self.logits(weights, tokens);
        let target_logits = logits.clone().gather(1, targets);
        logits.exp().sum_dim(1).log().sub(target_logits).mean()
    }

    /// Computes one block. `x` and the output are `[batch * length, hidden]`.
    fn block(&self, w: &Block<Tensor<2>>, x: Tensor<2>, batch: usize) -> Tensor<2> {
        let normed = self.norm(x.clone(), &w.input_norm);
        let q = self.rope_q.rotate(linear(normed.clone(), &w.q), batch);
        let k = self.rope_k.rotate(linear(normed.clone(), &w.k), batch);
        let v = linear(normed, &w.v);
        let x = x.add(linear(self.attention.attend(q, k, v, batch), &w.o));

        let normed = self.norm(x.clone(), &w.post_norm);
        let gate = activation::silu(linear(normed.clone(), &w.gate));
        x.add(linear(gate.mul(linear(normed, &w.up)), &w.down))
    }

    /// Applies root-mean-square normalisation to every row, times a gain `[1, hidden]`.
    fn norm(&self, x: Tensor<2>, gain: &Tensor<2>) -> Tensor<2> {
        let mean_square = x.clone().mul(x.clone()).mean_dim(1);
        let scale = mean_square.add_scalar(self.config.rms_norm_eps).sqrt().recip();
        x.mul(scale).mul(gain.clone())
    }
}

/// Multiplies `x` `[rows, in]` by the transpose of `weight` `[out, in]`: `[rows, out]`.
fn linear(x: Tensor<2>, weight: &Tensor<2>) -> Tensor<2> {
    x.matmul(weight.clone().transpose())
}

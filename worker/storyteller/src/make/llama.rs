//! The forward pass of a Llama in plain burn operations, arranged for few and large matrix products.

mod attention;
mod rope;

use burn::tensor::{Device, Int, Tensor, TensorData, activation};

use crate::dice::Dice;
use crate::make::{
    config::ModelConfig,
    weights::{Block, Weights, specs},
};
use attention::Causal;
use rope::Rope;

/// What a forward pass needs besides weights: tables that depend on the sequence length alone.
pub struct Llama {
    config: ModelConfig,
    length: usize,
    device: Device,
    rope_q: Rope,
    rope_k: Rope,
    causal: Causal,
}

/// Fresh weights: normal with deviation 0.02, smaller where a block writes to the residual stream.
pub fn init(config: &ModelConfig, seed: u64, device: &Device) -> Weights<Tensor<2>> {
    let mut dice = Dice::new(seed);
    let residual = 1.0 / (2.0 * config.num_hidden_layers as f64).sqrt();
    specs(config).map(|spec| {
        let deviation = match spec.name.as_str() {
            name if name.ends_with("o_proj.weight") || name.ends_with("down_proj.weight") => {
                0.05 * residual
            }
            _ => 0.05,
        };
        let values: Vec<f32> = (0..spec.len())
            .map(|_| if spec.is_norm() { 1.0 } else { (dice.normal() * deviation) as f32 })
            .collect();
        Tensor::from_data(TensorData::new(values, spec.shape), device)
    })
}

impl Llama {
    /// A model for sequences of exactly `length` tokens, computing where `device` says.
    pub fn new(config: &ModelConfig, length: usize, device: &Device) -> Self {
        Self {
            length,
            rope_q: Rope::new(config, length, config.num_attention_heads, device),
            rope_k: Rope::new(config, length, config.num_key_value_heads, device),
            causal: Causal::new(config, length, device),
            device: device.clone(),
            config: config.clone(),
        }
    }

    /// What the model makes of each token and those before it.
    ///
    /// - `tokens`: row-major `[batch, length]`
    /// - output: `[batch * length, hidden]`
    pub fn states(&self, weights: &Weights<Tensor<2>>, tokens: &[u32]) -> Tensor<2> {
        let batch = tokens.len() / self.length;
        let mut x = weights.embed.clone().select(0, self.indices(tokens));
        for block in &weights.blocks {
            x = self.block(block, x, batch);
        }
        self.norm(x, &weights.norm)
    }

    /// Scores for every token to come next: `states` `[rows, hidden]` to `[rows, vocab]`.
    pub fn scores(&self, weights: &Weights<Tensor<2>>, states: Tensor<2>) -> Tensor<2> {
        linear(states, &weights.embed)
    }

    /// Scores for the token after each token.
    ///
    /// - `tokens`: row-major `[batch, length]`
    /// - output: `[batch * length, vocab]`
    pub fn logits(&self, weights: &Weights<Tensor<2>>, tokens: &[u32]) -> Tensor<2> {
        self.scores(weights, self.states(weights, tokens))
    }

    /// `tokens` as a tensor `[tokens]`.
    fn indices(&self, tokens: &[u32]) -> Tensor<1, Int> {
        let indices: Vec<i32> = tokens.iter().map(|&token| token as i32).collect();
        Tensor::from_data(TensorData::new(indices, [tokens.len()]), &self.device)
    }

    /// Mean cross-entropy in nats of `targets` (`[batch * length]`) given `tokens` up to each.
    pub fn loss(&self, weights: &Weights<Tensor<2>>, tokens: &[u32], targets: &[u32]) -> Tensor<1> {
        let targets = self.indices(targets).unsqueeze_dim::<2>(1);
        let logits = self.logits(weights, tokens);
        let picked = logits.clone().gather(1, targets);
        logits.exp().sum_dim(1).log().sub(picked).mean()
    }

    /// `x`: `[batch * length, hidden]`, and so is the output.
    fn block(&self, w: &Block<Tensor<2>>, x: Tensor<2>, batch: usize) -> Tensor<2> {
        let normed = self.norm(x.clone(), &w.input_norm);
        let q = self.rope_q.rotate(linear(normed.clone(), &w.q), batch);
        let k = self.rope_k.rotate(linear(normed.clone(), &w.k), batch);
        let v = linear(normed, &w.v);
        let x = x.add(linear(self.causal.attend(q, k, v, batch), &w.o));

        let normed = self.norm(x.clone(), &w.post_norm);
        let gate = activation::silu(linear(normed.clone(), &w.gate));
        x.add(linear(gate.mul(linear(normed, &w.up)), &w.down))
    }

    /// Root-mean-square normalisation of every row, times a gain `[1, hidden]`.
    fn norm(&self, x: Tensor<2>, gain: &Tensor<2>) -> Tensor<2> {
        let mean_square = x.clone().mul(x.clone()).mean_dim(1);
        let scale = mean_square.add_scalar(self.config.rms_norm_eps).sqrt().recip();
        x.mul(scale).mul(gain.clone())
    }
}

/// `x` `[rows, in]` times the transpose of `weight` `[out, in]`: `[rows, out]`.
fn linear(x: Tensor<2>, weight: &Tensor<2>) -> Tensor<2> {
    x.matmul(weight.clone().transpose())
}

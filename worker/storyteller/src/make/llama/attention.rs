//! Causal attention with grouped heads over whole sequences.

use burn::tensor::{Device, Tensor, TensorData};

use crate::make::config::ModelConfig;

/// Added to masked attention scores. e^-80 is negligible, and unlike minus infinity it avoids the
/// slow underflow path of exp.
const MASKED: f32 = -80.0;

/// Causal attention for one sequence length, with a mask laid out for grouped heads.
pub(super) struct CausalAttention {
    /// `[1, group * length, length]`: zero for visible keys, [`MASKED`] for masked ones.
    mask: Tensor<3>,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
}

impl CausalAttention {
    pub(super) fn new(config: &ModelConfig, length: usize, device: &Device) -> Self {
        let group = config.num_attention_heads / config.num_key_value_heads;
        let values: Vec<f32> = (0..group * length * length)
            .map(|i| if i % length <= (i / length) % length { 0.0 } else { MASKED })
            .collect();
        Self {
            mask: Tensor::from_data(TensorData::new(values, [1, group * length, length]), device),
            heads: config.num_attention_heads,
            kv_heads: config.num_key_value_heads,
            head_dim: config.head_dim,
        }
    }

    /// - `q`: `[batch * length, heads * head_dim]`
    /// - `k`, `v`: `[batch * length, kv_heads * head_dim]`
    /// - output: `[batch * length, heads * head_dim]`
    pub(super) fn attend(
        &self,
        q: Tensor<2>,
        k: Tensor<2>,
        v: Tensor<2>,
        batch: usize,
    ) -> Tensor<2> {
        let (heads, kv_heads, head_dim) = (self.heads, self.kv_heads, self.head_dim);
        let (rows, group) = (q.dims()[0], heads / kv_heads);
        let length = rows / batch;
        // The query heads that share a key head become rows of one matmul, so k and v are not
        // copied.
        let q = q
            .mul_scalar(1.0 / (head_dim as f64).sqrt())
            .reshape([batch, length, heads, head_dim])
            .swap_dims(1, 2)
            .reshape([batch * kv_heads, group * length, head_dim]);
        let by_head = |x: Tensor<2>| {
            x.reshape([batch, length, kv_heads, head_dim]).swap_dims(1, 2).reshape([
                batch * kv_heads,
                length,
                head_dim,
            ])
        };
        // Softmax without extra passes over the scores: the weights stay unnormalised, a column of
        // ones next to v sums them inside the matmul, and the smaller result is divided. Scores of
        // a model of this size stay far below 88, where exp overflows.
        let weights = q.matmul(by_head(k).transpose()).add(self.mask.clone()).exp();
        let ones = Tensor::ones([batch * kv_heads, length, 1], &weights.device());
        let sums = weights.matmul(Tensor::cat(vec![by_head(v), ones], 2));
        let total = sums.clone().narrow(2, head_dim, 1);
        sums.narrow(2, 0, head_dim)
            .div(total)
            .reshape([batch, heads, length, head_dim])
            .swap_dims(1, 2)
            .reshape([rows, heads * head_dim])
    }
}

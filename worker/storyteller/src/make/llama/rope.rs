//! Rotary position embedding that pairs the halves of each head, as Llama checkpoints expect.

use burn::tensor::{Device, Tensor, TensorData};

use crate::make::config::ModelConfig;

/// Tables for one number of heads and one sequence length.
pub(super) struct Rope {
    /// `[length, heads * head_dim]`
    cos: Tensor<2>,
    /// `[length, heads * head_dim]`
    sin: Tensor<2>,
    /// `[head_dim, head_dim]`: maps `(a, b)` to `(-b, a)`. This matmul takes one pass over the data
    /// forwards and one backwards, where slicing and joining halves would take six.
    swap: Tensor<2>,
    head_dim: usize,
}

impl Rope {
    pub(super) fn new(config: &ModelConfig, length: usize, heads: usize, device: &Device) -> Self {
        let head_dim = config.head_dim;
        let half = head_dim / 2;
        let angle = |position: usize, feature: usize| {
            let exponent = 2.0 * (feature % half) as f64 / head_dim as f64;
            position as f64 * config.rope_theta.powf(-exponent)
        };
        let table = |f: fn(f64) -> f64| {
            let values: Vec<f32> = (0..length * heads * head_dim)
                .map(|i| f(angle(i / (heads * head_dim), i % head_dim)) as f32)
                .collect();
            Tensor::from_data(TensorData::new(values, [length, heads * head_dim]), device)
        };
        let mut swap = vec![0.0f32; head_dim * head_dim];
        for i in 0..half {
            swap[(i + half) * head_dim + i] = -1.0;
            swap[i * head_dim + i + half] = 1.0;
        }
        Self {
            cos: table(f64::cos),
            sin: table(f64::sin),
            swap: Tensor::from_data(TensorData::new(swap, [head_dim, head_dim]), device),
            head_dim,
        }
    }

    /// Rotates every head by its position. `x` and the output are
    /// `[batch * length, heads * head_dim]`.
    pub(super) fn rotate(&self, x: Tensor<2>, batch: usize) -> Tensor<2> {
        let [rows, features] = x.dims();
        let length = rows / batch;
        let swapped = x
            .clone()
            .reshape([rows * features / self.head_dim, self.head_dim])
            .matmul(self.swap.clone())
            .reshape([batch, length, features]);
        let cos = self.cos.clone().unsqueeze::<3>();
        let sin = self.sin.clone().unsqueeze::<3>();
        x.reshape([batch, length, features])
            .mul(cos)
            .add(swapped.mul(sin))
            .reshape([rows, features])
    }
}

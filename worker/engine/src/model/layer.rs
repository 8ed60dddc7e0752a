//! One decoder layer: attention, then feed-forward, each on top of its input.

use burn::tensor::Tensor;
use stoker_ops::{Cache, Tokens};

use super::{Reader, attention::Attention, mlp::Mlp};
use crate::weights::{ModelConfig, WeightsError};

/// One decoder layer.
#[derive(Debug, Clone)]
pub struct Layer {
    /// Self-attention, which reads earlier tokens from the cache.
    pub attention: Attention,
    /// Feed-forward layer, which works on each token alone.
    pub mlp: Mlp,
}

impl Layer {
    pub(super) fn read(
        config: &ModelConfig,
        reader: &mut Reader,
        index: usize,
    ) -> Result<Self, WeightsError> {
        Ok(Self {
            attention: Attention::read(config, reader, index)?,
            mlp: Mlp::read(config, reader, index)?,
        })
    }

    /// `x [tokens, hidden] -> [tokens, hidden]`, and the layer's cache with the new tokens
    /// appended.
    pub fn forward(
        &self,
        x: Tensor<2>,
        rope: Tensor<2>,
        tokens: &Tokens,
        cache: Cache,
    ) -> (Tensor<2>, Cache) {
        let (x, cache) = self.attention.forward(x, rope, tokens, cache);
        (self.mlp.forward(x), cache)
    }
}

//! One decoder layer: attention, then feed-forward, each behind a norm and on top of its input.

use burn::{module::Module, tensor::Tensor};
use stoker_ops::{Cache, Tokens};

use super::{Reader, attention::Attention, mlp::Mlp, norm::RmsNorm};
use crate::weights::{ModelConfig, WeightsError};

/// One decoder layer.
#[derive(Module, Debug)]
pub struct Layer {
    /// Before attention.
    pub attention_norm: RmsNorm,
    /// Looks at the earlier tokens.
    pub attention: Attention,
    /// Before the feed-forward layer.
    pub mlp_norm: RmsNorm,
    /// Looks at the token alone.
    pub mlp: Mlp,
}

impl Layer {
    pub(super) fn read(
        config: &ModelConfig,
        reader: &mut Reader,
        index: usize,
    ) -> Result<Self, WeightsError> {
        let prefix = format!("model.layers.{index}");
        let norm = |reader: &mut Reader, name| {
            RmsNorm::read(config, reader, &format!("{prefix}.{name}"), config.hidden_size)
        };
        Ok(Self {
            attention_norm: norm(reader, "input_layernorm")?,
            attention: Attention::read(config, reader, index)?,
            mlp_norm: norm(reader, "post_attention_layernorm")?,
            mlp: Mlp::read(config, reader, index)?,
        })
    }

    /// `x [tokens, hidden] -> [tokens, hidden]`, and the layer's cache with the new tokens in it.
    pub fn forward(
        &self,
        x: Tensor<2>,
        rope: Tensor<2>,
        tokens: &Tokens,
        cache: Cache,
    ) -> (Tensor<2>, Cache) {
        let normed = self.attention_norm.forward(x.clone());
        let (x, cache) = self.attention.forward_onto(x, normed, rope, tokens, cache);
        let normed = self.mlp_norm.forward(x.clone());
        (self.mlp.forward_onto(x, normed), cache)
    }
}

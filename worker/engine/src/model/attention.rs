//! Self-attention over the paged cache.

use std::num::NonZeroUsize;

use burn::{module::Module, tensor::Tensor};
use stoker_ops::{
    Cache, Tokens,
    ops::{self, Qkv},
};

use super::{Reader, linear::Linear, norm::RmsNorm};
use crate::weights::{ModelConfig, WeightsError};

/// Grouped-query attention with rotary positions.
#[derive(Module, Debug)]
pub struct Attention {
    /// `[heads * head_dim, hidden]`
    pub query: Linear,
    /// `[kv_heads * head_dim, hidden]`
    pub key: Linear,
    /// `[kv_heads * head_dim, hidden]`
    pub value: Linear,
    /// `[hidden, heads * head_dim]`
    pub output: Linear,
    /// Over query and key heads, before they are rotated.
    pub norm: Option<HeadNorm>,
    /// Positions that a token sees, its own the last of them; all up to its own without one.
    #[module(skip)]
    pub window: Option<NonZeroUsize>,
}

/// Norms over each head by itself.
#[derive(Module, Debug)]
pub struct HeadNorm {
    /// `[head_dim]`
    pub query: RmsNorm,
    /// `[head_dim]`
    pub key: RmsNorm,
}

impl Attention {
    pub(super) fn read(
        config: &ModelConfig,
        reader: &mut Reader,
        layer: usize,
    ) -> Result<Self, WeightsError> {
        let (hidden, q, kv) = (config.hidden_size, config.q_size(), config.kv_size());
        let prefix = format!("model.layers.{layer}.self_attn");
        let mut linear =
            |name, shape, biased| Linear::read(reader, &format!("{prefix}.{name}"), shape, biased);
        Ok(Self {
            query: linear("q_proj", [q, hidden], config.qkv_bias)?,
            key: linear("k_proj", [kv, hidden], config.qkv_bias)?,
            value: linear("v_proj", [kv, hidden], config.qkv_bias)?,
            output: linear("o_proj", [hidden, q], config.output_bias)?,
            norm: HeadNorm::read(config, reader, &prefix)?,
            window: config.window(layer),
        })
    }

    /// Adds to `residual [tokens, hidden]` what the tokens of `x [tokens, hidden]` attend to, after
    /// writing their keys and values into the cache.
    pub fn forward_onto(
        &self,
        residual: Tensor<2>,
        x: Tensor<2>,
        rope: Tensor<2>,
        tokens: &Tokens,
        cache: Cache,
    ) -> (Tensor<2>, Cache) {
        let weights = Qkv {
            query: self.query.weight(),
            key: self.key.weight(),
            value: self.value.weight(),
            norm: self.norm.as_ref().map(HeadNorm::gains),
        };
        let (queries, cache) = ops::project_and_append(x, weights, rope, tokens, cache);
        let attended = ops::paged_attention(queries, tokens, &cache, self.window);
        (self.output.forward_onto(residual, attended), cache)
    }
}

impl HeadNorm {
    /// The norms of a model that has them.
    fn read(
        config: &ModelConfig,
        reader: &mut Reader,
        prefix: &str,
    ) -> Result<Option<Self>, WeightsError> {
        if !config.qk_norm {
            return Ok(None);
        }
        let mut norm =
            |name| RmsNorm::read(config, reader, &format!("{prefix}.{name}"), config.head_dim);
        Ok(Some(Self { query: norm("q_norm")?, key: norm("k_norm")? }))
    }

    fn gains(&self) -> ops::HeadNorm {
        ops::HeadNorm {
            query: self.query.gain.val(),
            key: self.key.gain.val(),
            epsilon: self.query.epsilon as f32,
        }
    }
}

//! Self-attention over the paged cache.

use burn::{module::Module, tensor::Tensor};
use stoker_ops::{
    Cache, Tokens,
    ops::{self, Qkv},
};

use super::{Reader, linear::Linear};
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
}

impl Attention {
    pub(super) fn read(
        config: &ModelConfig,
        reader: &mut Reader,
        prefix: &str,
    ) -> Result<Self, WeightsError> {
        let (hidden, q, kv) = (config.hidden_size, config.q_size(), config.kv_size());
        let mut linear =
            |name, shape| Linear::read(reader, &format!("{prefix}.self_attn.{name}.weight"), shape);
        Ok(Self {
            query: linear("q_proj", [q, hidden])?,
            key: linear("k_proj", [kv, hidden])?,
            value: linear("v_proj", [kv, hidden])?,
            output: linear("o_proj", [hidden, q])?,
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
            query: self.query.weight.val(),
            key: self.key.weight.val(),
            value: self.value.weight.val(),
        };
        let (queries, cache) = ops::project_and_append(x, weights, rope, tokens, cache);
        let attended = ops::paged_attention(queries, tokens, &cache);
        (self.output.forward_onto(residual, attended), cache)
    }
}

//! Self-attention over the paged cache.

use std::num::NonZeroUsize;

use burn::tensor::Tensor;
use stoker_ops::{
    Cache, Tokens,
    ops::{self, HeadNorm, Norm, Qkv},
};

use super::{Reader, linear::Linear, norm};
use crate::weights::{ModelConfig, WeightsError};

/// Grouped-query attention with rotary positions.
#[derive(Debug, Clone)]
pub struct Attention {
    /// Norm over the layer's input.
    pub norm: Norm,
    /// `[(heads + 2 * kv_heads) * head_dim, hidden]`, and norms over query and key heads.
    pub qkv: Qkv,
    /// `[hidden, heads * head_dim]`
    pub output: Linear,
    /// Number of positions that a token attends to, including its own. `None`: all positions up to
    /// its own.
    pub window: Option<NonZeroUsize>,
}

impl Attention {
    pub(super) fn read(
        config: &ModelConfig,
        reader: &mut Reader,
        layer: usize,
    ) -> Result<Self, WeightsError> {
        let (hidden, q, kv) = (config.hidden_size, config.q_size(), config.kv_size());
        let prefix = format!("model.layers.{layer}");
        let norm = norm::read(config, reader, &format!("{prefix}.input_layernorm"))?;
        let name = |name| format!("{prefix}.self_attn.{name}");
        let (query, key, value) = (name("q_proj"), name("k_proj"), name("v_proj"));
        let maps = [(&*query, q), (&*key, kv), (&*value, kv)];
        Ok(Self {
            norm,
            qkv: Qkv {
                weight: Linear::read_stacked(reader, &maps, hidden, config.qkv_bias)?.weight,
                norm: read_head_norm(config, reader, &prefix)?,
            },
            output: Linear::read(reader, &name("o_proj"), [hidden, q], config.output_bias)?,
            window: config.window(layer),
        })
    }

    /// Writes keys and values of the tokens into the cache, attends, and adds the result to `x
    /// [tokens, hidden]`.
    pub fn forward(
        &self,
        x: Tensor<2>,
        rope: Tensor<2>,
        tokens: &Tokens,
        cache: Cache,
    ) -> (Tensor<2>, Cache) {
        let (norm, qkv) = (self.norm.clone(), self.qkv.clone());
        let (queries, cache) = ops::project_and_append(x.clone(), norm, qkv, rope, tokens, cache);
        let attended = ops::paged_attention(queries, tokens, &cache, self.window);
        (self.output.forward_onto(x, attended), cache)
    }
}

/// Reads the norms over individual heads, if the model has them.
fn read_head_norm(
    config: &ModelConfig,
    reader: &mut Reader,
    prefix: &str,
) -> Result<Option<HeadNorm>, WeightsError> {
    if !config.qk_norm {
        return Ok(None);
    }
    let mut norm = |name| norm::read(config, reader, &format!("{prefix}.self_attn.{name}"));
    let (query, key) = (norm("q_norm")?, norm("k_norm")?);
    Ok(Some(HeadNorm { query: query.gain, key: key.gain, epsilon: query.epsilon }))
}

//! The numbers that define a Llama model, whichever file they came from.

mod json;
mod keys;
mod metadata;

pub(super) use json::{add_generation_config, from_json};
pub(super) use metadata::from_metadata;

use super::{Source, WeightsError};

/// The shape and constants of a decoder-only Llama model.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the feed-forward layer.
    pub intermediate_size: usize,
    /// Number of decoder layers.
    pub num_layers: usize,
    /// Number of query heads.
    pub num_heads: usize,
    /// Number of key and value heads; divides `num_heads`.
    pub num_kv_heads: usize,
    /// Width of one head; even.
    pub head_dim: usize,
    /// Rows of the embedding table.
    pub vocab_size: usize,
    /// Positions the model was trained for, in tokens.
    pub context_length: usize,
    /// Added to the mean square before RMSNorm's root.
    pub rms_norm_eps: f64,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Whether the embedding table is also the output projection.
    pub tie_embeddings: bool,
    /// The token that begins a sequence.
    pub bos_token_id: Option<u32>,
    /// The tokens that end a sequence, sorted, without repetitions.
    pub eos_token_ids: Vec<u32>,
}

impl ModelConfig {
    /// Rows of the query projection.
    pub fn q_size(&self) -> usize {
        self.num_heads * self.head_dim
    }

    /// Rows of the key projection, and of the value projection.
    pub fn kv_size(&self) -> usize {
        self.num_kv_heads * self.head_dim
    }

    /// Checks what the rest of the engine relies on; keys are named as in config.json.
    fn validated(mut self, source: &Source) -> Result<Self, WeightsError> {
        // Upper limits far above any model, and low enough that products of two fit in 64 bits.
        for (key, value, limit) in [
            ("hidden_size", self.hidden_size, 1 << 20),
            ("intermediate_size", self.intermediate_size, 1 << 22),
            ("num_hidden_layers", self.num_layers, 1 << 12),
            ("num_attention_heads", self.num_heads, 1 << 14),
            ("num_key_value_heads", self.num_kv_heads, 1 << 14),
            ("head_dim", self.head_dim, 1 << 12),
            ("vocab_size", self.vocab_size, 1 << 24),
            ("max_position_embeddings", self.context_length, 1 << 24),
        ] {
            if value == 0 || value > limit {
                let reason = format!("is {value}; must be between 1 and {limit}");
                return Err(source.malformed(key, reason));
            }
        }
        if !self.num_heads.is_multiple_of(self.num_kv_heads) {
            let reason = format!(
                "is {}, which does not divide num_attention_heads = {}",
                self.num_kv_heads, self.num_heads
            );
            return Err(source.malformed("num_key_value_heads", reason));
        }
        // A table of angles is made for all positions: four bytes an element, at most half a gigabyte.
        if self.context_length * self.head_dim > 1 << 27 {
            let most = (1 << 27) / self.head_dim;
            let reason = format!(
                "is {}; at a head_dim of {} at most {most}",
                self.context_length, self.head_dim
            );
            return Err(source.malformed("max_position_embeddings", reason));
        }
        if !self.head_dim.is_multiple_of(2) {
            let reason = format!("is {}; rotary embeddings need an even width", self.head_dim);
            return Err(source.malformed("head_dim", reason));
        }
        for (key, value) in [("rms_norm_eps", self.rms_norm_eps), ("rope_theta", self.rope_theta)] {
            if !(value.is_finite() && value > 0.0) {
                let reason = format!("is {value}; must be a positive finite number");
                return Err(source.malformed(key, reason));
            }
        }
        self.eos_token_ids.sort_unstable();
        self.eos_token_ids.dedup();
        for id in self.bos_token_id.iter().chain(&self.eos_token_ids) {
            if *id as usize >= self.vocab_size {
                let reason = format!("{id} lies outside the vocabulary of {}", self.vocab_size);
                return Err(source.malformed("bos_token_id or eos_token_id", reason));
            }
        }
        Ok(self)
    }
}

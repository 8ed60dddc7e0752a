//! Constants that define a model, whichever file they are read from.

mod family;
mod json;
mod keys;
mod rope;

use std::num::NonZeroUsize;

pub use family::Family;
pub(super) use json::{add_generation_config, from_json};
pub use rope::{Llama3Scaling, RopeScaling};

use super::{Source, WeightsError};

/// More than any model has.
pub(super) const MAX_LAYERS: usize = 1 << 12;

/// Shape and constants of a decoder of the Llama architecture.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// Model family.
    pub family: Family,
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
    /// Positions that the model was trained for, in tokens.
    pub context_length: usize,
    /// Added to the mean square before RMSNorm's root.
    pub rms_norm_eps: f64,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Scaling of the rotary frequencies.
    pub rope_scaling: RopeScaling,
    /// Sliding window of each layer: the number of positions that a token attends to, including its
    /// own, if it is less than the context. Empty if no layer has one.
    pub windows: Vec<Option<NonZeroUsize>>,
    /// Whether the query, key and value projections have a bias.
    pub qkv_bias: bool,
    /// Whether the attention's output projection has a bias.
    pub output_bias: bool,
    /// Whether the projections of the feed-forward layer have a bias.
    pub mlp_bias: bool,
    /// Whether query and key heads are normalised before they are rotated.
    pub qk_norm: bool,
    /// Whether the embedding table is also the output projection.
    pub tie_embeddings: bool,
    /// The token that begins a sequence.
    pub bos_token_id: Option<u32>,
    /// Tokens that end a sequence, sorted, without duplicates.
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

    /// Number of positions that a token of a layer attends to, including its own. `None`: all up to
    /// its own.
    pub fn window(&self, layer: usize) -> Option<NonZeroUsize> {
        self.windows.get(layer).copied().flatten()
    }

    /// Adds a token that ends a sequence. It must be one of the vocabulary.
    pub(super) fn add_eos_token(&mut self, id: u32) {
        if let Err(at) = self.eos_token_ids.binary_search(&id) {
            self.eos_token_ids.insert(at, id);
        }
    }

    /// Validates the values that the rest of the engine relies on. `name` maps a key of config.json
    /// to the file's own key.
    pub(super) fn validated(
        mut self,
        source: &Source,
        name: impl Fn(&'static str) -> String,
    ) -> Result<Self, WeightsError> {
        let wrong = |key, reason: String| Err(source.malformed(&name(key), reason));
        // Limits far above any model, low enough that products of two fit in 64 bits.
        for (key, value, limit) in [
            ("hidden_size", self.hidden_size, 1 << 20),
            ("intermediate_size", self.intermediate_size, 1 << 22),
            ("num_hidden_layers", self.num_layers, MAX_LAYERS),
            ("num_attention_heads", self.num_heads, 1 << 14),
            ("num_key_value_heads", self.num_kv_heads, 1 << 14),
            ("head_dim", self.head_dim, 1 << 12),
            ("vocab_size", self.vocab_size, 1 << 24),
            ("max_position_embeddings", self.context_length, 1 << 24),
        ] {
            if value == 0 || value > limit {
                return wrong(key, format!("is {value}; must be between 1 and {limit}"));
            }
        }
        if !self.num_heads.is_multiple_of(self.num_kv_heads) {
            let (kv_heads, heads) = (self.num_kv_heads, self.num_heads);
            let reason = format!(
                "is {kv_heads}, which does not divide {} = {heads}",
                name("num_attention_heads")
            );
            return wrong("num_key_value_heads", reason);
        }
        // The table of angles has all positions: four bytes an element, at most half a gigabyte.
        if self.context_length * self.head_dim > 1 << 27 {
            let max = (1 << 27) / self.head_dim;
            let (length, width) = (self.context_length, self.head_dim);
            let reason = format!("is {length}; for heads that are {width} wide at most {max}");
            return wrong("max_position_embeddings", reason);
        }
        if !self.head_dim.is_multiple_of(2) {
            let reason = format!("is {}; rotary embeddings need an even width", self.head_dim);
            return wrong("head_dim", reason);
        }
        for (key, value) in [("rms_norm_eps", self.rms_norm_eps), ("rope_theta", self.rope_theta)] {
            if !(value.is_finite() && value > 0.0) {
                return wrong(key, format!("is {value}; must be a positive finite number"));
            }
        }
        self.eos_token_ids.sort_unstable();
        self.eos_token_ids.dedup();
        for (key, ids) in [
            ("bos_token_id", self.bos_token_id.as_slice()),
            ("eos_token_id", self.eos_token_ids.as_slice()),
        ] {
            if let Some(id) = ids.iter().find(|id| **id as usize >= self.vocab_size) {
                let reason = format!("{id} lies outside the vocabulary of {}", self.vocab_size);
                return wrong(key, reason);
            }
        }
        self.windows = effective_windows(self.windows, self.context_length);
        Ok(self)
    }
}

/// Drops windows that cover the whole context.
fn effective_windows(
    mut windows: Vec<Option<NonZeroUsize>>,
    context_length: usize,
) -> Vec<Option<NonZeroUsize>> {
    for window in &mut windows {
        *window = window.filter(|window| window.get() < context_length);
    }
    if windows.iter().all(Option::is_none) { Vec::new() } else { windows }
}

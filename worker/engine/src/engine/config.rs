//! Capacity of an engine.

use crate::{
    footprint::Footprint, kv_cache::blocks_for, model::Quantization, weights::ModelConfig,
};

/// Capacity of an engine, and limits of its steps.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct EngineConfig {
    /// Maximum number of sequences in a batch.
    pub max_num_seqs: usize,
    /// Maximum number of tokens in a step; at least `max_num_seqs`.
    pub max_num_batched_tokens: usize,
    /// Number of blocks in the KV cache.
    pub kv_blocks: usize,
    /// Whether requests share cached prompt prefixes.
    pub prefix_cache: bool,
    /// Limits prefill chunks, while sequences decode, so that a step takes at most this many times
    /// as long as a decode-only step; at least 1.
    pub max_decode_slowdown: f64,
}

impl EngineConfig {
    /// Size of one block in all layers, in bytes.
    pub fn block_bytes(model: &ModelConfig, quantization: Quantization) -> u64 {
        Footprint::of(model, quantization).kv_token_bytes * stoker_ops::KV_BLOCK as u64
    }

    /// Number of blocks that fit into `bytes`, but no more than `max_num_seqs` sequences of maximum
    /// length can use.
    pub fn blocks_within(
        bytes: u64,
        max_num_seqs: usize,
        model: &ModelConfig,
        quantization: Quantization,
    ) -> usize {
        let affordable = bytes / Self::block_bytes(model, quantization);
        let useful = blocks_for(model.context_length).saturating_mul(max_num_seqs);
        usize::try_from(affordable).unwrap_or(usize::MAX).min(useful)
    }
}

//! Bytes that a model takes, and bytes that a step reads.

use crate::{
    model::Quantization,
    weights::{ModelConfig, tensor_shapes},
};

/// What a model takes in memory and has read in a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Footprint {
    /// Bytes of weights that every step reads once, whatever its batch.
    pub step_weight_bytes: u64,
    /// Bytes of weights in memory.
    pub weight_bytes: u64,
    /// Bytes of keys and values of one position, in all layers.
    pub kv_token_bytes: u64,
}

impl Footprint {
    /// The footprint of a model of this shape, all in f32 for now.
    pub fn of(config: &ModelConfig, _: Quantization) -> Self {
        let float = size_of::<f32>() as u64;
        let bytes = |shape: &[usize]| float * shape.iter().product::<usize>() as u64;
        let weight_bytes = tensor_shapes(config).map(|(_, shape)| bytes(&shape)).sum();
        // A step looks up some rows of the embedding; all of it is read where it is the head too.
        let looked_up =
            if config.tie_embeddings { 0 } else { bytes(&[config.vocab_size, config.hidden_size]) };
        Self {
            step_weight_bytes: weight_bytes - looked_up,
            weight_bytes,
            kv_token_bytes: float * 2 * (config.num_layers * config.kv_size()) as u64,
        }
    }
}

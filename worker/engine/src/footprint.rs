//! What a model takes, reckoned from its shape before anything of it is read.

use stoker_ops::cpu::int8::{MAX_INPUTS, tiles::packed_bytes};

use crate::{
    model::Quantization,
    weights::{EMBEDDING, ModelConfig, tensor_shapes},
};

/// What a model takes in memory, and what a token of it takes to compute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Footprint {
    /// Bytes of weights that a decode step reads, each once: all but an embedding table that is not also
    /// the head, of which a token reads one row.
    pub step_weight_bytes: u64,
    /// Bytes of all weights as they lie in memory, with the table of rotary angles.
    pub weight_bytes: u64,
    /// Bytes of the keys and values of one position in all layers.
    pub kv_token_bytes: u64,
    /// Multiply-adds of one token in all matrices, the head included; attention comes on top.
    pub macs_per_token: u64,
}

impl Footprint {
    /// What a model of this shape takes when its weights are kept like this.
    pub fn of(config: &ModelConfig, quantization: Quantization) -> Self {
        let angles = (config.context_length * config.head_dim * size_of::<f32>()) as u64;
        let mut footprint = Self {
            step_weight_bytes: 0,
            weight_bytes: angles,
            kv_token_bytes: (2 * config.num_layers * config.kv_size()) as u64
                * quantization.cache_kind().bytes() as u64,
            macs_per_token: 0,
        };
        for (name, shape) in tensor_shapes(config) {
            let bytes = tensor_bytes(&shape, quantization);
            footprint.weight_bytes += bytes;
            if name == EMBEDDING && !config.tie_embeddings {
                continue;
            }
            footprint.step_weight_bytes += bytes;
            if let [outputs, inputs] = shape[..] {
                footprint.macs_per_token += (outputs * inputs) as u64;
            }
        }
        footprint
    }
}

/// Bytes of one tensor in memory. Norms and biases stay in f32, however matrices are kept.
fn tensor_bytes(shape: &[usize], quantization: Quantization) -> u64 {
    match (quantization, shape) {
        (Quantization::Int8, [outputs, inputs]) if *inputs <= MAX_INPUTS => {
            (packed_bytes(*outputs, *inputs) + outputs * size_of::<f32>()) as u64
        }
        _ => shape.iter().product::<usize>() as u64 * size_of::<f32>() as u64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shapes;

    fn tinyllama(change: impl FnOnce(&mut ModelConfig), quantization: Quantization) -> Footprint {
        let mut config = shapes::named("tinyllama-1.1b").expect("a shape by this name");
        change(&mut config);
        Footprint::of(&config, quantization)
    }

    /// All of TinyLlama's layers and its head, without norms.
    const MACS: u64 = 22 * 44_040_192 + 65_536_000;
    /// Its norms and its table of angles, in bytes.
    const NORMS: u64 = 45 * 2048 * 4;
    const ANGLES: u64 = 2048 * 64 * 4;
    const TABLE: u64 = 32_000 * 2048;

    #[test]
    fn in_f32_every_weight_is_four_bytes() {
        let footprint = tinyllama(|_| (), Quantization::None);
        let expected = Footprint {
            step_weight_bytes: 4 * MACS + NORMS,
            weight_bytes: 4 * (MACS + TABLE) + NORMS + ANGLES,
            kv_token_bytes: 45_056,
            macs_per_token: 1_034_420_224,
        };
        assert_eq!(footprint, expected);
    }

    #[test]
    fn in_int8_matrices_are_a_byte_an_element_and_a_scale_an_output() {
        let footprint = tinyllama(|_| (), Quantization::Int8);
        // Rows of the seven matrices of a layer, and of the head.
        let scales = 4 * (22 * 17_920 + 32_000);
        let expected = Footprint {
            step_weight_bytes: MACS + scales + NORMS,
            weight_bytes: MACS + scales + NORMS + TABLE + 4 * 32_000 + ANGLES,
            kv_token_bytes: 22_528,
            macs_per_token: MACS,
        };
        assert_eq!(footprint, expected);
        assert_eq!(footprint.step_weight_bytes, 1_036_493_824);
    }

    #[test]
    fn a_tied_embedding_is_kept_once_and_read_in_every_step() {
        for quantization in [Quantization::Int8, Quantization::None] {
            let apart = tinyllama(|_| (), quantization);
            let tied = tinyllama(|config| config.tie_embeddings = true, quantization);
            assert_eq!(tied.step_weight_bytes, apart.step_weight_bytes);
            assert_eq!(tied.macs_per_token, apart.macs_per_token);
            assert_eq!(tied.weight_bytes, tied.step_weight_bytes + ANGLES);
        }
    }

    #[test]
    fn tiles_at_the_edge_are_counted_whole() {
        assert_eq!(tensor_bytes(&[17, 65], Quantization::Int8), 32 * 128 + 17 * 4);
        assert_eq!(tensor_bytes(&[17, 65], Quantization::None), 17 * 65 * 4);
        assert_eq!(tensor_bytes(&[17], Quantization::Int8), 17 * 4);
    }
}

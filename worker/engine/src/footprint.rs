//! Memory and compute of a model, computed from its shape before its weights are read.

use stoker_ops::cpu::{
    int4::strips,
    int8::{MAX_INPUTS, tiles},
};

use crate::{
    model::{MatrixFormat, Quantization},
    weights::{EMBEDDING, HEAD, ModelConfig, tensor_shapes},
};

/// Memory of a model, and the compute of one token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Footprint {
    /// Bytes of weights that a decode step reads, each once: all but an embedding table that is not
    /// also the head, since a token reads only one row of it.
    pub step_weight_bytes: u64,
    /// Bytes of all weights in memory, with the table of rotary angles.
    pub weight_bytes: u64,
    /// Bytes of keys and values of one position in all layers.
    pub kv_token_bytes: u64,
    /// Multiply-adds of one token in all matrices, the head included, without attention.
    pub macs_per_token: u64,
}

impl Footprint {
    /// Computes the footprint of a model of this shape whose weights are stored with
    /// `quantization`.
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
            let bytes = tensor_bytes(&name, &shape, quantization);
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

/// Bytes of one tensor in memory. Norms and biases are f32, whatever the quantization of matrices.
fn tensor_bytes(name: &str, shape: &[usize], quantization: Quantization) -> u64 {
    let is_table = [EMBEDDING, HEAD].contains(&name);
    let format = if is_table { quantization.tables() } else { quantization.layers() };
    let packed_bytes = match format {
        MatrixFormat::Float => None,
        MatrixFormat::Int8 => Some(tiles::packed_bytes as fn(usize, usize) -> usize),
        MatrixFormat::Int4 => Some(strips::packed_bytes as fn(usize, usize) -> usize),
    };
    match (packed_bytes, shape) {
        (Some(packed_bytes), [outputs, inputs]) if *inputs <= MAX_INPUTS => {
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

    /// Multiply-adds of TinyLlama's layers and head, without norms.
    const MACS: u64 = 22 * 44_040_192 + 65_536_000;
    /// Bytes of its norms.
    const NORMS: u64 = 45 * 2048 * 4;
    /// Bytes of its table of rotary angles.
    const ANGLES: u64 = 2048 * 64 * 4;
    /// Elements of its embedding table.
    const TABLE: u64 = 32_000 * 2048;

    #[test]
    fn in_f32_every_weight_takes_four_bytes() {
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
    fn in_int8_matrices_take_a_byte_per_element_and_a_scale_per_output() {
        let footprint = tinyllama(|_| (), Quantization::Int8);
        // Outputs of the seven matrices of a layer, and of the head.
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
    fn in_int4_layers_take_seventeen_bytes_for_32_elements_and_tables_are_in_int8() {
        let footprint = tinyllama(|_| (), Quantization::Int4);
        let int8 = tinyllama(|_| (), Quantization::Int8);
        let layers = MACS - TABLE;
        assert_eq!(int8.step_weight_bytes - footprint.step_weight_bytes, layers / 32 * 15);
        assert_eq!(int8.weight_bytes - footprint.weight_bytes, layers / 32 * 15);
        assert_eq!(footprint.step_weight_bytes, 582_329_344);
        assert_eq!(footprint.kv_token_bytes, int8.kv_token_bytes);
    }

    #[test]
    fn a_tied_embedding_is_stored_once_and_read_in_every_step() {
        for quantization in Quantization::ALL {
            let untied = tinyllama(|_| (), quantization);
            let tied = tinyllama(|config| config.tie_embeddings = true, quantization);
            assert_eq!(tied.step_weight_bytes, untied.step_weight_bytes);
            assert_eq!(tied.macs_per_token, untied.macs_per_token);
            assert_eq!(tied.weight_bytes, tied.step_weight_bytes + ANGLES);
        }
    }

    #[test]
    fn partial_tiles_are_counted_whole() {
        let bytes = |shape: &[usize], quantization| tensor_bytes("any", shape, quantization);
        assert_eq!(bytes(&[17, 65], Quantization::Int8), 32 * 128 + 17 * 4);
        // Four groups: their multipliers fill a line of a strip, their steps sixteen.
        assert_eq!(bytes(&[17, 65], Quantization::Int4), 2 * (64 + 16 * 64) + 17 * 4);
        assert_eq!(bytes(&[17, 65], Quantization::None), 17 * 65 * 4);
        assert_eq!(bytes(&[17], Quantization::Int8), 17 * 4);
    }
}

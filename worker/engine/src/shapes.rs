//! Shapes of well-known models, for measurements and estimates without their files.

use crate::weights::{Family, ModelConfig, RopeScaling};

/// Names that [`named`] accepts.
pub const NAMES: [&str; 2] = ["tinyllama-1.1b", "llama-3-8b"];

/// The shape of TinyLlama 1.1B.
pub fn tinyllama() -> ModelConfig {
    ModelConfig {
        family: Family::Llama,
        hidden_size: 2048,
        intermediate_size: 5632,
        num_layers: 22,
        num_heads: 32,
        num_kv_heads: 4,
        head_dim: 64,
        vocab_size: 32_000,
        context_length: 2048,
        rms_norm_eps: 1e-5,
        rope_theta: 10_000.0,
        rope_scaling: RopeScaling::None,
        windows: Vec::new(),
        qkv_bias: false,
        output_bias: false,
        mlp_bias: false,
        qk_norm: false,
        tie_embeddings: false,
        bos_token_id: Some(1),
        eos_token_ids: vec![2],
    }
}

/// The shape of a model of a few hundred kilobytes, for tests.
pub fn tiny() -> ModelConfig {
    ModelConfig {
        hidden_size: 64,
        intermediate_size: 128,
        num_layers: 2,
        num_heads: 4,
        num_kv_heads: 2,
        head_dim: 16,
        vocab_size: 512,
        ..tinyllama()
    }
}

/// The shape of the model called `name`.
pub fn named(name: &str) -> Option<ModelConfig> {
    match name {
        "tinyllama-1.1b" => Some(tinyllama()),
        "llama-3-8b" => Some(ModelConfig {
            hidden_size: 4096,
            intermediate_size: 14_336,
            num_layers: 32,
            num_kv_heads: 8,
            head_dim: 128,
            vocab_size: 128_256,
            context_length: 8192,
            rope_theta: 500_000.0,
            bos_token_id: Some(128_000),
            eos_token_ids: vec![128_001],
            ..tinyllama()
        }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::tensor_shapes;

    #[test]
    fn every_name_has_a_shape_of_its_size() {
        let parameters = |name| {
            let config = named(name)?;
            Some(tensor_shapes(&config).map(|(_, shape)| shape.iter().product::<usize>()).sum())
        };
        assert_eq!(NAMES.map(parameters), [Some(1_100_048_384), Some(8_030_261_248)]);
        assert_eq!(named("gpt-2"), None);
    }
}

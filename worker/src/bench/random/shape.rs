//! The shapes that there are random weights for.

use clap::ValueEnum;
use stoker_engine::weights::{Family, ModelConfig, RopeScaling};

/// A shape with a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Shape {
    /// That of TinyLlama 1.1B.
    #[value(name = "tinyllama-1.1b")]
    TinyLlama,
    /// A model of a few hundred kilobytes, to try things out.
    Tiny,
}

impl Shape {
    /// As the command line and rows name it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::TinyLlama => "tinyllama-1.1b",
            Self::Tiny => "tiny",
        }
    }

    /// What both files say of the model.
    pub fn config(self) -> ModelConfig {
        let tiny = ModelConfig {
            family: Family::Llama,
            hidden_size: 64,
            intermediate_size: 128,
            num_layers: 2,
            num_heads: 4,
            num_kv_heads: 2,
            head_dim: 16,
            vocab_size: 512,
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
        };
        match self {
            Self::Tiny => tiny,
            Self::TinyLlama => ModelConfig {
                hidden_size: 2048,
                intermediate_size: 5632,
                num_layers: 22,
                num_heads: 32,
                num_kv_heads: 4,
                head_dim: 64,
                vocab_size: 32_000,
                ..tiny
            },
        }
    }
}

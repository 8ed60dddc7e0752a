//! The shapes that there are random weights for.

use clap::ValueEnum;
use stoker_engine::{shapes, weights::ModelConfig};

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
        match self {
            Self::TinyLlama => shapes::tinyllama(),
            Self::Tiny => ModelConfig {
                hidden_size: 64,
                intermediate_size: 128,
                num_layers: 2,
                num_heads: 4,
                num_kv_heads: 2,
                head_dim: 16,
                vocab_size: 512,
                ..shapes::tinyllama()
            },
        }
    }
}

//! Shapes of models with random weights.

use clap::ValueEnum;
use stoker_engine::{shapes, weights::ModelConfig};

/// A named model shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Shape {
    /// The shape of TinyLlama 1.1B.
    #[value(name = "tinyllama-1.1b")]
    TinyLlama,
    /// A model of a few hundred kilobytes for tests.
    Tiny,
}

impl Shape {
    /// Returns the name on the command line and in rows.
    pub const fn name(self) -> &'static str {
        match self {
            Self::TinyLlama => "tinyllama-1.1b",
            Self::Tiny => "tiny",
        }
    }

    /// Returns the configuration that both file formats contain.
    pub fn config(self) -> ModelConfig {
        match self {
            Self::TinyLlama => shapes::tinyllama(),
            Self::Tiny => shapes::tiny(),
        }
    }
}

//! Formats of model files.

use std::fmt;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// A format of model files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// One file, matrices in Q8_0
    Gguf,
    /// A folder, weights in bf16
    Safetensors,
}

impl Format {
    /// All formats.
    pub const ALL: [Self; 2] = [Self::Gguf, Self::Safetensors];
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Gguf => "gguf",
            Self::Safetensors => "safetensors",
        })
    }
}

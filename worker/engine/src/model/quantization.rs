//! Formats in which weights are stored and multiplied.

use std::{fmt, str::FromStr};

use stoker_ops::ops::CacheKind;

/// Format in which weights are stored and multiplied. Part of the digest, since it changes the
/// logits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Quantization {
    /// 8-bit matrices with a scale for each output, and 8-bit inputs with a scale for each token.
    #[default]
    Int8,
    /// Matrices of layers in 4 bits with a scale for each output and a multiplier for each 32
    /// inputs; embedding table and head as with `Int8`, which they need most. Inputs as with
    /// `Int8`.
    Int4,
    /// Everything in f32.
    None,
}

/// Format of a matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MatrixFormat {
    /// f32.
    Float,
    /// See [`stoker_ops::int8`].
    Int8,
    /// See [`stoker_ops::int4`].
    Int4,
}

impl Quantization {
    /// All formats, the default first.
    pub const ALL: [Self; 3] = [Self::Int8, Self::Int4, Self::None];

    /// Format of the embedding table and the head.
    pub const fn tables(self) -> MatrixFormat {
        match self {
            Self::Int8 | Self::Int4 => MatrixFormat::Int8,
            Self::None => MatrixFormat::Float,
        }
    }

    /// Format of the matrices of layers.
    pub const fn layers(self) -> MatrixFormat {
        match self {
            Self::Int8 => MatrixFormat::Int8,
            Self::Int4 => MatrixFormat::Int4,
            Self::None => MatrixFormat::Float,
        }
    }

    /// Element type of cached keys and values, as precise as the weights warrant.
    pub const fn cache_kind(self) -> CacheKind {
        match self {
            Self::Int8 | Self::Int4 => CacheKind::F16,
            Self::None => CacheKind::F32,
        }
    }

    /// Name in flags, `GetModelInfo` and the digest.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Int8 => "int8",
            Self::Int4 => "int4",
            Self::None => "none",
        }
    }
}

impl fmt::Display for Quantization {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Quantization {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let known = Self::ALL.into_iter().find(|kind| kind.name() == text);
        known.ok_or_else(|| format!("{text} is none of {}", Self::ALL.map(Self::name).join(", ")))
    }
}

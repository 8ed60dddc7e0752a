//! How weights are kept and multiplied.

use std::{fmt, str::FromStr};

use stoker_ops::ops::CacheKind;

/// How weights are kept and multiplied. Part of the digest: it changes the logits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Quantization {
    /// Matrices in 8 bits under a scale for each output; inputs in 8 bits under a scale for each token.
    #[default]
    Int8,
    /// All in f32.
    None,
}

impl Quantization {
    /// Every kind, the default first.
    pub const ALL: [Self; 2] = [Self::Int8, Self::None];

    /// What keys and values are kept in: as exact as the weights allow.
    pub const fn cache_kind(self) -> CacheKind {
        match self {
            Self::Int8 => CacheKind::F16,
            Self::None => CacheKind::F32,
        }
    }

    /// As flags, `GetModelInfo` and the digest name it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Int8 => "int8",
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

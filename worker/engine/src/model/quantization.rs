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
    /// Everything in f32.
    None,
}

impl Quantization {
    /// All formats, the default first.
    pub const ALL: [Self; 2] = [Self::Int8, Self::None];

    /// Element type of cached keys and values, as precise as the weights warrant.
    pub const fn cache_kind(self) -> CacheKind {
        match self {
            Self::Int8 => CacheKind::F16,
            Self::None => CacheKind::F32,
        }
    }

    /// Name in flags, `GetModelInfo` and the digest.
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

//! Architectures of GGUF files, and their properties.

use super::metadata::Metadata;
use super::names::RowLayout;
use crate::weights::{Family, Source, WeightsError};

/// Value of `general.architecture`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Architecture {
    /// Llama, and Mistral, which converters store under the same name.
    Llama,
    /// Qwen 1.5, 2 and 2.5.
    Qwen2,
    /// Qwen 3 without experts.
    Qwen3,
}

impl Architecture {
    const ALL: [Self; 3] = [Self::Llama, Self::Qwen2, Self::Qwen3];

    /// Returns the architecture of a file; fails if it is not implemented.
    pub(in crate::weights) fn of(
        source: &Source,
        metadata: &Metadata,
    ) -> Result<Self, WeightsError> {
        let key = "general.architecture";
        let Some(name) = metadata.text(key)? else {
            return Err(metadata.malformed(key, "is missing"));
        };
        let found = Self::ALL.into_iter().find(|architecture| architecture.name() == name);
        found.ok_or_else(|| {
            let supported = Self::ALL.map(Self::name).join(", ");
            source.unsupported(format!("{key} ="), name, supported)
        })
    }

    /// Name in the file, also the prefix of its keys.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
        }
    }

    /// Returns the family. Mistral is read as Llama; it differs by a window, which has a key of its
    /// own.
    pub const fn family(self) -> Family {
        match self {
            Self::Llama => Family::Llama,
            Self::Qwen2 => Family::Qwen2,
            Self::Qwen3 => Family::Qwen3,
        }
    }

    /// Returns the row layout of query and key projections.
    pub(super) const fn rotary_rows(self) -> RowLayout {
        match self {
            Self::Llama => RowLayout::Rotary,
            Self::Qwen2 | Self::Qwen3 => RowLayout::Plain,
        }
    }
}

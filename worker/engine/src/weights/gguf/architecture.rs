//! What a GGUF file calls its architecture, and what follows from that.

use super::metadata::Metadata;
use super::names::Rows;
use crate::weights::{Family, Source, WeightsError};

/// A value of `general.architecture`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Architecture {
    /// Llama, and Mistral, which converters write under the same name.
    Llama,
    /// Qwen 1.5, 2 and 2.5.
    Qwen2,
    /// Qwen 3 without experts.
    Qwen3,
}

impl Architecture {
    const ALL: [Self; 3] = [Self::Llama, Self::Qwen2, Self::Qwen3];

    /// The architecture of a file; fails where it is one that is not implemented.
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

    /// The name in the file, which is also the prefix of its keys.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
        }
    }

    /// The family; Mistral passes for Llama, from which it differs by a window that has a key of its own.
    pub const fn family(self) -> Family {
        match self {
            Self::Llama => Family::Llama,
            Self::Qwen2 => Family::Qwen2,
            Self::Qwen3 => Family::Qwen3,
        }
    }

    /// How the rows of query and key projections are stored.
    pub(super) const fn rotary_rows(self) -> Rows {
        match self {
            Self::Llama => Rows::Rotary,
            Self::Qwen2 | Self::Qwen3 => Rows::Plain,
        }
    }
}

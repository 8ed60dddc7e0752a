//! Model families that share one decoder with different constants, and transformers' defaults for
//! each.

/// A model family. Families differ only in the rest of the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// Llama 1, 2 and 3, and models exported as such. In GGUF files Mistral too.
    Llama,
    /// Mistral: a sliding window in its first versions.
    Mistral,
    /// Qwen 1.5, 2 and 2.5: a bias on queries, keys and values.
    Qwen2,
    /// Qwen 3 without experts: norms over query and key heads.
    Qwen3,
}

/// Defaults of absent keys of config.json.
pub(super) struct Defaults {
    pub(super) context_length: usize,
    /// The number of query heads if `None`.
    pub(super) num_kv_heads: Option<usize>,
    /// The hidden size divided by the number of query heads if `None`.
    pub(super) head_dim: Option<usize>,
    pub(super) bos_token_id: Option<u32>,
    pub(super) eos_token_id: Option<u32>,
}

impl Family {
    pub(super) const ALL: [Self; 4] = [Self::Llama, Self::Mistral, Self::Qwen2, Self::Qwen3];

    /// Returns the name of transformers' class, for example `LlamaForCausalLM`.
    pub const fn architecture(self) -> &'static str {
        match self {
            Self::Llama => "LlamaForCausalLM",
            Self::Mistral => "MistralForCausalLM",
            Self::Qwen2 => "Qwen2ForCausalLM",
            Self::Qwen3 => "Qwen3ForCausalLM",
        }
    }

    /// The value of `model_type`.
    pub(super) const fn model_type(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Mistral => "mistral",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
        }
    }

    pub(super) const fn defaults(self) -> Defaults {
        let (bos_token_id, eos_token_id) = match self {
            Self::Llama | Self::Mistral => (Some(1), Some(2)),
            Self::Qwen2 | Self::Qwen3 => (None, None),
        };
        let (context_length, num_kv_heads) = match self {
            Self::Llama => (2048, None),
            Self::Mistral => (131_072, Some(8)),
            Self::Qwen2 | Self::Qwen3 => (32_768, Some(32)),
        };
        let head_dim = match self {
            Self::Qwen3 => Some(128),
            Self::Llama | Self::Mistral | Self::Qwen2 => None,
        };
        Defaults { context_length, num_kv_heads, head_dim, bos_token_id, eos_token_id }
    }
}

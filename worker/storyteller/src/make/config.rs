//! The shape of a model, in the format of the Llama family's `config.json`.

use serde::{Deserialize, Serialize};

/// Size of the vocabulary that both models share.
pub const VOCAB: usize = 1536;
/// Token that starts every story.
pub const BOS: u32 = 0;
/// Token that ends every story.
pub const EOS: u32 = 1;

/// The contents of `config.json`, with the field names that loaders of Llama checkpoints expect.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs)] // The names are the file format's; the format is the documentation.
pub struct ModelConfig {
    pub architectures: Vec<String>,
    pub model_type: String,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    pub num_key_value_heads: usize,
    pub head_dim: usize,
    pub vocab_size: usize,
    pub max_position_embeddings: usize,
    pub rms_norm_eps: f64,
    pub rope_theta: f64,
    pub tie_word_embeddings: bool,
    pub hidden_act: String,
    pub bos_token_id: u32,
    pub eos_token_id: u32,
    pub torch_dtype: String,
    pub attention_bias: bool,
    pub mlp_bias: bool,
    pub rope_scaling: Option<()>,
}

impl ModelConfig {
    /// Returns a Llama with tied embeddings: `hidden` features, `layers` blocks, `heads` query
    /// heads and `kv_heads` key and value heads of `hidden / heads` features, and an MLP with `ffn`
    /// features.
    pub fn llama(
        hidden: usize,
        layers: usize,
        heads: usize,
        kv_heads: usize,
        ffn: usize,
        vocab: usize,
    ) -> Self {
        Self {
            architectures: vec!["LlamaForCausalLM".into()],
            model_type: "llama".into(),
            hidden_size: hidden,
            intermediate_size: ffn,
            num_hidden_layers: layers,
            num_attention_heads: heads,
            num_key_value_heads: kv_heads,
            head_dim: hidden / heads,
            vocab_size: vocab,
            max_position_embeddings: 1024,
            rms_norm_eps: 1e-5,
            rope_theta: 10_000.0,
            tie_word_embeddings: true,
            hidden_act: "silu".into(),
            bos_token_id: BOS,
            eos_token_id: EOS,
            torch_dtype: "bfloat16".into(),
            attention_bias: false,
            mlp_bias: false,
            rope_scaling: None,
        }
    }

    /// Returns the shape of the bundled model.
    pub fn target() -> Self {
        Self::llama(128, 6, 4, 2, 352, VOCAB)
    }

    /// Returns the shape of its draft model, with a tenth of the size and the same vocabulary.
    pub fn draft() -> Self {
        Self::llama(64, 2, 2, 1, 128, VOCAB)
    }

    /// Returns the number of features of all query heads together.
    pub fn query_dim(&self) -> usize {
        self.num_attention_heads * self.head_dim
    }

    /// Returns the number of features of all key heads (or all value heads) together.
    pub fn kv_dim(&self) -> usize {
        self.num_key_value_heads * self.head_dim
    }
}

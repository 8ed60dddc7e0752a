//! The model of a simulated device.

use std::sync::Arc;

use stoker_chat_template::ChatTemplates;

use super::{LoadTimings, Model, Network, ProgressCounter, Quantization, digest};
use crate::{profile::Profile, shapes, tokenizer::Tokenizer, weights::ModelConfig};

impl Model {
    /// Returns a simulated model with `profile`, the vocabulary of `tokenizer` and the end token
    /// `eos`. It has 1 KiB of KV cache per token.
    pub fn simulated(profile: Profile, tokenizer: Tokenizer, eos: u32) -> Self {
        let vocab_size = tokenizer.vocab_size();
        let config = ModelConfig {
            hidden_size: 128,
            num_layers: 1,
            num_heads: 1,
            num_kv_heads: 1,
            head_dim: 128,
            vocab_size,
            context_length: profile.context_length as usize,
            tie_embeddings: true,
            bos_token_id: None,
            eos_token_ids: vec![eos],
            ..shapes::tiny()
        };
        let tokenizer = tokenizer.for_model(vocab_size, &config.eos_token_ids);
        Self {
            digest: digest::simulated(&profile, &tokenizer),
            network: Network::Simulated(profile),
            config,
            quantization: Quantization::None,
            tokenizer: Arc::new(tokenizer),
            chat_templates: ChatTemplates::default(),
            parameters: 0,
            load_timings: LoadTimings::default(),
            progress: ProgressCounter::default(),
            draft: None,
        }
    }
}

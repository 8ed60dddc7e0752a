//! The tensors that a Llama model of a given configuration is made of, and the check that a file holds them.

use std::collections::BTreeMap;

use super::tensor::StoredTensor;
use super::{ModelConfig, Source, WeightsError};

/// The names and shapes of all tensors of a model, layer by layer.
///
/// Matrices are `[out, in]`. `lm_head.weight` is absent when the embeddings are tied.
pub fn tensor_shapes(config: &ModelConfig) -> impl Iterator<Item = (String, Vec<usize>)> {
    let table = vec![config.vocab_size, config.hidden_size];
    let norm = vec![config.hidden_size];
    let head = (!config.tie_embeddings).then(|| ("lm_head.weight".to_owned(), table.clone()));
    // Lazily: a configuration may claim far more layers than its file holds.
    [("model.embed_tokens.weight".to_owned(), table)]
        .into_iter()
        .chain((0..config.num_layers).flat_map(|layer| layer_shapes(config, layer)))
        .chain([("model.norm.weight".to_owned(), norm)])
        .chain(head)
}

fn layer_shapes(config: &ModelConfig, layer: usize) -> [(String, Vec<usize>); 9] {
    let (hidden, ffn) = (config.hidden_size, config.intermediate_size);
    let (q, kv) = (config.q_size(), config.kv_size());
    [
        ("input_layernorm", vec![hidden]),
        ("self_attn.q_proj", vec![q, hidden]),
        ("self_attn.k_proj", vec![kv, hidden]),
        ("self_attn.v_proj", vec![kv, hidden]),
        ("self_attn.o_proj", vec![hidden, q]),
        ("post_attention_layernorm", vec![hidden]),
        ("mlp.gate_proj", vec![ffn, hidden]),
        ("mlp.up_proj", vec![ffn, hidden]),
        ("mlp.down_proj", vec![hidden, ffn]),
    ]
    .map(|(part, shape)| (format!("model.layers.{layer}.{part}.weight"), shape))
}

/// Keeps the tensors that the configuration asks for, and refuses a file with too few, too many or others.
pub(super) fn check(
    source: &Source,
    config: &ModelConfig,
    mut found: BTreeMap<String, StoredTensor>,
) -> Result<BTreeMap<String, StoredTensor>, WeightsError> {
    let mut kept = BTreeMap::new();
    for (name, expected) in tensor_shapes(config) {
        let Some(tensor) = found.remove(&name) else {
            return Err(WeightsError::MissingTensor {
                file: source.name().to_owned(),
                tensor: name,
                expected,
            });
        };
        if tensor.info.shape != expected {
            return Err(WeightsError::WrongShape {
                file: source.name().to_owned(),
                tensor: name,
                actual: tensor.info.shape,
                expected,
            });
        }
        kept.insert(name, tensor);
    }
    match found.into_keys().find(|name| !is_redundant(config, name)) {
        None => Ok(kept),
        Some(tensor) => {
            Err(WeightsError::UnexpectedTensor { file: source.name().to_owned(), tensor })
        }
    }
}

/// Whether a tensor beyond the expected ones can be left out without changing an answer.
///
/// - `rotary_emb.inv_freq` is a table that old exports kept; it follows from `rope_theta`.
/// - `lm_head.weight` of a tied model: transformers ties after loading, so the embedding wins and a
///   stored head is never used. Doing otherwise would answer differently from the reference.
fn is_redundant(config: &ModelConfig, name: &str) -> bool {
    name.ends_with(".rotary_emb.inv_freq") || (config.tie_embeddings && name == "lm_head.weight")
}

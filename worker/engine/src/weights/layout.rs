//! Tensors of a model of a given configuration, and the check that its files hold them.

use std::collections::BTreeMap;

use super::tensor::StoredTensor;
use super::{ModelConfig, WeightsError};

/// The name of the embedding table.
pub(crate) const EMBEDDING: &str = "model.embed_tokens.weight";
const HEAD: &str = "lm_head.weight";

/// Returns the names and shapes of all tensors of a model, layer by layer.
///
/// Matrices are `[out, in]`. `lm_head.weight` is absent if the embeddings are tied.
pub fn tensor_shapes(config: &ModelConfig) -> impl Iterator<Item = (String, Vec<usize>)> {
    let table = vec![config.vocab_size, config.hidden_size];
    let norm = vec![config.hidden_size];
    let head = (!config.tie_embeddings).then(|| (HEAD.to_owned(), table.clone()));
    // Lazy, since a configuration may claim far more layers than its file holds.
    [(EMBEDDING.to_owned(), table)]
        .into_iter()
        .chain((0..config.num_layers).flat_map(|layer| layer_shapes(config, layer)))
        .chain([("model.norm.weight".to_owned(), norm)])
        .chain(head)
}

fn layer_shapes(config: &ModelConfig, layer: usize) -> Vec<(String, Vec<usize>)> {
    let (hidden, ffn) = (config.hidden_size, config.intermediate_size);
    let (q, kv) = (config.q_size(), config.kv_size());
    let mut shapes = Vec::new();
    let mut add = |part: &str, shape: Vec<usize>| {
        shapes.push((format!("model.layers.{layer}.{part}"), shape));
    };
    for (part, out, inputs, biased) in [
        ("self_attn.q_proj", q, hidden, config.qkv_bias),
        ("self_attn.k_proj", kv, hidden, config.qkv_bias),
        ("self_attn.v_proj", kv, hidden, config.qkv_bias),
        ("self_attn.o_proj", hidden, q, config.output_bias),
        ("mlp.gate_proj", ffn, hidden, config.mlp_bias),
        ("mlp.up_proj", ffn, hidden, config.mlp_bias),
        ("mlp.down_proj", hidden, ffn, config.mlp_bias),
    ] {
        add(&format!("{part}.weight"), vec![out, inputs]);
        if biased {
            add(&format!("{part}.bias"), vec![out]);
        }
    }
    for (part, width, present) in [
        ("input_layernorm", hidden, true),
        ("post_attention_layernorm", hidden, true),
        ("self_attn.q_norm", config.head_dim, config.qk_norm),
        ("self_attn.k_norm", config.head_dim, config.qk_norm),
    ] {
        if present {
            add(&format!("{part}.weight"), vec![width]);
        }
    }
    shapes
}

/// Returns the tensors that the configuration requires. Refuses a model with missing, unexpected or
/// malformed tensors.
///
/// - file: named in the error for a tensor that no file has.
pub(super) fn check(
    file: &str,
    config: &ModelConfig,
    mut found: BTreeMap<String, StoredTensor>,
) -> Result<BTreeMap<String, StoredTensor>, WeightsError> {
    let mut tensors = BTreeMap::new();
    for (name, expected) in tensor_shapes(config) {
        let Some(tensor) = found.remove(&name) else {
            return Err(WeightsError::MissingTensor {
                file: file.to_owned(),
                tensor: name,
                expected,
            });
        };
        tensor.check_shape(&expected)?;
        tensors.insert(name, tensor);
    }
    for (name, tensor) in found {
        if name == HEAD && config.tie_embeddings {
            check_tied_head(&tensor, tensors.get(EMBEDDING))?;
        } else if !name.ends_with(".rotary_emb.inv_freq") {
            // The exception is a table that old exports stored; it follows from the configuration.
            return Err(WeightsError::UnexpectedTensor {
                file: tensor.file().to_owned(),
                tensor: name,
            });
        }
    }
    Ok(tensors)
}

/// Refuses a stored head that differs from the embedding that it is tied to: versions of
/// transformers differ in which of the two they use.
fn check_tied_head(
    head: &StoredTensor,
    embedding: Option<&StoredTensor>,
) -> Result<(), WeightsError> {
    match embedding {
        Some(embedding) if !head.stores_same_bytes(embedding)? => Err(WeightsError::Malformed {
            file: head.file().to_owned(),
            subject: HEAD.to_owned(),
            reason: format!(
                "is not the same as {EMBEDDING}, but the configuration ties the two; set \
                 tie_word_embeddings to false if the model has a head of its own, or remove the tensor"
            ),
        }),
        _ => Ok(()),
    }
}

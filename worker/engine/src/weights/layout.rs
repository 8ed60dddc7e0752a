//! Tensors of a model of a given configuration, and the check that its files hold them.

use std::collections::BTreeMap;

use super::tensor::StoredTensor;
use super::{ModelConfig, WeightsError};

/// The name of the embedding table.
pub(crate) const EMBEDDING: &str = "model.embed_tokens.weight";
pub(crate) const HEAD: &str = "lm_head.weight";
/// Ends of the names of tables that old exports stored and that follow from the configuration. They are
/// not read, as in transformers: what is computed is exact.
const DERIVED: [&str; 7] = [
    "rotary_emb.inv_freq",
    "rotary_emb.original_inv_freq",
    "rotary_emb.cos_cached",
    "rotary_emb.sin_cached",
    "rotary_pos_emb.inv_freq",
    "rope.freqs",
    "position_ids",
];

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

/// Whether a tensor is a table that follows from the configuration.
pub(super) fn is_derived(name: &str) -> bool {
    DERIVED.iter().any(|end| {
        name.strip_suffix(end).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
    })
}

/// Returns what to do about a tensor that a folder lacks, by its canonical name.
///
/// - no_head_saved: whether names are those of a decoder that was saved without its head.
pub(super) fn advice(name: &str, config: &ModelConfig, no_head_saved: bool) -> Option<String> {
    let advice = match name {
        HEAD if no_head_saved => {
            "the file was saved from a decoder without its head; if the head is the embedding, set \
             tie_word_embeddings to true in config.json, else use a file with the head"
        }
        HEAD => {
            "if the head is the embedding, set tie_word_embeddings to true in config.json, which is false \
             or absent"
        }
        EMBEDDING if !config.tie_embeddings => {
            "if the embedding is lm_head.weight, set tie_word_embeddings to true in config.json, which is \
             false or absent"
        }
        _ => return None,
    };
    Some(advice.to_owned())
}

/// The files of a model, as far as errors name them.
pub(super) struct Files<'a> {
    /// The file that contains or indexes the tensors.
    pub(super) name: &'a str,
    /// Returns the name in the file of a canonical name.
    pub(super) in_file: &'a dyn Fn(&str) -> String,
    /// Where the number of tokens comes from.
    pub(super) vocabulary: &'a str,
    /// Returns what to do about a missing tensor, by its canonical name.
    pub(super) advice: &'a dyn Fn(&str) -> Option<String>,
}

/// Returns the tensors that the configuration requires. Refuses a model with missing, unexpected or
/// malformed tensors.
pub(super) fn check(
    files: &Files<'_>,
    config: &ModelConfig,
    mut found: BTreeMap<String, StoredTensor>,
) -> Result<BTreeMap<String, StoredTensor>, WeightsError> {
    let mut tensors = BTreeMap::new();
    for (name, expected) in tensor_shapes(config) {
        let Some(tensor) = found.remove(&name) else {
            let advice = (files.advice)(&name).map(|advice| format!("; {advice}"));
            return Err(WeightsError::MissingTensor {
                file: files.name.to_owned(),
                tensor: (files.in_file)(&name),
                expected,
                advice: advice.unwrap_or_default(),
            });
        };
        if name == EMBEDDING || name == HEAD {
            check_vocabulary(&tensor, files.vocabulary, &expected)?;
        }
        tensor.check_shape(&expected)?;
        tensors.insert(name, tensor);
    }
    for (name, tensor) in found {
        if name == HEAD && config.tie_embeddings {
            check_tied_head(&tensor, tensors.get(EMBEDDING))?;
        } else if !is_derived(&name) {
            return Err(WeightsError::UnexpectedTensor {
                file: tensor.file().to_owned(),
                tensor: tensor.name_in_file().to_owned(),
            });
        }
    }
    Ok(tensors)
}

/// Refuses a table that has not a row for each token, if it is as wide as it should be.
fn check_vocabulary(
    table: &StoredTensor,
    vocabulary: &str,
    expected: &[usize],
) -> Result<(), WeightsError> {
    match (table.info.shape.as_slice(), expected) {
        ([rows, width], [tokens, expected]) if width == expected && rows != tokens => {
            Err(table.malformed(format!(
                "has {rows} rows, but the vocabulary has {tokens} tokens ({vocabulary}); each token needs a \
                 row"
            )))
        }
        _ => Ok(()),
    }
}

/// Refuses a stored head that differs from the embedding that it is tied to: versions of
/// transformers differ in which of the two they use.
fn check_tied_head(
    head: &StoredTensor,
    embedding: Option<&StoredTensor>,
) -> Result<(), WeightsError> {
    match embedding {
        Some(embedding) if !head.stores_same_bytes(embedding)? => Err(head.malformed(format!(
            "is not the same as {}, but the configuration ties the two; set tie_word_embeddings to false if \
             the model has a head of its own, or remove the tensor",
            embedding.name_in_file()
        ))),
        _ => Ok(()),
    }
}

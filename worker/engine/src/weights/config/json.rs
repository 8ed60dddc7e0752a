//! config.json and generation_config.json, read the way transformers reads them for Llama.

use serde_json::{Value, json};

use super::ModelConfig;
use super::keys::Keys;
use crate::weights::{Source, WeightsError};

/// Larger than any configuration; what is above it is another file under the wrong name.
const MAX_BYTES: u64 = 4 << 20;

/// Reads config.json.
pub(in crate::weights) fn from_json(source: &Source) -> Result<ModelConfig, WeightsError> {
    let value = parse(source)?;
    let keys = Keys::new(source, &value)?;
    refuse_other_models(&keys)?;
    let num_heads = keys.required_count("num_attention_heads")?;
    let hidden_size = keys.required_count("hidden_size")?;
    let head_dim = match keys.count("head_dim")? {
        Some(head_dim) => head_dim,
        None => default_head_dim(source, hidden_size, num_heads)?,
    };
    let config = ModelConfig {
        hidden_size,
        intermediate_size: keys.required_count("intermediate_size")?,
        num_layers: keys.required_count("num_hidden_layers")?,
        num_heads,
        num_kv_heads: keys.count("num_key_value_heads")?.unwrap_or(num_heads),
        head_dim,
        vocab_size: keys.required_count("vocab_size")?,
        context_length: keys.count("max_position_embeddings")?.unwrap_or(2048),
        rms_norm_eps: keys.number("rms_norm_eps")?.unwrap_or(1e-6),
        rope_theta: rope_theta(&keys)?,
        tie_embeddings: keys.flag("tie_word_embeddings")?.unwrap_or(false),
        bos_token_id: token_ids(&keys, "bos_token_id", 1)?.first().copied(),
        eos_token_ids: token_ids(&keys, "eos_token_id", 2)?,
    };
    config.validated(source)
}

/// Adds the end tokens that generation_config.json names: chat models end turns with more than `</s>`.
pub(in crate::weights) fn add_generation_config(
    mut config: ModelConfig,
    source: &Source,
) -> Result<ModelConfig, WeightsError> {
    let value = parse(source)?;
    let keys = Keys::new(source, &value)?;
    config.eos_token_ids.extend(keys.ids("eos_token_id")?);
    config.validated(source)
}

fn parse(source: &Source) -> Result<Value, WeightsError> {
    let bytes = source.read_all(MAX_BYTES)?;
    serde_json::from_slice(&bytes)
        .map_err(|error| source.malformed("the file", format!("is not JSON: {error}")))
}

/// Refuses every model whose mathematics is not the one implemented.
fn refuse_other_models(keys: &Keys<'_>) -> Result<(), WeightsError> {
    match keys.get("architectures") {
        Some(value) if *value != json!(["LlamaForCausalLM"]) => {
            let supported = "[\"LlamaForCausalLM\"]";
            return Err(keys.source.unsupported("architectures =", value, supported));
        }
        None if keys.text("model_type")? != Some("llama") => {
            let reason = "is missing, and model_type is not \"llama\"";
            return Err(keys.source.malformed("architectures", reason));
        }
        _ => {}
    }
    for (key, accepted) in [
        ("model_type", vec![json!("llama")]),
        ("hidden_act", vec![json!("silu"), json!("swish")]),
        ("attention_bias", vec![json!(false)]),
        ("mlp_bias", vec![json!(false)]),
        ("quantization_config", vec![]),
        ("compression_config", vec![]),
        ("sliding_window", vec![]),
        ("pretraining_tp", vec![json!(1)]),
        ("partial_rotary_factor", vec![json!(1)]),
        ("num_local_experts", vec![json!(0)]),
        ("logit_scale", vec![json!(1)]),
        ("final_logit_softcapping", vec![]),
        ("attn_logit_softcapping", vec![]),
    ] {
        keys.accept_only(key, &accepted)?;
    }
    Ok(())
}

/// The rotary base, from the old key or from the newer object; scaled variants are refused.
fn rope_theta(keys: &Keys<'_>) -> Result<f64, WeightsError> {
    let mut theta = keys.number("rope_theta")?;
    for object in ["rope_parameters", "rope_scaling"] {
        let Some(rope) = keys.object(object)? else {
            continue;
        };
        for kind in ["rope_type", "type"] {
            rope.accept_only(kind, &[json!("default")])?;
        }
        rope.accept_only("partial_rotary_factor", &[json!(1)])?;
        rope.accept_only("factor", &[json!(1)])?;
        let known = ["rope_type", "type", "rope_theta", "partial_rotary_factor", "factor"];
        for name in rope.names().filter(|name| !known.contains(name)) {
            rope.accept_only(name, &[])?;
        }
        if let Some(inner) = rope.number("rope_theta")? {
            if theta.is_some_and(|outer| outer != inner) {
                let reason = format!("is {inner}, which contradicts another rope_theta");
                return Err(keys.source.malformed(object, reason));
            }
            theta = Some(inner);
        }
    }
    Ok(theta.unwrap_or(10_000.0))
}

fn default_head_dim(
    source: &Source,
    hidden_size: usize,
    num_heads: usize,
) -> Result<usize, WeightsError> {
    if num_heads == 0 || !hidden_size.is_multiple_of(num_heads) {
        let reason =
            format!("is {hidden_size}, not a multiple of num_attention_heads = {num_heads}");
        return Err(source.malformed("hidden_size", reason));
    }
    Ok(hidden_size / num_heads)
}

/// An absent key means transformers' default for Llama; null means that there is none.
fn token_ids(keys: &Keys<'_>, key: &str, default: u32) -> Result<Vec<u32>, WeightsError> {
    if keys.has(key) { keys.ids(key) } else { Ok(vec![default]) }
}

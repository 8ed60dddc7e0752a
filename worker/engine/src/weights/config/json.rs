//! Reader of config.json and generation_config.json, with the semantics of transformers.

mod known;
mod rope;
mod windows;

use serde_json::json;

use super::ModelConfig;
use super::family::Family;
use super::keys::Keys;
use crate::weights::{Source, WeightsError, json};

/// Larger than any configuration. A larger file is another file under the wrong name.
const MAX_BYTES: u64 = 4 << 20;

/// Reads config.json.
pub(in crate::weights) fn from_json(source: &Source) -> Result<ModelConfig, WeightsError> {
    let value = json::read(source, MAX_BYTES)?;
    let keys = Keys::new(source, &value)?;
    let family = family(&keys)?;
    known::refuse_unread_keys(&keys, family)?;
    let defaults = family.defaults();
    let num_heads = keys.required_count("num_attention_heads")?;
    let hidden_size = keys.required_count("hidden_size")?;
    let num_layers = keys.required_count("num_hidden_layers")?;
    let context_length = keys.count("max_position_embeddings")?.unwrap_or(defaults.context_length);
    let (rope_theta, rope_scaling) = rope::read(&keys)?;
    let (qkv_bias, output_bias) = attention_biases(&keys, family)?;
    let config = ModelConfig {
        family,
        hidden_size,
        intermediate_size: keys.required_count("intermediate_size")?,
        num_layers,
        num_heads,
        num_kv_heads: match keys.count("num_key_value_heads")? {
            Some(count) => count,
            // Null means one for each query head; only an absent key has the default.
            None if keys.has("num_key_value_heads") => num_heads,
            None => defaults.num_kv_heads.unwrap_or(num_heads),
        },
        head_dim: match keys.count("head_dim")? {
            Some(head_dim) => head_dim,
            None if keys.has("head_dim") => split_evenly(source, hidden_size, num_heads)?,
            None => match defaults.head_dim {
                Some(head_dim) => head_dim,
                None => split_evenly(source, hidden_size, num_heads)?,
            },
        },
        vocab_size: keys.required_count("vocab_size")?,
        context_length,
        rms_norm_eps: keys.number("rms_norm_eps")?.unwrap_or(1e-6),
        rope_theta,
        rope_scaling,
        windows: windows::read(&keys, family, num_layers, context_length)?,
        qkv_bias,
        output_bias,
        mlp_bias: family == Family::Llama && keys.flag("mlp_bias")?.unwrap_or(false),
        qk_norm: family == Family::Qwen3,
        tie_embeddings: keys.flag("tie_word_embeddings")?.unwrap_or(false),
        bos_token_id: token_ids(&keys, "bos_token_id", defaults.bos_token_id)?.first().copied(),
        eos_token_ids: token_ids(&keys, "eos_token_id", defaults.eos_token_id)?,
    };
    config.validated(source, str::to_owned)
}

/// Adds the end tokens of generation_config.json: chat models end a message with other tokens than
/// `</s>`.
pub(in crate::weights) fn add_generation_config(
    mut config: ModelConfig,
    source: &Source,
) -> Result<ModelConfig, WeightsError> {
    let value = json::read(source, MAX_BYTES)?;
    let keys = Keys::new(source, &value)?;
    config.eos_token_ids.extend(keys.ids("eos_token_id")?);
    config.validated(source, str::to_owned)
}

/// Reads the family from `architectures`, or from `model_type` if that is absent. They must agree.
fn family(keys: &Keys<'_>) -> Result<Family, WeightsError> {
    let model_type = keys.text("model_type")?;
    let family = match keys.get("architectures") {
        Some(value) => {
            let named = |family: &Family| *value == json!([family.architecture()]);
            Family::ALL.into_iter().find(named).ok_or_else(|| {
                let known = Family::ALL.map(|family| format!("[\"{}\"]", family.architecture()));
                keys.source.unsupported("architectures =", value, known.join(", "))
            })?
        }
        None => {
            let named = |family: &Family| model_type == Some(family.model_type());
            Family::ALL.into_iter().find(named).ok_or_else(|| {
                let known = Family::ALL.map(Family::model_type).join(", ");
                let given = model_type.map_or("absent".to_owned(), |text| format!("{text:?}"));
                let reason = format!("is missing, and model_type is {given}, not one of {known}");
                keys.source.malformed("architectures", reason)
            })?
        }
    };
    keys.accept_only("model_type", &[json!(family.model_type())])?;
    Ok(family)
}

/// Whether queries, keys and values have a bias, and whether the output projection has one.
fn attention_biases(keys: &Keys<'_>, family: Family) -> Result<(bool, bool), WeightsError> {
    let biased = keys.flag("attention_bias")?.unwrap_or(false);
    Ok(match family {
        Family::Llama | Family::Qwen3 => (biased, biased),
        Family::Mistral => (false, false),
        // Whatever the key is: transformers does not read it for this family.
        Family::Qwen2 => (true, false),
    })
}

fn split_evenly(
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

/// Reads token ids. An absent key has transformers' default; null means none.
fn token_ids(keys: &Keys<'_>, key: &str, default: Option<u32>) -> Result<Vec<u32>, WeightsError> {
    if keys.has(key) { keys.ids(key) } else { Ok(default.into_iter().collect()) }
}

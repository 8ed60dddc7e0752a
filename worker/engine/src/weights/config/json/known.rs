//! Keys of config.json that are not read: harmless, refused or unknown.
//!
//! Real configurations have many keys that do not affect the mathematics: training settings,
//! default sampling, versions of tools. Refusing them all would refuse most models. Ignoring them
//! all would sooner or later serve another model than the one that was trained. So known keys are
//! listed. An unknown key is refused if its name is about the mathematics, and logged otherwise.

use serde_json::{Value, json};

use crate::weights::WeightsError;
use crate::weights::config::family::Family;
use crate::weights::config::keys::Keys;

/// Keys that are read elsewhere.
const READ: &str = "\
    architectures attention_bias bos_token_id eos_token_id head_dim hidden_size intermediate_size \
    layer_types max_position_embeddings max_window_layers mlp_bias model_type num_attention_heads \
    num_hidden_layers num_key_value_heads original_max_position_embeddings qkv_bias rms_norm_eps \
    rope_parameters rope_scaling rope_theta sliding_window tie_word_embeddings use_sliding_window \
    vocab_size";

/// Keys that never change a response to a prompt, although the names of some suggest it.
const HARMLESS: &str = "\
    _attn_implementation _attn_implementation_autoset _attn_implementation_internal \
    _flash_attn_2_enabled _name_or_path attention_dropout attention_probs_dropout_prob \
    attn_implementation attn_pdrop auto_map bad_words_ids begin_suppress_tokens bos_token \
    chunk_size_feed_forward decoder_start_token_id diversity_penalty do_sample dtype \
    early_stopping embd_pdrop encoder_no_repeat_ngram_size eos_token \
    exponential_decay_length_penalty finetuning_task forced_bos_token_id forced_eos_token_id \
    gradient_checkpointing hidden_dropout hidden_dropout_prob id2label initializer_factor \
    initializer_range is_decoder is_llama_config keys_to_ignore_at_inference label2id \
    length_penalty max_length max_sequence_length min_length mlp_dropout model_max_length \
    no_repeat_ngram_size num_beam_groups num_beams num_labels num_return_sequences \
    output_attentions output_hidden_states output_scores pad_token_id prefix problem_type \
    remove_invalid_values repetition_penalty resid_pdrop return_dict return_dict_in_generate \
    sep_token_id suppress_tokens task_specific_params temperature tf_legacy_loss tokenizer_class \
    top_k top_p torch_dtype torchscript transformers.js_config transformers_version \
    trust_remote_code typical_p unsloth_fixed unsloth_version use_bfloat16 use_cache \
    use_flash_attention use_flash_attention_2 use_flash_attn";

/// Words in the names of keys about the mathematics.
const MATHEMATICS: &str = "\
    act activation adapter adapters alibi attention attn bias cap causal clip conv conv1d cross \
    decoder embedding embeddings encoder expert experts ffn gate gating head heads hidden \
    interleaved k kv layer layernorm layers logit logits lora mask memory mlp moe mtp multiplier \
    mup nextn norm normalization parallel partial pos position positional positions pruned q qk \
    quantization quantize quantized residual rope rotary router scale scaling sink sinks sliding \
    softcap softcapping sparse sparsity theta v window";

/// Refuses every key whose value specifies other mathematics than that of `family`.
pub(super) fn refuse_unread_keys(keys: &Keys<'_>, family: Family) -> Result<(), WeightsError> {
    for (key, accepted) in neutral_values() {
        keys.accept_only(key, &accepted)?;
    }
    // Keys that some families read and others ignore.
    if family != Family::Llama {
        keys.accept_only("mlp_bias", &[json!(false)])?;
    }
    if family == Family::Mistral {
        keys.accept_only("attention_bias", &[json!(false)])?;
    }
    keys.accept_only("qkv_bias", &[json!(family == Family::Qwen2)])?;
    let mut unknown = Vec::new();
    for name in keys.names().filter(|name| !is_known(name)) {
        let Some(value) = keys.get(name).filter(|value| !is_off(name, value)) else {
            continue;
        };
        if is_mathematical(name) {
            let supported = "a configuration without this key, which is not one of this \
                             architecture's; if it changes nothing, remove it";
            return Err(keys.source.unsupported(format!("{name} ="), value, supported));
        }
        unknown.push(name);
    }
    if !unknown.is_empty() {
        tracing::warn!(file = keys.source.name(), keys = ?unknown, "unknown keys are not read");
    }
    Ok(())
}

/// Returns keys of features that are not implemented, with the values that disable them.
fn neutral_values() -> [(&'static str, Vec<Value>); 21] {
    let (no, one, zero) = (json!(false), json!(1), json!(0));
    [
        ("attention_multiplier", vec![]),
        ("attn_logit_softcapping", vec![]),
        ("clip_qkv", vec![]),
        ("compression_config", vec![]),
        ("embedding_multiplier", vec![one.clone()]),
        ("final_logit_softcapping", vec![]),
        ("hidden_act", vec![json!("silu"), json!("swish")]),
        ("hidden_activation", vec![json!("silu"), json!("swish")]),
        ("is_encoder_decoder", vec![no.clone()]),
        ("logit_scale", vec![one.clone()]),
        ("logits_scaling", vec![one.clone()]),
        ("n_routed_experts", vec![zero.clone()]),
        ("num_experts", vec![zero.clone()]),
        ("num_experts_per_tok", vec![zero.clone()]),
        ("num_local_experts", vec![zero]),
        ("partial_rotary_factor", vec![one.clone()]),
        ("pretraining_tp", vec![one.clone()]),
        ("quantization_config", vec![]),
        ("residual_multiplier", vec![one]),
        ("rope_interleaved", vec![no.clone()]),
        ("use_qk_norm", vec![no]),
    ]
}

fn is_known(name: &str) -> bool {
    let neutral = neutral_values();
    lists(READ, name) || lists(HARMLESS, name) || neutral.iter().any(|(known, _)| *known == name)
}

/// Whether a value disables the feature of its key.
fn is_off(name: &str, value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(map) => map.is_empty(),
        Value::Number(number) => name.starts_with("num_") && number.as_f64() == Some(0.0),
        Value::Bool(true) => false,
    }
}

fn is_mathematical(name: &str) -> bool {
    let words = name.split(|c: char| !c.is_ascii_alphanumeric());
    words.map(str::to_ascii_lowercase).any(|word| lists(MATHEMATICS, &word))
}

/// Whether `word` is in the space-separated `list`.
fn lists(list: &str, word: &str) -> bool {
    list.split(' ').any(|other| other == word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_unsupported_features_are_mathematical() {
        for name in [
            "attn_temperature_tuning",
            "no_rope_layers",
            "query_pre_attn_scalar",
            "first_k_dense_replace",
            "attention_sink_size",
            "cross_layer_sharing",
            "use_parallel_residual",
            "alibi",
            "lm_head_bias",
            "num_nextn_predict_layers",
            "scale_depth",
            "altup_active_idx_scale",
            "RotaryBase.theta",
        ] {
            assert!(is_mathematical(name), "{name}");
        }
        for name in
            ["unsloth_version", "license", "_commit_hash", "id2label", "neftune_noise_alpha"]
        {
            assert!(!is_mathematical(name), "{name}");
        }
    }
}

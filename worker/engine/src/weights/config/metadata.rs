//! The configuration in GGUF metadata, under the `llama.` prefix.

use super::ModelConfig;
use crate::weights::gguf::{Gguf, Metadata, Value};
use crate::weights::{Source, WeightsError};

const PREFIX: &str = "llama.";

/// Keys that are read below, and keys that say nothing about the mathematics.
///
/// Any other key under the prefix is refused: it asks for something that would be left out.
const KNOWN: [&str; 13] = [
    "context_length",
    "embedding_length",
    "block_count",
    "feed_forward_length",
    "vocab_size",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    "attention.layer_norm_rms_epsilon",
    "rope.dimension_count",
    "rope.freq_base",
    // Where the file was converted from; the rows of a "llama" file are interleaved either way.
    "tensor_data_layout",
];

/// Reads the configuration of a GGUF file.
pub(in crate::weights) fn from_metadata(
    source: &Source,
    gguf: &Gguf,
) -> Result<ModelConfig, WeightsError> {
    let metadata = gguf.metadata();
    refuse_other_models(source, metadata)?;
    let keys = Keys { metadata };
    let num_heads = keys.required("attention.head_count")?;
    let hidden_size = keys.required("embedding_length")?;
    let head_dim = head_dim(&keys, hidden_size, num_heads)?;
    let config = ModelConfig {
        hidden_size,
        intermediate_size: keys.required("feed_forward_length")?,
        num_layers: keys.required("block_count")?,
        num_heads,
        num_kv_heads: keys.count("attention.head_count_kv")?.unwrap_or(num_heads),
        head_dim,
        vocab_size: vocab_size(&keys)?,
        context_length: keys.required("context_length")?,
        rms_norm_eps: keys.required_number("attention.layer_norm_rms_epsilon")?,
        rope_theta: keys.number("rope.freq_base")?.unwrap_or(10_000.0),
        tie_embeddings: !gguf.has_output(),
        bos_token_id: token_id(metadata, "tokenizer.ggml.bos_token_id")?,
        eos_token_ids: eos_token_ids(metadata)?,
    };
    config.validated(source)
}

/// Keys under the prefix.
struct Keys<'a> {
    metadata: &'a Metadata,
}

impl Keys<'_> {
    fn count(&self, key: &str) -> Result<Option<usize>, WeightsError> {
        let key = format!("{PREFIX}{key}");
        let count = self.metadata.count(&key)?;
        count
            .map(|n| {
                usize::try_from(n).map_err(|_| self.metadata.malformed(&key, format!("is {n}")))
            })
            .transpose()
    }

    fn number(&self, key: &str) -> Result<Option<f64>, WeightsError> {
        self.metadata.number(&format!("{PREFIX}{key}"))
    }

    fn required(&self, key: &str) -> Result<usize, WeightsError> {
        self.count(key)?.ok_or_else(|| self.missing(key))
    }

    fn required_number(&self, key: &str) -> Result<f64, WeightsError> {
        self.number(key)?.ok_or_else(|| self.missing(key))
    }

    fn missing(&self, key: &str) -> WeightsError {
        self.metadata.malformed(&format!("{PREFIX}{key}"), "is missing")
    }
}

fn refuse_other_models(source: &Source, metadata: &Metadata) -> Result<(), WeightsError> {
    match metadata.text("general.architecture")? {
        Some("llama") => {}
        Some(other) => {
            let subject = "general.architecture =";
            return Err(source.unsupported(subject, other, "llama"));
        }
        None => return Err(metadata.malformed("general.architecture", "is missing")),
    }
    if let Some(parts) = metadata.count("split.count")?.filter(|parts| *parts > 1) {
        let supported = "a model in one file; merge the parts";
        return Err(source.unsupported("split.count =", parts, supported));
    }
    for key in metadata.keys() {
        let Some(name) = key.strip_prefix(PREFIX) else {
            continue;
        };
        if KNOWN.contains(&name) || metadata.get(key).is_some_and(|value| neutral(name, value)) {
            continue;
        }
        let value = metadata.get(key).map(Value::brief).unwrap_or_default();
        let subject = format!("{key} =");
        return Err(source.unsupported(subject, value, "a file without this key"));
    }
    Ok(())
}

/// Whether a key of a feature that is not implemented says that the feature is off.
fn neutral(name: &str, value: &Value) -> bool {
    let off =
        |value: &Value| matches!(value, Value::Unsigned(0) | Value::Signed(0) | Value::Bool(false));
    let one = |value: &Value| matches!(value, Value::Float(x) if *x == 1.0);
    match name {
        "rope.scaling.type" => *value == Value::Text("none".to_owned()),
        "rope.scale_linear" | "rope.scaling.factor" | "logit_scale" => one(value),
        "expert_count"
        | "expert_used_count"
        | "attention.sliding_window"
        | "use_parallel_residual"
        | "rope.scaling.finetuned" => off(value),
        "attention.causal" => *value == Value::Bool(true),
        _ => false,
    }
}

/// The width of a head, which every key that speaks of it must agree on.
fn head_dim(keys: &Keys<'_>, hidden_size: usize, num_heads: usize) -> Result<usize, WeightsError> {
    let head_dim = match keys.count("attention.key_length")? {
        Some(length) => length,
        None if num_heads > 0 && hidden_size.is_multiple_of(num_heads) => hidden_size / num_heads,
        None => {
            let reason =
                format!("is {hidden_size}, not a multiple of attention.head_count = {num_heads}");
            return Err(keys.metadata.malformed("llama.embedding_length", reason));
        }
    };
    for key in ["attention.value_length", "rope.dimension_count"] {
        if let Some(other) = keys.count(key)?.filter(|other| *other != head_dim) {
            let reason =
                format!("is {other}; only heads that are {head_dim} wide throughout are supported");
            return Err(keys.metadata.malformed(&format!("{PREFIX}{key}"), reason));
        }
    }
    Ok(head_dim)
}

/// The number of tokens listed, which a key may repeat.
fn vocab_size(keys: &Keys<'_>) -> Result<usize, WeightsError> {
    let tokens = keys.metadata.texts("tokenizer.ggml.tokens")?.map(<[_]>::len);
    match (keys.count("vocab_size")?, tokens) {
        (Some(size), Some(tokens)) if size != tokens => {
            let reason = format!("is {size}, but tokenizer.ggml.tokens lists {tokens}");
            Err(keys.metadata.malformed("llama.vocab_size", reason))
        }
        (Some(size), _) | (None, Some(size)) => Ok(size),
        (None, None) => Err(keys.missing("vocab_size")),
    }
}

/// The tokens that end a text, a turn or a message.
fn eos_token_ids(metadata: &Metadata) -> Result<Vec<u32>, WeightsError> {
    let mut ids = Vec::new();
    for name in ["eos", "eot", "eom"] {
        ids.extend(token_id(metadata, &format!("tokenizer.ggml.{name}_token_id"))?);
    }
    Ok(ids)
}

/// A token id; converters write 2^32 - 1 for "none".
fn token_id(metadata: &Metadata, key: &str) -> Result<Option<u32>, WeightsError> {
    match metadata.count(key)? {
        None => Ok(None),
        Some(id) if id == u64::from(u32::MAX) => Ok(None),
        Some(id) => u32::try_from(id)
            .map(Some)
            .map_err(|_| metadata.malformed(key, format!("is {id}, which is not a token id"))),
    }
}

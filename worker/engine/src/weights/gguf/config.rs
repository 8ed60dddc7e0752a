//! Configuration in GGUF metadata, under the prefix of the architecture.

use std::num::NonZeroUsize;

use super::{Architecture, Gguf, Metadata, Value};
use crate::weights::config::MAX_LAYERS;
use crate::weights::{ModelConfig, RopeScaling, Source, WeightsError};

/// Keys that are read below, and keys that do not affect the mathematics.
///
/// Any other key under the prefix is refused, since its feature is not implemented.
const KNOWN: [&str; 19] = [
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
    "attention.sliding_window",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scale_linear",
    // Describes the model's origin; weights and frequencies already reflect it.
    "rope.scaling.finetuned",
    "rope.scaling.original_context_length",
    // Describes the file that was converted. The order of rows follows from the architecture either
    // way.
    "tensor_data_layout",
];

/// Reads the configuration of a GGUF file.
pub(in crate::weights) fn from_metadata(
    source: &Source,
    gguf: &Gguf,
) -> Result<ModelConfig, WeightsError> {
    let metadata = gguf.metadata();
    let architecture = Architecture::of(source, metadata)?;
    let keys = Keys { source, metadata, architecture };
    keys.refuse_unread_keys()?;
    let num_heads = keys.required("attention.head_count")?;
    let hidden_size = keys.required("embedding_length")?;
    let num_layers = keys.required("block_count")?;
    let head_dim = head_dim(&keys, hidden_size, num_heads)?;
    let config = ModelConfig {
        family: architecture.family(),
        hidden_size,
        intermediate_size: keys.required("feed_forward_length")?,
        num_layers,
        num_heads,
        num_kv_heads: keys.count("attention.head_count_kv")?.unwrap_or(num_heads),
        head_dim,
        vocab_size: vocab_size(&keys)?,
        context_length: keys.required("context_length")?,
        rms_norm_eps: keys.required_number("attention.layer_norm_rms_epsilon")?,
        rope_theta: keys.number("rope.freq_base")?.unwrap_or(10_000.0),
        rope_scaling: rope_scaling(&keys, gguf, head_dim)?,
        windows: windows(&keys, num_layers)?,
        // The file has no keys for these. A layer without them is detected when all tensors are
        // checked.
        qkv_bias: architecture == Architecture::Qwen2 || gguf.has("blk.0.attn_q.bias"),
        output_bias: gguf.has("blk.0.attn_output.bias"),
        mlp_bias: gguf.has("blk.0.ffn_up.bias"),
        qk_norm: architecture == Architecture::Qwen3,
        tie_embeddings: !gguf.has("output.weight"),
        bos_token_id: token_id(metadata, "tokenizer.ggml.bos_token_id")?,
        eos_token_ids: eos_token_ids(metadata)?,
    };
    config.validated(source, |key| keys.name_of(key))
}

/// Keys under the prefix.
struct Keys<'a> {
    source: &'a Source,
    metadata: &'a Metadata,
    architecture: Architecture,
}

impl Keys<'_> {
    fn full(&self, key: &str) -> String {
        format!("{}.{key}", self.architecture.name())
    }

    fn count(&self, key: &str) -> Result<Option<usize>, WeightsError> {
        let count = self.metadata.count(&self.full(key))?;
        count
            .map(|n| usize::try_from(n).map_err(|_| self.malformed(key, format!("is {n}"))))
            .transpose()
    }

    fn number(&self, key: &str) -> Result<Option<f64>, WeightsError> {
        self.metadata.number(&self.full(key))
    }

    fn text(&self, key: &str) -> Result<Option<&str>, WeightsError> {
        self.metadata.text(&self.full(key))
    }

    fn required(&self, key: &str) -> Result<usize, WeightsError> {
        self.count(key)?.ok_or_else(|| self.malformed(key, "is missing"))
    }

    fn required_number(&self, key: &str) -> Result<f64, WeightsError> {
        self.number(key)?.ok_or_else(|| self.malformed(key, "is missing"))
    }

    fn malformed(&self, key: &str, reason: impl Into<String>) -> WeightsError {
        self.metadata.malformed(&self.full(key), reason)
    }

    fn unsupported(&self, key: &str, value: String, supported: &str) -> WeightsError {
        self.source.unsupported(format!("{} =", self.full(key)), value, supported)
    }

    /// Returns the GGUF key that corresponds to a key of config.json.
    fn name_of(&self, key: &'static str) -> String {
        self.full(match key {
            "hidden_size" => "embedding_length",
            "intermediate_size" => "feed_forward_length",
            "num_hidden_layers" => "block_count",
            "num_attention_heads" => "attention.head_count",
            "num_key_value_heads" => "attention.head_count_kv",
            "head_dim" => "attention.key_length",
            "max_position_embeddings" => "context_length",
            "rms_norm_eps" => "attention.layer_norm_rms_epsilon",
            "rope_theta" => "rope.freq_base",
            "bos_token_id" => return "tokenizer.ggml.bos_token_id".to_owned(),
            // End tokens come from three keys.
            "eos_token_id" => return "tokenizer.ggml.eos_token_id, eot or eom".to_owned(),
            same => same,
        })
    }

    fn refuse_unread_keys(&self) -> Result<(), WeightsError> {
        let prefix = self.full("");
        for key in self.metadata.keys() {
            let (Some(name), Some(value)) = (key.strip_prefix(&prefix), self.metadata.get(key))
            else {
                continue;
            };
            if !KNOWN.contains(&name) && !neutral(name, value) {
                return Err(self.unsupported(name, value.brief(), "a file without this key"));
            }
        }
        Ok(())
    }
}

/// Whether the key of an unimplemented feature disables it.
fn neutral(name: &str, value: &Value) -> bool {
    let off =
        |value: &Value| matches!(value, Value::Unsigned(0) | Value::Signed(0) | Value::Bool(false));
    let one = |value: &Value| matches!(value, Value::Float(x) if *x == 1.0);
    match name {
        "logit_scale" | "rope.scaling.attn_factor" => one(value),
        "expert_count" | "expert_used_count" | "use_parallel_residual" => off(value),
        "attention.causal" => *value == Value::Bool(true),
        _ => false,
    }
}

/// Returns the width of a head, on which all keys must agree.
fn head_dim(keys: &Keys<'_>, hidden_size: usize, num_heads: usize) -> Result<usize, WeightsError> {
    let head_dim = match keys.count("attention.key_length")? {
        Some(length) => length,
        None if hidden_size > 0 && num_heads > 0 && hidden_size.is_multiple_of(num_heads) => {
            hidden_size / num_heads
        }
        None => {
            let count = keys.full("attention.head_count");
            let reason = format!("is {hidden_size}, which {count} = {num_heads} cannot divide");
            return Err(keys.malformed("embedding_length", reason));
        }
    };
    for key in ["attention.value_length", "rope.dimension_count"] {
        if let Some(other) = keys.count(key)?.filter(|other| *other != head_dim) {
            let reason =
                format!("is {other}; only heads that are {head_dim} wide throughout are supported");
            return Err(keys.malformed(key, reason));
        }
    }
    Ok(head_dim)
}

/// Reads the scaling of the rotary frequencies: one factor, a tensor with a divisor for each pair,
/// or both.
fn rope_scaling(
    keys: &Keys<'_>,
    gguf: &Gguf,
    head_dim: usize,
) -> Result<RopeScaling, WeightsError> {
    let (key, factor) = match keys.number("rope.scaling.factor")? {
        // Older spelling.
        None => ("rope.scale_linear", keys.number("rope.scale_linear")?),
        factor => ("rope.scaling.factor", factor),
    };
    let one_for_all = match keys.text("rope.scaling.type")? {
        // Without a type, a factor means linear scaling.
        None | Some("linear") => {
            RopeScaling::linear(factor.unwrap_or(1.0), |reason| keys.malformed(key, reason))?
        }
        Some("none") => RopeScaling::None,
        Some(other) => {
            let value = format!("{other:?}");
            return Err(keys.unsupported("rope.scaling.type", value, "\"none\", \"linear\""));
        }
    };
    Ok(match (gguf.rope_divisors(head_dim)?, one_for_all) {
        (None, one_for_all) => one_for_all,
        (Some(divisors), RopeScaling::Linear { factor }) => {
            RopeScaling::Divisors(divisors.into_iter().map(|divisor| divisor * factor).collect())
        }
        (Some(divisors), _) => RopeScaling::Divisors(divisors),
    })
}

/// Reads the window of all layers, which only files of the "llama" architecture have: Mistral's.
fn windows(keys: &Keys<'_>, num_layers: usize) -> Result<Vec<Option<NonZeroUsize>>, WeightsError> {
    let key = "attention.sliding_window";
    let window = NonZeroUsize::new(keys.count(key)?.unwrap_or(0));
    match window {
        Some(window) if keys.architecture != Architecture::Llama => {
            Err(keys.unsupported(key, window.to_string(), "0 or absent"))
        }
        _ => Ok(vec![window; num_layers.min(MAX_LAYERS)]),
    }
}

/// Returns the number of listed tokens, with which the key must agree.
fn vocab_size(keys: &Keys<'_>) -> Result<usize, WeightsError> {
    let tokens = keys.metadata.texts("tokenizer.ggml.tokens")?.map(<[_]>::len);
    match (keys.count("vocab_size")?, tokens) {
        (Some(size), Some(tokens)) if size != tokens => {
            let reason = format!("is {size}, but tokenizer.ggml.tokens lists {tokens}");
            Err(keys.malformed("vocab_size", reason))
        }
        (Some(size), _) | (None, Some(size)) => Ok(size),
        (None, None) => Err(keys.malformed("vocab_size", "is missing")),
    }
}

/// Returns the tokens that end a text, a turn or a message.
fn eos_token_ids(metadata: &Metadata) -> Result<Vec<u32>, WeightsError> {
    let mut ids = Vec::new();
    for name in ["eos", "eot", "eom"] {
        ids.extend(token_id(metadata, &format!("tokenizer.ggml.{name}_token_id"))?);
    }
    Ok(ids)
}

/// Reads a token id; converters write 2^32 - 1 for "none".
fn token_id(metadata: &Metadata, key: &str) -> Result<Option<u32>, WeightsError> {
    match metadata.count(key)? {
        None => Ok(None),
        Some(id) if id == u64::from(u32::MAX) => Ok(None),
        Some(id) => u32::try_from(id)
            .map(Some)
            .map_err(|_| metadata.malformed(key, format!("is {id}, which is not a token id"))),
    }
}

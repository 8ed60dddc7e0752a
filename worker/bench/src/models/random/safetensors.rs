//! A folder in the layout of Hugging Face: config.json, tokenizer.json and model.safetensors in
//! bf16.

use std::{
    fs::{self, File},
    io::{self, BufWriter, Write},
    path::Path,
};

use half::bf16;
use serde_json::{Map, Value, json};
use stoker_engine::weights::ModelConfig;

use super::{encoding::Encoding, tensors, vocabulary::Vocabulary};

/// Alignment of tensor data in bytes. The header is padded to a multiple of it.
const ALIGNMENT: usize = 8;

/// Returns the bytes of weights that [`write`] reports in total.
pub(super) fn bytes(config: &ModelConfig) -> u64 {
    tensors::of(config).iter().map(|tensor| tensor.bytes(Encoding::Bf16)).sum()
}

/// Writes the files into the existing `folder` and reports the bytes of weights to `wrote`.
pub(super) fn write(
    folder: &Path,
    config: &ModelConfig,
    mut wrote: impl FnMut(u64),
) -> io::Result<()> {
    fs::write(folder.join("config.json"), config_json(config).to_string())?;
    let tokenizer = Vocabulary::of(config.vocab_size).tokenizer_json();
    fs::write(folder.join("tokenizer.json"), tokenizer.to_string())?;
    let mut out = BufWriter::new(File::create(folder.join("model.safetensors"))?);
    let tensors = tensors::of(config);
    let header = header(tensors.iter().map(|t| (t.name.clone(), t.shape.clone())));
    out.write_all(&(header.len() as u64).to_le_bytes())?;
    out.write_all(header.as_bytes())?;
    for tensor in &tensors {
        tensor.write(&mut out, Encoding::Bf16, |row| row, &mut wrote)?;
    }
    // Dirty pages would disturb the following measurement.
    out.into_inner()?.sync_all()
}

/// Returns the header of a file whose `tensors` are stored contiguously in bf16.
pub(in crate::models) fn header(tensors: impl Iterator<Item = (String, Vec<usize>)>) -> String {
    let mut entries = Map::new();
    let mut end = 0;
    for (name, shape) in tensors {
        let begin = end;
        end += shape.iter().product::<usize>() * size_of::<bf16>();
        let entry = json!({ "dtype": "BF16", "shape": shape, "data_offsets": [begin, end] });
        entries.insert(name, entry);
    }
    let mut header = Value::Object(entries).to_string();
    while !header.len().is_multiple_of(ALIGNMENT) {
        header.push(' ');
    }
    header
}

fn config_json(config: &ModelConfig) -> Value {
    json!({
        "architectures": [config.family.architecture()],
        "hidden_act": "silu",
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.context_length,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_theta,
        "tie_word_embeddings": config.tie_embeddings,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": config.eos_token_ids,
        "torch_dtype": "bfloat16",
    })
}

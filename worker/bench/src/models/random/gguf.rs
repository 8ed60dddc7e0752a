//! A GGUF file: matrices in Q8_0, norms in F32.

use std::{
    fs::File,
    io::{self, BufWriter, Write},
    path::Path,
};

use stoker_engine::weights::ModelConfig;

use super::{
    encoding::Encoding,
    tensors::{self, Tensor},
    vocabulary::Vocabulary,
};

/// Alignment of tensor data in bytes.
const ALIGNMENT: usize = 32;
const VERSION: u32 = 3;
/// File type of a file with mostly Q8_0 tensors.
const MOSTLY_Q8_0: u32 = 7;

/// A metadata value.
enum Metadata<'a> {
    Count(u32),
    Number(f32),
    Text(&'a str),
    TextArray(&'a [String]),
    NumberArray(&'a [f32]),
    IntArray(&'a [i32]),
}

/// Returns the bytes of weights that [`write`] reports in total.
pub(super) fn bytes(config: &ModelConfig) -> u64 {
    tensors::of(config).iter().map(|tensor| tensor.bytes(encoding(tensor))).sum()
}

/// Writes the file `path` and reports the bytes of weights to `wrote`.
pub(super) fn write(
    path: &Path,
    name: &str,
    config: &ModelConfig,
    mut wrote: impl FnMut(u64),
) -> io::Result<()> {
    let mut out = BufWriter::new(File::create(path)?);
    let tensors = tensors::of(config);
    let mut header = Vec::new();
    header.extend(b"GGUF");
    header.extend(VERSION.to_le_bytes());
    header.extend((tensors.len() as u64).to_le_bytes());
    metadata(&mut header, name, config);
    tensor_infos(&mut header, &tensors);
    pad(&mut header);
    out.write_all(&header)?;
    for tensor in &tensors {
        let order = |row| stored_row(tensor, config.head_dim, row);
        tensor.write(&mut out, encoding(tensor), order, &mut wrote)?;
        let end = tensor.bytes(encoding(tensor)) as usize;
        out.write_all(&vec![0; end.next_multiple_of(ALIGNMENT) - end])?;
    }
    // Dirty pages would disturb the following measurement.
    out.into_inner()?.sync_all()
}

fn encoding(tensor: &Tensor) -> Encoding {
    if tensor.is_matrix() { Encoding::Q8_0 } else { Encoding::F32 }
}

/// Returns the row that is stored at index `stored`. Files of this architecture interleave the two
/// halves of a head that RoPE rotates.
fn stored_row(tensor: &Tensor, head_dim: usize, stored: usize) -> usize {
    if !(tensor.name.contains("q_proj") || tensor.name.contains("k_proj")) {
        return stored;
    }
    let (head, row) = (stored / head_dim, stored % head_dim);
    head * head_dim + row % 2 * (head_dim / 2) + row / 2
}

fn metadata(out: &mut Vec<u8>, name: &str, config: &ModelConfig) {
    let vocabulary = Vocabulary::of(config.vocab_size);
    let (scores, token_types) = (vocabulary.scores(), vocabulary.token_types());
    let count = |count: usize| Metadata::Count(count as u32);
    let values = [
        ("general.architecture", Metadata::Text("llama")),
        ("general.name", Metadata::Text(name)),
        ("general.file_type", Metadata::Count(MOSTLY_Q8_0)),
        ("general.quantization_version", Metadata::Count(2)),
        ("llama.context_length", count(config.context_length)),
        ("llama.embedding_length", count(config.hidden_size)),
        ("llama.block_count", count(config.num_layers)),
        ("llama.feed_forward_length", count(config.intermediate_size)),
        ("llama.attention.head_count", count(config.num_heads)),
        ("llama.attention.head_count_kv", count(config.num_kv_heads)),
        ("llama.attention.layer_norm_rms_epsilon", Metadata::Number(config.rms_norm_eps as f32)),
        ("llama.rope.dimension_count", count(config.head_dim)),
        ("llama.rope.freq_base", Metadata::Number(config.rope_theta as f32)),
        ("llama.vocab_size", count(config.vocab_size)),
        ("tokenizer.ggml.model", Metadata::Text("llama")),
        ("tokenizer.ggml.tokens", Metadata::TextArray(vocabulary.tokens())),
        ("tokenizer.ggml.scores", Metadata::NumberArray(&scores)),
        ("tokenizer.ggml.token_type", Metadata::IntArray(&token_types)),
        ("tokenizer.ggml.unknown_token_id", Metadata::Count(0)),
        ("tokenizer.ggml.bos_token_id", Metadata::Count(1)),
        ("tokenizer.ggml.eos_token_id", Metadata::Count(2)),
    ];
    out.extend((values.len() as u64).to_le_bytes());
    for (key, value) in &values {
        text(out, key);
        value.write(out);
    }
}

impl Metadata<'_> {
    /// Writes the type id, then the value.
    fn write(&self, out: &mut Vec<u8>) {
        const COUNT: u32 = 4;
        const INT: u32 = 5;
        const NUMBER: u32 = 6;
        const TEXT: u32 = 8;
        const ARRAY: u32 = 9;
        let array = |out: &mut Vec<u8>, kind: u32, len: usize| {
            out.extend(ARRAY.to_le_bytes());
            out.extend(kind.to_le_bytes());
            out.extend((len as u64).to_le_bytes());
        };
        match self {
            Self::Count(count) => {
                out.extend(COUNT.to_le_bytes());
                out.extend(count.to_le_bytes());
            }
            Self::Number(number) => {
                out.extend(NUMBER.to_le_bytes());
                out.extend(number.to_le_bytes());
            }
            Self::Text(value) => {
                out.extend(TEXT.to_le_bytes());
                text(out, value);
            }
            Self::TextArray(values) => {
                array(out, TEXT, values.len());
                values.iter().for_each(|value| text(out, value));
            }
            Self::NumberArray(values) => {
                array(out, NUMBER, values.len());
                out.extend(values.iter().flat_map(|value| value.to_le_bytes()));
            }
            Self::IntArray(values) => {
                array(out, INT, values.len());
                out.extend(values.iter().flat_map(|value| value.to_le_bytes()));
            }
        }
    }
}

/// Writes the tensor infos. Offsets are relative to the end of the padded header.
fn tensor_infos(out: &mut Vec<u8>, tensors: &[Tensor]) {
    let mut offset = 0u64;
    for tensor in tensors {
        text(out, &stored_name(&tensor.name));
        out.extend((tensor.shape.len() as u32).to_le_bytes());
        // The fastest-varying dimension comes first.
        out.extend(tensor.shape.iter().rev().flat_map(|dim| (*dim as u64).to_le_bytes()));
        let kind: u32 = match encoding(tensor) {
            Encoding::Q8_0 => 8,
            Encoding::F32 => 0,
            Encoding::Bf16 => 30,
        };
        out.extend(kind.to_le_bytes());
        out.extend(offset.to_le_bytes());
        offset += tensor.bytes(encoding(tensor)).next_multiple_of(ALIGNMENT as u64);
    }
}

/// Returns the GGUF name of a tensor: `model.layers.3.self_attn.q_proj.weight` becomes
/// `blk.3.attn_q.weight`.
fn stored_name(name: &str) -> String {
    let replacements = [
        ("model.embed_tokens", "token_embd"),
        ("model.norm", "output_norm"),
        ("lm_head", "output"),
        ("model.layers", "blk"),
        ("self_attn.q_proj", "attn_q"),
        ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"),
        ("self_attn.o_proj", "attn_output"),
        ("post_attention_layernorm", "ffn_norm"),
        ("input_layernorm", "attn_norm"),
        ("mlp.gate_proj", "ffn_gate"),
        ("mlp.up_proj", "ffn_up"),
        ("mlp.down_proj", "ffn_down"),
    ];
    replacements.iter().fold(name.to_owned(), |name, (from, to)| name.replace(from, to))
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

fn pad(out: &mut Vec<u8>) {
    out.resize(out.len().next_multiple_of(ALIGNMENT), 0);
}

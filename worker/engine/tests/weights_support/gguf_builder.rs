//! Builds small GGUF files in memory, valid or invalid.

/// A serialized metadata value: its type and its bytes.
#[derive(Clone)]
pub(crate) struct MetadataValue(u32, Vec<u8>);

/// A value of type `kind` with any bytes.
pub(crate) fn raw_value(kind: u32, bytes: Vec<u8>) -> MetadataValue {
    MetadataValue(kind, bytes)
}

pub(crate) fn u32_value(value: u32) -> MetadataValue {
    MetadataValue(4, value.to_le_bytes().to_vec())
}

pub(crate) fn f32_value(value: f32) -> MetadataValue {
    MetadataValue(6, value.to_le_bytes().to_vec())
}

pub(crate) fn bool_value(value: bool) -> MetadataValue {
    MetadataValue(7, vec![u8::from(value)])
}

pub(crate) fn text_value(value: &str) -> MetadataValue {
    MetadataValue(8, text(value))
}

/// A list that claims `count` items of type `kind`, with the bytes `items`.
pub(crate) fn array_value(kind: u32, count: u64, items: &[u8]) -> MetadataValue {
    let mut bytes = kind.to_le_bytes().to_vec();
    bytes.extend(count.to_le_bytes());
    bytes.extend_from_slice(items);
    MetadataValue(9, bytes)
}

/// A list of texts, whose bytes need not be UTF-8.
pub(crate) fn texts_value<T: AsRef<[u8]>>(texts: impl IntoIterator<Item = T>) -> MetadataValue {
    let (mut count, mut items) = (0, Vec::new());
    for item in texts {
        count += 1;
        items.extend((item.as_ref().len() as u64).to_le_bytes());
        items.extend_from_slice(item.as_ref());
    }
    array_value(8, count, &items)
}

/// A list of 32-bit integers.
pub(crate) fn ints_value(items: &[i32]) -> MetadataValue {
    let bytes: Vec<u8> = items.iter().flat_map(|item| item.to_le_bytes()).collect();
    array_value(5, items.len() as u64, &bytes)
}

/// A tensor: its name, its dimensions with the fastest-varying first, its type number and its data.
#[derive(Clone)]
pub(crate) struct Tensor {
    pub(crate) name: String,
    pub(crate) dims: Vec<u64>,
    pub(crate) kind: u32,
    pub(crate) data: Vec<u8>,
    /// The offset in the file's header, if not the true one.
    pub(crate) claimed_offset: Option<u64>,
}

#[derive(Clone)]
pub(crate) struct GgufBuilder {
    pub(crate) version: u32,
    pub(crate) alignment: usize,
    pub(crate) metadata: Vec<(String, MetadataValue)>,
    pub(crate) tensors: Vec<Tensor>,
}

/// The vocabulary of the tiny model.
const TOKENS: [&str; 5] = ["<unk>", "<s>", "</s>", "\u{2581}", "a"];

impl GgufBuilder {
    /// A file without metadata and tensors.
    pub(crate) fn empty() -> Self {
        Self { version: 3, alignment: 32, metadata: Vec::new(), tensors: Vec::new() }
    }

    /// A model with one layer, two heads of width 4, one KV head, hidden size 8 and intermediate
    /// size 32.
    pub(crate) fn tiny() -> Self {
        Self::tiny_with(32)
    }

    /// A tiny model with an intermediate size of `inner`.
    pub(crate) fn tiny_with(inner: u32) -> Self {
        let mut builder = Self::empty();
        builder.set("general.architecture", text_value("llama"));
        for (key, value) in [
            ("context_length", 16),
            ("embedding_length", 8),
            ("block_count", 1),
            ("feed_forward_length", inner),
            ("attention.head_count", 2),
            ("attention.head_count_kv", 1),
            ("rope.dimension_count", 4),
        ] {
            builder.set(&format!("llama.{key}"), u32_value(value));
        }
        builder.set("llama.attention.layer_norm_rms_epsilon", f32_value(1e-5));
        builder.set("tokenizer.ggml.model", text_value("llama"));
        builder.set("tokenizer.ggml.tokens", texts_value(TOKENS));
        builder.set("tokenizer.ggml.scores", array_value(6, 5, &[0; 20]));
        builder.set("tokenizer.ggml.token_type", ints_value(&[2, 3, 3, 1, 1]));
        builder.set("tokenizer.ggml.bos_token_id", u32_value(1));
        builder.set("tokenizer.ggml.eos_token_id", u32_value(2));
        let inner = u64::from(inner);
        for (name, dims) in [
            ("token_embd", &[8, 5][..]),
            ("blk.0.attn_norm", &[8]),
            ("blk.0.attn_q", &[8, 8]),
            ("blk.0.attn_k", &[8, 4]),
            ("blk.0.attn_v", &[8, 4]),
            ("blk.0.attn_output", &[8, 8]),
            ("blk.0.ffn_norm", &[8]),
            ("blk.0.ffn_gate", &[8, inner]),
            ("blk.0.ffn_up", &[8, inner]),
            ("blk.0.ffn_down", &[inner, 8]),
            ("output_norm", &[8]),
        ] {
            builder.add_f32(&format!("{name}.weight"), dims);
        }
        builder
    }

    /// Sets a metadata key, replacing an earlier value.
    pub(crate) fn set(&mut self, key: &str, value: MetadataValue) {
        self.metadata.retain(|(other, _)| other != key);
        self.metadata.push((key.to_owned(), value));
    }

    pub(crate) fn remove(&mut self, key: &str) {
        self.metadata.retain(|(other, _)| other != key);
    }

    /// Adds a tensor with elements 0, 1, 2, and so on.
    pub(crate) fn add_f32(&mut self, name: &str, dims: &[u64]) {
        let len: u64 = dims.iter().product();
        self.tensors.push(Tensor {
            name: name.to_owned(),
            dims: dims.to_vec(),
            kind: 0,
            data: (0..len).flat_map(|i| (i as f32).to_le_bytes()).collect(),
            claimed_offset: None,
        });
    }

    pub(crate) fn tensor(&mut self, name: &str) -> &mut Tensor {
        let mut tensors = self.tensors.iter_mut();
        tensors.find(|tensor| tensor.name == name).unwrap()
    }

    /// Builds the file. Returns it and the length in bytes of its part before the padded data.
    pub(crate) fn build(&self) -> (Vec<u8>, usize) {
        let mut file = b"GGUF".to_vec();
        file.extend(self.version.to_le_bytes());
        file.extend((self.tensors.len() as u64).to_le_bytes());
        file.extend((self.metadata.len() as u64).to_le_bytes());
        for (key, MetadataValue(kind, value)) in &self.metadata {
            file.extend(text(key));
            file.extend(kind.to_le_bytes());
            file.extend_from_slice(value);
        }
        let mut data = Vec::new();
        for tensor in &self.tensors {
            data.resize(data.len().next_multiple_of(self.alignment), 0);
            file.extend(text(&tensor.name));
            file.extend((tensor.dims.len() as u32).to_le_bytes());
            file.extend(tensor.dims.iter().flat_map(|dim| dim.to_le_bytes()));
            file.extend(tensor.kind.to_le_bytes());
            let offset = tensor.claimed_offset.unwrap_or(data.len() as u64);
            file.extend(offset.to_le_bytes());
            data.extend_from_slice(&tensor.data);
        }
        let header = file.len();
        file.resize(file.len().next_multiple_of(self.alignment), 0);
        file.extend(data);
        (file, header)
    }
}

/// A length-prefixed text.
pub(crate) fn text(text: &str) -> Vec<u8> {
    let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(text.as_bytes());
    bytes
}
